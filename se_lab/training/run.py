"""Run a trial from its spec to its record, resuming it if it was interrupted."""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.loggers import Logger
from rich import get_console
from rich.progress import BarColumn

from se_lab import store
from se_lab.data import present_digest
from se_lab.parallel.collectives import broadcast_object, find_rank
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.spec.flags import import_plugins
from se_lab.store import RunRecord
from se_lab.training.checkpoints import newest_checkpoint, read_checkpoint
from se_lab.training.failures import LOST, failure_kind, record_failure
from se_lab.training.folder import TrialFolder
from se_lab.training.keeper import Progress, StoppedEarlyError, TrialKeeper, share_skipped
from se_lab.training.launch import LostRankError, launch
from se_lab.training.loggers import open_loggers
from se_lab.training.pieces import create_callbacks, create_loggers
from se_lab.training.preflight import check_before, check_no_limits, device_model
from se_lab.training.record import new_record
from se_lab.training.step_log import StepLog
from se_lab.training.stopping import RESUME_ME, InterruptedTrialError
from se_lab.training.task import ClassificationTask
from se_lab.training.trainer import create_trainer
from se_lab.training.trial import Trial, open_trial

__all__ = ["RESUME_ME", "InterruptedTrialError", "Progress", "StoppedEarlyError", "run"]


def run(spec: RunSpec, execution: ExecSpec | None = None, *, progress: Progress | None = None) -> RunRecord:
    """Run or resume a trial, and return its record.

    The results equal those of `L.Trainer(...).fit(ClassificationTask(spec, ...), create_data(spec.data, spec.seed))`. A
    finished trial is not run again; a failed one resumes from its checkpoint. A trial on several devices runs in one
    process per device; this function starts them, unless srun or torchrun has. SIGTERM, SIGUSR1 and SIGHUP stop a trial
    after the current training step or evaluation batch, with a checkpoint to resume from.

    Args:
        spec: The trial.
        execution: Where and how the trial runs.
        progress: Called with each epoch's row.

    Raises:
        SpecError, DataError: before anything is written, for a trial that cannot run.
        TrialBusyError: if another worker holds the trial.
        InterruptedTrialError: on SIGTERM, SIGUSR1, SIGHUP or SIGINT, after saving the state.
        Exception: the error that made the trial fail, after recording its traceback.

    Examples:
        >>> net = ModelSpec("cifar_resnet20", kwargs={"units": 1})  # a ResNet-8
        >>> spec = RunSpec(net, DataSpec("digits", batch_size=256), train=TrainSpec(epochs=1))
        >>> record = run(spec, ExecSpec(store="runs", logger="none"))
        >>> record.status
        'finished'
    """
    execution = execution or ExecSpec()
    import_plugins(execution.plugins)
    folder = store.trial_folder(execution.store, spec.trial_id)
    rank = find_rank(spec.train)
    if (rank is None or rank.ranks == 1) and (record := _finished(folder)) is not None:
        return name_differences(record, spec, execution, present_digest(spec.data, root=execution.data_root))
    check_before(spec, execution)
    check_no_limits(execution)
    callbacks, loggers = create_callbacks(execution), create_loggers(execution, folder)
    if rank is None:
        return _run_ranks(spec, execution, folder, progress)
    with open_trial(spec, execution, rank, announced=True) as trial:
        task = trial.create_task()
        trial.leave_if_asked()
        with trial.claim_folder(folder) as trial_folder:
            # another worker may have finished the trial while the net was built
            if (finished_record := broadcast_object(_finished(folder) if trial_folder.is_held else None)) is not None:
                return name_differences(finished_record, spec, execution, trial.data.digest)
            return TrialRun(trial, task, trial_folder, progress, callbacks, loggers).complete()


class TrialBar(RichProgressBar):
    """Lightning's progress bar, with epochs counted from 1 and the last error."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar of an epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            epoch = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.progress.update(self.train_progress_bar_id, description=f"{epoch:{len(self.validation_description)}}")

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Return the columns, with a short bar in a narrow terminal to fit the error on the line."""
        columns: list[Any] = super().configure_columns(trainer)
        for column in columns:
            if isinstance(column, BarColumn) and get_console().width < 100:
                column.bar_width = 8
        return columns

    def get_metrics(self, trainer: L.Trainer, *_: Any) -> dict[str, Any]:
        """Return the metrics shown beside the bar."""
        errors = {"val/top1_error": "validation error", "train/top1_error": "training error"}
        pairs = [
            (name, trainer.callback_metrics[key]) for key, name in errors.items() if key in trainer.callback_metrics
        ]
        return {name: f"{float(value):.2f} %" for name, value in pairs[:1]}


