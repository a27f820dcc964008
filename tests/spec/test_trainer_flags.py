"""The flags of L.Trainer that a trial accepts, and the reasons for rejecting the others."""

from __future__ import annotations

import inspect

import lightning as L
import pytest

from se_lab.spec import ExecSpec, SpecError
from se_lab.spec.flags import execution_of, parse_trial
from se_lab.spec.trainer_flags import SET_ELSEWHERE, TRAINER_FLAGS


def test_every_flag_of_lightnings_trainer_is_taken_or_refused_with_a_reason():
    known = set(inspect.signature(L.Trainer).parameters)
    assert known <= {*TRAINER_FLAGS, *SET_ELSEWHERE} and not {*TRAINER_FLAGS} & {*SET_ELSEWHERE}
    assert known >= {*TRAINER_FLAGS}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--trainer.max_epochs=3",
            "trial does not accept trainer.max_epochs: it affects results: set train.epochs",
        ),
        ("--trainer.max-epochs=3", "set train.epochs instead"),
        ("--trainer={precision: 16}", "set train.precision instead"),
        ("--trainer.profilr=simple", "did you mean '--trainer.profiler'"),
        ("--trainer={max_epoch: 3}", "did you mean 'max_epochs'"),
        ("--trainer.profiler=smple", "trainer.profiler is 'smple'.*did you mean 'simple'"),
        ("--trainer.detect_anomaly=1", "trainer.detect_anomaly is 1; it must be true or false"),
        ("--trainer.limit_val_batches=0.5", "trainer.limit_val_batches is 0.5; it must be a number of batches"),
        ("--train.log_every=4", "did you mean '--log_every'"),
    ],
)
def test_a_flag_that_no_trial_takes_is_refused(flag, message):
    with pytest.raises(SpecError, match=message):
        parse_trial([flag])


def test_flags_of_the_trainer_come_together_from_file_and_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {profiler: simple, detect_anomaly: false}\n")
    _, execution = parse_trial([f"--config={file}", "--trainer.detect_anomaly=true"])
    assert execution.trainer == {"profiler": "simple", "detect_anomaly": True}
    again = execution_of([("trainer.profiler", "advanced")], execution)
    assert again.trainer == {"profiler": "advanced", "detect_anomaly": True}


def test_classes_are_named_with_commas_or_with_arguments():
    _, execution = parse_trial(["--callbacks=One, two.Two", "--loggers={class_path: a.B, init_args: {c: [1]}}"])
    assert execution.callbacks == ("One", "two.Two")
    assert execution.loggers == ({"class_path": "a.B", "init_args": {"c": [1]}},)
    assert ExecSpec(callbacks=["One", {"class_path": "a.B"}]).callbacks == ("One", {"class_path": "a.B"})


def test_wandb_false_is_short_for_no_logger_and_the_trial_is_the_same():
    short, long = parse_trial(["--wandb=false"]), parse_trial(["--logger=none", "--log_every=10", "--callbacks=A"])
    assert short[1].logger == long[1].logger == "none" and short[0].trial_id == long[0].trial_id
