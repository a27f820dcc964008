"""Callbacks and loggers of the user's own, and the flags of L.Trainer, in a trial."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys

import pytest
import torch

from se_lab.cli import main
from se_lab.spec import SpecError
from se_lab.store import read_record, trial_folder
from se_lab.trained.load import load_trained
from se_lab.training.rehearse import rehearse
from se_lab.training.run import run
from se_lab.training.stopping import InterruptedTrialError
from tests.training.test_run import stop_after

MINE = """
import lightning as L
from lightning.pytorch.loggers import Logger

class Count(L.Callback):
    def __init__(self, step=1):
        self.step, self.epochs = step, 0

    def on_train_epoch_end(self, trainer, task):
        self.epochs += self.step
        task.log("val/counted", float(self.epochs))

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]

class Opaque(L.Callback):
    def state_dict(self):
        return {"what": Count()}

class Fails(Logger):
    name = version = "fails"

    def log_metrics(self, metrics, step=None):
        raise ConnectionResetError("nobody answers")

    def log_hyperparams(self, params, *args, **kwargs):
        pass

class Stops(L.Callback):
    def on_train_start(self, trainer, task):
        raise AssertionError("imported and used")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return the name of a user's module of the test's own, which is forgotten afterwards."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield name
    sys.modules.pop(name, None)


def test_callbacks_run_resume_and_are_recorded_and_the_numbers_stay(few, here, mine, tmp_path):
    plain = run(few(), here)
    pieces = ["LearningRateMonitor", {"class_path": f"{mine}.Count", "init_args": {"step": 2}}]
    other = dataclasses.replace(here, store=str(tmp_path / "other"), callbacks=pieces, logger="csv")
    record = run(few(), other)
    assert record.metrics == plain.metrics | {"val/counted": 4.0}
    assert record.execution["callbacks"] == pieces
    assert len(record.provenance[f"plugin {mine}"]) == 64
    assert json.loads(record.provenance["callbacks"]) == pieces[1:]  # Lightning's own change no number
    folder = trial_folder(other.store, record.trial_id)
    kept = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    assert kept["Count"] == {"epochs": 4}
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(key.startswith("lr-") for key in rows[0]) and any(row["val/loss"] for row in rows)


@pytest.mark.parametrize("batches", [2, 3, 5])  # in the first epoch, at its end, in the second
def test_a_callback_goes_on_with_its_state_where_the_trial_was_stopped(few, here, mine, tmp_path, monkeypatch, batches):
    pieces = [{"class_path": f"{mine}.Count", "init_args": {"step": 2}}]
    whole, stopped = (
        dataclasses.replace(here, store=str(tmp_path / name), callbacks=pieces) for name in ("whole", "stopped")
    )
    undisturbed = run(few(), whole)
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(InterruptedTrialError):
            run(few(), stopped)
    assert run(few(), stopped).metrics == undisturbed.metrics  # "val/counted" is one of them


def test_a_plugins_class_needs_no_path(few, here, mine):
    record = run(few(), dataclasses.replace(here, plugins=mine, callbacks=("Count",)))
    assert record.metrics["val/counted"] == 2.0


