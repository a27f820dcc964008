"""The trials of a page: the command that repeats one is that trial."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from se_lab.report.page.trials import repeat_command
from se_lab.spec import DataSpec, ModelSpec, OptimSpec, RunSpec, SESpec, TrainSpec
from se_lab.spec.flags import parse_trial
from se_lab.store import read_record
from tests.report.page.conftest import keep


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(),
        RunSpec(model=ModelSpec("cifar_resnet20", SESpec(insertion="none")), seed=3),
        RunSpec(model=ModelSpec("cifar_resnet20", SESpec(unit="eca"))),
        RunSpec(model=ModelSpec("cifar_resnet20", SESpec(unit="cbam", reduction=4))),
        RunSpec(
            model=ModelSpec("resnet50", SESpec(stages=[2, 3], bias=True), kwargs={"drop_path_rate": 0.1}),
            data=DataSpec(name="folder:/data/my images", image_size=64),
            optim=OptimSpec(schedule="multistep", milestones=[3, 5], lr=1e-3),
            train=TrainSpec(epochs=7),
        ),
    ],
)
def test_the_command_to_repeat_a_trial_is_that_trial(spec: RunSpec, tmp_path: Path) -> None:
    keep(tmp_path / "trial", spec=spec.flat(), trial_id=spec.trial_id)
    record = read_record(tmp_path / "trial")
    verb, *flags = shlex.split(repeat_command(record))[1:]
    assert verb == "train" and parse_trial(flags)[0].trial_id == spec.trial_id


def test_the_command_has_the_plugins_and_the_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "watching.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    pieces = ["LearningRateMonitor", {"class_path": "watching.Watch", "init_args": {"every": 5}}]
    keep(tmp_path / "trial", spec=RunSpec().flat(), execution={"plugins": "watching", "callbacks": pieces})
    record = read_record(tmp_path / "trial")
    execution = parse_trial(shlex.split(repeat_command(record))[2:])[1]
    assert (execution.plugins, list(execution.callbacks)) == ("watching", pieces)
