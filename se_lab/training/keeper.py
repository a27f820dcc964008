"""The callback that keeps a trial's folder: checkpoints, metrics.csv, the clock; and stops the trial when told to."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from se_lab import store
from se_lab.data import DataError
from se_lab.parallel.collectives import Agreement, gathered, shared
from se_lab.training.checkpoints import write_checkpoint
from se_lab.training.stopping import InterruptedTrialError, Stop
from se_lab.training.task import ClassificationTask, Row

GO_ON, SAVE, STOP = 0, 1, 2
"""What a rank wants after a step; the ranks do what most is wanted."""

Progress = Callable[[Mapping[str, float]], None]
"""Called with the row of each finished epoch, and then may raise StoppedEarlyError; in between, once a second, with the
training steps done and all there are: {"step": …, "steps": …}."""
REPORT_SECONDS = 1.0


class StoppedEarlyError(Exception):
    """Raised by `Progress` to end a trial that its sweep gives up: it is not tested, and its record says stopped."""


class TrialKeeper(Checkpoint):
    """Keeps a trial's folder, on rank 0, and ends the trial on all ranks when one of them was told to.

    Lightning runs a Checkpoint callback after all others, so what it saves at the end of an epoch is complete.
    """

    def __init__(
        self,
        folder: Path,
        claim: store.Claim | None,
        stop: Stop,
        *,
        minutes: float,
        progress: Progress | None = None,
        val_batches: int | None = None,
    ) -> None:
        """Keep a folder; `claim` is rank 0's, `minutes` lie between checkpoints within an epoch.

        `val_batches` limits a validation to its first batches.
        """
        self.folder, self.claim, self.stop, self.progress = folder, claim, stop, progress
        self.minutes, self.val_batches = minutes, val_batches
        self.best_loss = float("inf")
        self.seconds = 0.0  # of the runs before this one
        self.step_ms: list[float] = []
        self._ranks = Agreement()
        self._device = torch.device("cpu")
        self._steps: list[tuple[Any, Any]] = []
        """Beginnings and ends of steps that are not yet in `step_ms`."""
        self._step_began: Any = None
        self._began = self._saved = self._reported = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Validate the epoch whose validation was cut short; from here on a signal waits for a checkpoint."""
        assert isinstance(task, ClassificationTask)
        # Lightning's own: a broadcast a step, and an answer that every GPU waits for
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._saved, self._device = time.perf_counter(), task.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)  # of a trial before this one in the process
        self.stop.at_once = False
        if any(gathered(self.stop.asked)):  # while the others were built
            raise InterruptedTrialError
        if task.open_row is not None:
            self.finish_epoch(trainer, task, saved=True)

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_began = self._now()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, _: Any, batch: Any, number: int) -> None:
        """Stop it; save the trial when that is due, and stop it when that was asked, after whole steps alone."""
        assert isinstance(task, ClassificationTask)
        if (number + 1) % trainer.accumulate_grad_batches:
            return
        self._steps.append((self._step_began, self._now()))
        self._report_steps(trainer)
        due = self.claim is not None and time.perf_counter() - self._saved > 60 * self.minutes
        wanted = self._ranks.ask(STOP if self.stop.asked else SAVE if due else GO_ON)
        if wanted == GO_ON or trainer.is_last_batch:  # the epoch's end is a moment away
            return
        task.check_finite()
        task.gather_sums()
        share_skipped(trainer)
        self._save(trainer, "last.ckpt")
        if wanted == STOP:
            raise InterruptedTrialError

    def _report_steps(self, trainer: L.Trainer) -> None:
        now = time.perf_counter()
        if self.progress is None or self.claim is None or now - self._reported < REPORT_SECONDS:
            return
        if math.isinf(trainer.num_training_batches):  # of a stream
            return
        self._reported = now
        in_an_epoch = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        self.progress({"step": trainer.global_step, "steps": in_an_epoch * (trainer.max_epochs or 1)})

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Finish the epoch, and stop the trial if that was asked."""
        assert isinstance(task, ClassificationTask)
        task.check_finite()
        self._read_clock()
        task.gather_sums()
        share_skipped(trainer)
        task.close_training()
        self.finish_epoch(trainer, task)
        if any(gathered(self.stop.asked)) and trainer.current_epoch + 1 < task.spec.train.epochs:
            raise InterruptedTrialError

    def finish_epoch(self, trainer: L.Trainer, task: ClassificationTask, *, saved: bool = False) -> None:
        """Validate an epoch that is trained, save it, keep its weights if they are the best, and report its row.

        `saved` says that the checkpoint on the disk is that of the trained epoch. A trial that is told to stop during
        the validation saves that before it leaves; resumed, it begins with the validation.
        """

        def stop_if_told() -> None:
            if self._told():
                if not saved:
                    self._save(trainer, "last.ckpt")
                raise InterruptedTrialError

        data = trainer.datamodule  # type: ignore[attr-defined]
        found = task.evaluate("val", stop_if_told, self.val_batches) if data.sizes["val"] else {}
        row = task.close_epoch(found)
        if (loss := row.get("val/loss", float("inf"))) < self.best_loss:
            self.best_loss = loss
            self._save(trainer, "best.ckpt", weights_only=True)
        if not saved:
            self._save(trainer, "last.ckpt")
        error = None
        if self.claim is not None:
            write_history(self.folder, task.history)
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step)
            if self.progress is not None:
                try:
                    self.progress(row)
                except StoppedEarlyError as given_up:
                    error = given_up
        if (error := shared(error)) is not None:
            raise error

    def stop_testing(self) -> None:
        """Leave the test where it is, if the trial was told to stop: its checkpoint is the end of training."""
        if self._told():
            raise InterruptedTrialError

    def _told(self) -> bool:
        """Tell, after a batch of an evaluation, whether a rank was told to stop; all hear of it after the same one."""
        return self._ranks.ask(STOP if self.stop.asked else GO_ON) == STOP

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        return {"best_loss": self.best_loss, "seconds": self.seconds + time.perf_counter() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.best_loss, self.seconds = state_dict["best_loss"], state_dict["seconds"]

    def on_save_checkpoint(self, trainer: L.Trainer, _: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note which images the weights come from."""
        checkpoint["data_digest"] = trainer.datamodule.digest  # type: ignore[attr-defined]

    def on_load_checkpoint(self, trainer: L.Trainer, _: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with other images than the trial began with."""
        began, now = checkpoint.get("data_digest"), trainer.datamodule.digest  # type: ignore[attr-defined]
        if began not in (None, now):
            raise DataError(
                f"the trial began with other images (digest {began}) than are there now ({now}): bring them back, or "
                f"remove {self.folder} to begin anew"
            )

    def timings(self) -> dict[str, float]:
        """Return seconds in all, the median training step in ms, and peak memory."""
        self._read_clock()
        timings = {"seconds": self.seconds + time.perf_counter() - self._began}
        if self.step_ms:
            timings["step_ms"] = statistics.median(self.step_ms)
        if self._device.type == "cuda":
            timings["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        return timings

    def _now(self) -> Any:
        """Return the time; of a GPU, which does what it is asked for later, an event among what it is asked for."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read_clock(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.step_ms += [began.elapsed_time(ended) for began, ended in self._steps]
        else:
            self.step_ms += [1000 * (ended - began) for began, ended in self._steps]
        self._steps.clear()

    def _save(self, trainer: L.Trainer, name: str, *, weights_only: bool = False) -> None:
        """Save on rank 0 alone, which needs no other rank for it, and none waits."""
        if self.claim is None:
            return
        self.claim.check()
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
        write_checkpoint(self.folder / name, checkpoint)
        if name == "last.ckpt":
            self._saved = time.perf_counter()


def share_skipped(trainer: L.Trainer) -> None:
    """Let every rank know which images the others have left out."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    data.skipped = list(dict.fromkeys(itertools.chain.from_iterable(gathered(data.skipped))))


def write_history(folder: Path, rows: list[Row]) -> None:
    """Write metrics.csv whole, a row an epoch: a resumed trial leaves no row twice and none out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    store.write_whole(folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))