@pytest.mark.parametrize(
    ("field", "piece", "message"),
    [
        ("callbacks", "LearningRateMonitr", "does not exist; did you mean 'LearningRateMonitor'"),
        ("callbacks", "no_module_of_mine.Watch", "callbacks has 'no_module_of_mine': ModuleNotFoundError"),
        ("callbacks", "torch.nn.Linear", "is not a Lightning Callback"),
        ("callbacks", "CSVLogger", "does not exist"),
        (
            "callbacks",
            {"class_path": "LearningRateMonitor", "init_args": {"intervl": 1}},
            "cannot be created: TypeError",
        ),
        ("callbacks", {"class": "LearningRateMonitor"}, "a mapping of class_path and init_args"),
        ("callbacks", {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}, "early_terminate"),
        ("callbacks", "se_lab.InsertSE", "model.se"),
        ("callbacks", "StochasticWeightAveraging", "train.ema"),
        ("callbacks", "MINE.Opaque", "cannot be loaded from a checkpoint"),
        ("loggers", "CSVLoger", "did you mean 'CSVLogger'"),
        ("loggers", "LearningRateMonitor", "does not exist"),
    ],
)
def test_what_is_no_callback_or_logger_of_a_trial_is_refused_before_any_work(few, here, mine, field, piece, message):
    piece = piece.replace("MINE", mine) if isinstance(piece, str) else piece
    with pytest.raises(SpecError, match=message):
        run(few(), dataclasses.replace(here, **{field: (piece,)}))
    assert not trial_folder(here.store, few().trial_id).exists()


def test_a_logger_that_fails_is_recorded_and_the_others_go_on(few, here, mine, capsys):
    loggers = (f"{mine}.Fails", {"class_path": "CSVLogger", "init_args": {"name": "second"}})
    record = run(few(), dataclasses.replace(here, loggers=loggers))
    assert record.host["Fails"] == "the rest was not logged: ConnectionResetError: nobody answers"
    assert record.host["Fails"] in capsys.readouterr().err
    written = trial_folder(here.store, record.trial_id) / "second" / "version_0" / "metrics.csv"
    assert "val/loss" in written.read_text().partition("\n")[0]


def test_tensorboard_gets_the_metrics_and_a_missing_package_is_named(few, here, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    here = dataclasses.replace(here, logger="tensorboard")
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SpecError, match="pip install tensorboard"):
            run(few(), here)
    record = run(few(), here)
    events = EventAccumulator(str(trial_folder(here.store, record.trial_id) / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/loss", "test/top1_error", "lr"} <= set(events.Tags()["scalars"])


def test_flags_of_the_trainer_reach_it_and_change_no_number(few, here, tmp_path):
    plain = run(few(), here)
    flags = {"profiler": "simple", "detect_anomaly": True, "enable_model_summary": True}
    record = run(few(), dataclasses.replace(here, store=str(tmp_path / "other"), trainer=flags))
    assert record.metrics == plain.metrics and record.execution["trainer"] == flags
    folder = tmp_path / "other" / record.trial_id
    assert "run_training_batch" in (folder / "fit-profile.txt").read_text()


def test_limits_are_for_a_rehearsal(few, here):
    limited = dataclasses.replace(here, trainer={"limit_train_batches": 3})
    with pytest.raises(SpecError, match=r"limit_train_batches would affect a trial's results.*--dry_run"):
        run(few(), limited)
    assert rehearse(few(), limited).rehearsed_steps == 3


def test_workers_of_a_sweep_get_callbacks_and_what_is_wrong_with_one_is_said_first(mine, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(
        "program: se-lab\nmethod: grid\n"
        "command: ['${env}', 'se-lab', train, --recipe=digits, --train.epochs=1, --data.batch_size=256,\n"
        "  --model.backbone=cifar_resnet20, '--model.kwargs={units: 1}', --logger=none, '${args}']\n"
        "parameters: {seed: {values: [0]}}\n"
    )
    argv = ["sweep", "sweep.yaml", f"--store={tmp_path / 'store'}"]
    assert main([*argv, f"--callbacks={mine}.Cont"]) == 2
    assert "did you mean 'Count'" in capsys.readouterr().err
    assert main([*argv, f"--callbacks={mine}.Count"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "store").glob("*/record.json"))
    assert read_record(folder).metrics["val/counted"] == 1.0


def test_what_a_record_names_is_not_imported(few, here, mine):
    record = run(few(), dataclasses.replace(here, callbacks=(f"{mine}.Count",)))
    del sys.modules[mine]
    load_trained(trial_folder(here.store, record.trial_id))
    assert mine not in sys.modules