class TrialRun:
    """A run of a trial that this process holds."""

    def __init__(
        self,
        trial: Trial,
        task: ClassificationTask,
        folder: TrialFolder,
        progress: Progress | None,
        callbacks: list[L.Callback],
        loggers: list[Logger],
    ) -> None:
        self.trial, self.task, self.folder, self.callbacks, self.loggers = trial, task, folder, callbacks, loggers
        self.record = new_record(trial, task)
        self.record.host["fused"] = trial.fuse_if_faster(task, self.record.complexity["macs"])
        self.keeper = TrialKeeper(
            folder,
            trial.stop,
            minutes=trial.execution.checkpoint_minutes,
            progress=progress,
            provenance=self.record.provenance,
        )
        bar_enabled = trial.execution.trainer.get("enable_progress_bar", True)
        self.with_bar = bar_enabled and progress is None and folder.is_held and sys.stderr.isatty()

    def complete(self) -> RunRecord:
        """Train and test; write and return the record, also for a failure."""
        self.folder.clear_leftovers()
        try:
            self._train_and_test()
        except Exception as error:
            if self.trial.stop.asked and not isinstance(error, FloatingPointError):  # another rank may have exited
                reason = "".join(traceback.format_exception_only(error)).strip()
                print(f"asked to stop, and stopped by an error that is not recorded: {reason}", file=sys.stderr)
                raise InterruptedTrialError from error
            self.record.status, self.record.error = "failed", traceback.format_exc()
            self.record.error_kind = failure_kind(error)
            self._note_segments()
            self.folder.clear_leftovers()  # an incomplete checkpoint may fill the disk
            self.folder.write_record(self.record)
            raise
        return self.folder.write_record(self.record)

    def _train_and_test(self) -> None:
        spec, execution = self.trial.spec, self.trial.execution
        callbacks = [*self.callbacks, StepLog(execution.log_every), self.keeper]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if self.with_bar and not has_bar:
            callbacks.append(TrialBar(leave=True))
        options = {"callbacks": callbacks, "enable_progress_bar": has_bar or self.with_bar}
        with contextlib.ExitStack() as stack:
            opened_loggers: list[Logger] = []
            # W&B's client hangs or fails after an exception at any point of its code
            self.trial.stop.at_once = False
            if self.folder.is_held:
                opened_loggers = stack.enter_context(
                    open_loggers(self.record, self.folder.path, execution, self.loggers)
                )
            self.trial.leave_if_asked()
            trainer = create_trainer(
                spec, execution, self.trial.rank, self.folder, logger=opened_loggers or False, **options
            )
            with_best = spec.train.select == "best"
            checkpoint = newest_checkpoint(self.folder.path, with_best=with_best) if self.folder.is_held else None
            checkpoint = broadcast_object(checkpoint)
            try:
                trainer.fit(self.task, datamodule=self.trial.data, ckpt_path=checkpoint, weights_only=True)
                self.record.status, test_metrics = "finished", self._test(trainer)
            except SystemExit:  # raised by Lightning on a second Ctrl-C
                raise InterruptedTrialError from None
            except StoppedEarlyError:
                self.record.status, test_metrics = "stopped", {}
            self._record_metrics(test_metrics)
            share_skipped(trainer)
            if self.trial.data.skipped:
                self.record.data["skipped"] = self.trial.data.skipped
            for logger in trainer.loggers:
                logger.log_metrics({key: self.record.complexity[key] for key in ("params", "macs")})
                logger.finalize("success")

    def _test(self, trainer: Any) -> dict[str, float]:
        """Test the selected weights, write their predictions, and return the metrics."""
        if self.trial.spec.train.select == "best":
            if self.keeper.best_loss == float("inf"):
                raise FloatingPointError("the validation loss was nan or infinite in every epoch, so none is best")
            checkpoint = read_checkpoint(self.folder.path / "best.ckpt", self.folder.trial_id)
            self.task.load_state_dict(checkpoint["state_dict"])
        trainer.test(self.task, datamodule=self.trial.data, verbose=False)
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")}
        if not math.isfinite(metrics["test/loss"]):
            raise FloatingPointError("the loss on the test images is nan or infinite")
        predictions = self.keeper.predictions()
        arrays = {"key": np.array(self.trial.data.test_keys())[predictions["image"]], "label": predictions["label"]}
        arrays |= {"top5": predictions["top5"], "probability": predictions["probability"]}
        arrays |= {"correct": predictions["top5"][:, 0] == predictions["label"]}
        self.folder.write("predictions.npz", lambda file: np.savez_compressed(file, **arrays))
        return metrics

    def _record_metrics(self, test_metrics: dict[str, float]) -> None:
        epoch_metrics = {
            key: value for key, value in self.keeper.rows[-1].items() if key.startswith(("train/", "val/"))
        }
        self.record.metrics, self.record.timings = epoch_metrics | test_metrics, self.keeper.timings()
        self._note_segments()

    def _note_segments(self) -> None:
        if len(self.keeper.segments) > 1:
            self.record.segments = self.keeper.segments


def _run_ranks(spec: RunSpec, execution: ExecSpec, folder: Path, progress: Progress | None) -> RunRecord:
    """Run a trial's ranks in separate processes; record the errors of all ranks."""
    try:
        record: RunRecord = launch("run", spec, execution, progress)
    except (SpecError, store.TrialBusyError, store.ClaimLostError):
        raise
    except Exception as error:
        if isinstance(error, LostRankError) or (folder / "claims").is_dir():  # otherwise the trial has not started
            kind = LOST if isinstance(error, LostRankError) else failure_kind(error)
            record_failure(spec, execution, "".join(traceback.format_exception(error)), kind)
        raise
    return record


def _finished(folder: Path) -> RunRecord | None:
    record = store.read_record(folder)
    return record if record is not None and record.status == "finished" else None


def name_differences(record: RunRecord, spec: RunSpec, execution: ExecSpec, images: str | None) -> RunRecord:
    """Print all changes that could affect results since a trial finished; return its record."""
    provenance = store.current_provenance(spec, execution, images=images, device=device_model(execution))
    for difference in store.differences(record.provenance, provenance):
        print(f"trial {record.trial_id} is finished, but {difference}: a new run may differ", file=sys.stderr)
    return record
