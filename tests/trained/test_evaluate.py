"""se_lab.trained.evaluate: a trial's own numbers again, timm's preprocessing, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from statsmodels.stats.proportion import proportion_confint
from torchvision.transforms import v2

from se_lab.cli import main
from se_lab.spec import DataSpec, ModelSpec, SESpec, SpecError, TrainSpec
from se_lab.store import read_sealed, write_sealed
from se_lab.trained import evaluate as module
from se_lab.trained.evaluate import EvalOptions, evaluate
from se_lab.training.run import run

PUG, FISH = "n02110958", "n01443537"


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Return the folder of a trial on digits that was tested with its best weights, and its record."""
    from se_lab.spec import ExecSpec, OptimSpec, RunSpec

    store = tmp_path_factory.mktemp("store")
    spec = RunSpec(
        ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs={"units": 1}),
        DataSpec(batch_size=100),
        OptimSpec(schedule="cosine"),
        TrainSpec(epochs=2, select="best", channels_last=True),
    )
    return store / spec.trial_id, run(spec, ExecSpec(store=str(store), logger="none"))


def folder_of_images(root: Path, names=(FISH, PUG), each=3) -> Path:
    noise = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = noise.integers(0, 256, (90 + 10 * number, 120, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((120, 100)).save(root / name / f"{number}.png")
    return root


def test_a_trial_has_the_numbers_of_its_record_to_the_last_digit(trial, tmp_path):
    folder, record = trial
    found = evaluate(folder, predictions=tmp_path / "p.npz")
    assert found.metrics == {key: value for key, value in record.metrics.items() if key.startswith("test/")}
    assert not found.remarks
    mine, theirs = np.load(tmp_path / "p.npz"), np.load(folder / "predictions.npz")
    assert found.images == len(theirs["label"])
    assert sorted(mine) == sorted(theirs)
    for name in theirs:
        assert mine[name].dtype == theirs[name].dtype
        assert (mine[name] == theirs[name]).all()


@pytest.mark.parametrize("train", [{"precision": "bf16"}, {"ema": 0.9}])
def test_it_tests_in_the_trials_precision_and_with_the_weights_that_were_tested(quick, here, train):
    spec = quick(train=TrainSpec(epochs=1, **train))
    record = run(spec, here)
    metrics = evaluate(Path(here.store, spec.trial_id)).metrics
    assert metrics == {key: value for key, value in record.metrics.items() if key.startswith("test/")}


def test_intervals_are_wilsons(trial):
    found = evaluate(trial[0], options=EvalOptions(batch_size=64))
    for name in ("test/top1_error", "test/top5_error"):
        wrong = round(found.metrics[name] / 100 * found.images)
        expected = proportion_confint(wrong, found.images, method="wilson")  # statsmodels
        assert found.intervals[name] == pytest.approx([100 * bound for bound in expected], abs=1e-9)


def test_other_images_than_the_records_are_remarked_on(trial, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("best.ckpt", "record.json"):
        (copy / name).write_bytes((trial[0] / name).read_bytes())
    record = read_sealed(copy / "record.json")
    record["data"]["digest"] = "another"
    write_sealed(copy / "record.json", record)
    assert "images have changed" in evaluate(copy).remarks[0]


@pytest.fixture
def pretrained(tmp_path):
    """Return timm's name of a 1,000-class net on this disk with preprocessing of its own, and the net."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=1000).eval()
    folder = tmp_path / "net"
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    own = {"input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bicubic"}
    own |= {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "num_classes": 1000}
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(config))
    return f"timm:local-dir:{folder}", net


def test_a_pretrained_net_sees_its_own_preprocessing_and_classes_by_wordnet_id(pretrained, tmp_path):
    name, net = pretrained
    root = folder_of_images(tmp_path / "images")
    found = evaluate(name, f"folder:{root}", predictions=tmp_path / "p.npz", options=EvalOptions(workers=0))
    # torchvision's transforms, with the numbers of the net's config: 64 / 0.8 = 80
    prepare = v2.Compose([v2.Resize(80, v2.InterpolationMode.BICUBIC), v2.CenterCrop(64), v2.PILToTensor()])
    images = torch.stack(
        [prepare(Image.open(file)) for part in (FISH, PUG) for file in sorted((root / part).iterdir())]
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.1, 0.2, 0.3]))
    with torch.inference_mode():
        logits = net((images / 255 - mean) / std)
    labels = torch.tensor([1] * 3 + [254] * 3)  # goldfish and pug in ImageNet's order
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert found.metrics["test/loss"] == pytest.approx(float(loss), rel=1e-4)
    written = np.load(tmp_path / "p.npz")
    assert written["label"].tolist() == labels.tolist()
    assert written["key"][0] == f"images/{FISH}/0.png"
    assert (written["top5"][:, 0] == logits.argmax(1).numpy()).all()
    np.testing.assert_allclose(written["probability"], logits.softmax(1).topk(5).values, rtol=1e-4)


def test_wrong_input_is_said_plainly(trial, pretrained, tmp_path):
    with pytest.raises(SpecError, match="has no test images; give --data"):
        evaluate(pretrained[0])
    with pytest.raises(SpecError, match="timm has no net called 'resnt50'; did you mean 'resnet50'"):
        evaluate("timm:resnt50", "folder:x")
    root = folder_of_images(tmp_path / "pets", ["cat", "dog"])
    with pytest.raises(SpecError, match=r"has 1000 classes, and the images have 2 \(cat, dog"):
        evaluate(pretrained[0], f"folder:{root}")
    with pytest.raises(SpecError, match="has 10 classes, and the images have 2"):
        evaluate(trial[0], f"folder:{root}")
    with pytest.raises(module.DataError, match="expected one folder of images per class"):
        evaluate(pretrained[0], f"folder:{tmp_path / 'none'}")
    with pytest.raises(SpecError, match="whose preprocessing differs"):
        evaluate(pretrained[0], "digits")
    (root / "cat" / "0.png").write_text("no image")
    with pytest.raises(module.DataError, match=r"cat/0\.png cannot be read: it is not an image"):
        evaluate(folder_net(tmp_path), f"folder:{root}", options=EvalOptions(workers=0))


def folder_net(tmp_path: Path) -> str:
    net = timm.create_model("test_resnet", num_classes=2)
    folder = tmp_path / "two"
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 2, "pretrained_cfg": {"num_classes": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    return f"timm:local-dir:{folder}"


def test_the_command_prints_errors_with_their_intervals(trial, capsys):
    assert main(["eval", str(trial[0])]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("on digits, 898 test images")
    low, high = evaluate(trial[0]).intervals["test/top1_error"]
    assert printed[2].split()[0] == "test/top1_error" and printed[2].endswith(f"({low:.4g} to {high:.4g})")
    assert main(["eval", str(trial[0]), "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == evaluate(trial[0]).metrics
    assert main(["eval", str(trial[0]), "--predictions=p.txt"]) == 2
    assert main(["eval", str(trial[0]), "--batchsize=3"]) == 2
    assert "did you mean '--batch_size'" in capsys.readouterr().err
