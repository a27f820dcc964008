"""The recipes that come with SE-Lab: each parses, and those of the paper say what the paper says."""

import pytest
import torch

from se_lab.spec.flags import parse_trial, recipe_changes, recipes
from se_lab.training.optimize import onecycle_fraction
from se_lab.units.model import create_model
from se_lab.units.squeeze_excite import SQUEEZE


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_parses_and_any_field_can_be_overridden(name):
    spec, _ = parse_trial(["--seed=5", "--optim.lr=0.123", f"--recipe={name}", "--model.se.insertion=none"])
    assert (spec.seed, spec.optim.lr, spec.model.se.insertion) == (5, 0.123, "none")


def test_imagenet_recipe_is_the_papers():  # section 5.1
    spec, _ = parse_trial(["--recipe=imagenet"])
    assert (spec.data.batch_size, spec.optim.lr, spec.optim.momentum, spec.optim.name) == (1024, 0.6, 0.9, "sgd")
    assert (spec.optim.schedule, spec.optim.decay_epochs, spec.optim.decay_rate, spec.train.epochs) == (
        "step",
        30,
        0.1,
        100,
    )
    assert spec.model.init == "he" and spec.data.crop_pct == 224 / 256


def test_ablation_recipe_is_the_papers_fixed_schedule():  # section 6
    spec, _ = parse_trial(["--recipe=ablation"])
    assert (spec.optim.lr, spec.optim.milestones, spec.train.epochs) == (0.1, (125, 200, 250), 270)
    assert spec.train.label_smoothing > 0 and not spec.model.se.bias


@pytest.mark.parametrize(
    ("name", "backbone", "params_m", "batch", "lr", "weight_decay", "epochs", "drops"),
    [  # He et al. 2015, 4.2; He et al. 2016, appendix; Zagoruyko & Komodakis 2016, 3; Gastaldi 2017, 2.1, 2.2
        ("cifar", "cifar_resnet110", 1.7, 128, 0.1, 1e-4, 182, [91, 137]),
        ("cifar_resnet164", "cifar_preact_resnet164", 1.7, 128, 0.1, 1e-4, 164, [82, 123]),
        ("cifar_wrn16_8", "cifar_wrn16_8", 11.0, 128, 0.1, 5e-4, 200, [60, 120, 160]),
        ("cifar_shake_shake", "cifar_shake_shake26_2x96d", 26.2, 128, 0.2, 1e-4, 1800, []),
        ("cifar_shake_even", "cifar_shake_shake29_2x4x64d", 34.4, 32, 0.025, 5e-4, 1800, []),
    ],
)
def test_each_cifar_net_has_the_recipe_of_its_own_paper(
    name, backbone, params_m, batch, lr, weight_decay, epochs, drops
):
    spec, _ = parse_trial([f"--recipe={name}", "--model.se.insertion=none"])
    assert spec.model.backbone == backbone
    assert (spec.data.batch_size, spec.optim.lr, spec.optim.weight_decay) == (batch, lr, weight_decay)
    assert (spec.train.epochs, list(spec.optim.milestones)) == (epochs, drops)
    assert spec.optim.schedule == ("multistep" if drops else "cosine")
    with torch.device("meta"):
        net = create_model(spec.model, 10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(params_m, abs=0.05)


def test_cutout_is_as_large_as_its_paper_says():  # DeVries & Taylor 2017, section 4.1
    sizes = {name: parse_trial([f"--recipe=cifar_{name}"])[0].data.cutout for name in ("shake_shake", "shake_even")}
    assert sizes == {"shake_shake": 16, "shake_even": 8}


def test_a_recipe_that_flags_change_says_so():
    spec, execution = parse_trial(
        ["--optim.lr=0.3", "--recipe=imagenet", "--model.se.reduction=8", "--train.ema=0.9", "--data.name=digits"]
    )
    changed = {"optim.lr": [0.6, 0.3], "train.ema": [0.0, 0.9], "data.name": ["imagenet", "digits"]}
    assert recipe_changes(execution.recipe, spec) == {"name": "imagenet", "changed": changed}
    assert recipe_changes(parse_trial(["--optim.lr=0.3"])[1].recipe, spec) is None


def test_plugins_of_a_configuration_file_are_imported_in_time(tmp_path, monkeypatch):
    (tmp_path / "a_squeeze_of_mine.py").write_text("from se_lab import SQUEEZE\nSQUEEZE['mine'] = SQUEEZE['avg']\n")
    (tmp_path / "trial.yaml").write_text("plugins: a_squeeze_of_mine\nmodel: {se: {squeeze: mine}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec, execution = parse_trial([f"--config={tmp_path / 'trial.yaml'}"])
    SQUEEZE.pop("mine")
    assert spec.model.se.squeeze == "mine" and execution.plugins == "a_squeeze_of_mine"


def test_onecycle_rises_and_falls_linearly_to_zero():
    rates = [onecycle_fraction(step, steps=10, warmup=4) for step in range(11)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
