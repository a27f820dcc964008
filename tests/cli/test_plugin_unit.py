"""A unit that a plugin adds goes through every verb; the plugin is the example in CONTRIBUTING.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from se_lab import UNITS
from se_lab.cli import main

FLAGS = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=256", "--plugins=my_unit"]
UNIT = "--model.se.unit=own_mean"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Stand in a folder with the plugin, and forget it afterwards."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(# my_unit\.py\n.*?)```", text, re.DOTALL)
    assert len(example.split("\n\n\n")) == 3 and example.count("\n") < 30
    (tmp_path / "my_unit.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    UNITS.pop("own_mean", None)
    sys.modules.pop("my_unit", None)


@pytest.mark.slow
def test_a_unit_of_a_plugin_goes_through_every_verb(folder, capsys):
    assert main(["train", *FLAGS, "--wandb=false", UNIT]) == 0
    (trial,) = (path.parent for path in folder.glob("runs/*/record.json"))
    record = json.loads((trial / "record.json").read_text())
    assert record["spec"]["model.se.unit"] == "own_mean" and record["spec"]["model.se.reduction"] is None
    assert record["complexity"]["params_se"] == 2 * 3 * (16 + 32 + 64)

    variants = {"model.se": {"values": [{"insertion": "none"}, {"unit": "own_mean"}]}, "seed": {"values": [0, 1]}}
    spec = {"program": "se-lab", "method": "grid", "parameters": variants}
    command = ["${env}", "se-lab", "train", *FLAGS, "${args}"]
    Path("sweep.yaml").write_text(yaml.safe_dump(spec | {"command": command}))
    assert main(["sweep", "sweep.yaml", "--workers=2", "--wandb=false", "--plugins=my_unit"]) == 0
    assert len(list(folder.glob("runs/*/record.json"))) == 4

    capsys.readouterr()
    assert main(["profile", "--plugins=my_unit", "--model.backbone=cifar_resnet20", UNIT, "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["closed_form"] == "equal"
    assert main(["table", "runs", "--columns", "test/top1_error", "params_over", "--format", "csv"]) == 0
    assert "params_over" in capsys.readouterr().out
    assert main(["excitations", str(trial), "--images_per_class=2", "-o", "seen"]) == 0
    assert (folder / "seen/figure_6.png").is_file()
    assert main(["export", str(trial), "-o", "exported"]) == 0
    capsys.readouterr()
    assert main(["eval", str(trial), "--format=json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["test/top1_error"] == pytest.approx(record["metrics"]["test/top1_error"])
