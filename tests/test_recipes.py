"""The recipes that come with SE-Lab: each parses, and those of the paper say what the paper says."""

import pytest

from se_lab.flags import parse_trial, recipes
from se_lab.task import onecycle


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


def test_onecycle_rises_and_falls_linearly_to_zero():
    rates = [onecycle(step, steps=10, warmup=4) for step in range(11)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
