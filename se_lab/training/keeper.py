"""The callback that saves a trial's state, measures times, and stops the trial."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from se_lab import store
from se_lab.data import DataError
from se_lab.parallel.collectives import Agreement, broadcast_object, gather_objects
from se_lab.training.checkpoints import restart_validation
from se_lab.training.folder import TrialFolder
from se_lab.training.stopping import InterruptedTrialError, Stop

Row = dict[str, float]
"""The values of an epoch: epoch, lr, train/…, val/…, images_per_s."""
KEYS = ("train/", "val/")

CONTINUE, SAVE, STOP = 0, 1, 2
"""Actions that a rank requests after a step; all ranks follow the largest one."""

Progress = Callable[[Mapping[str, float]], None]
"""Called with the row of each finished epoch, when it may raise StoppedEarlyError, and once a second with the current
training step and the total: {"step": …, "steps": …}."""
REPORT_SECONDS = 1.0
WATCHED_STEPS = 50
"""Steps between checks of the losses, for checks that make a GPU or other ranks wait."""


class StoppedEarlyError(Exception):
    """Raised by `Progress` to stop a trial early: it is not tested, and its status is stopped."""


class TrialKeeper(Checkpoint):
    """Saves a trial's state on rank 0, and stops all ranks when one is asked to stop.

    Lightning calls Checkpoint callbacks after all others, so that the state at the end of an epoch is complete.
    """

    def __init__(
        self,
        folder: TrialFolder,
        stop: Stop,
        *,
        minutes: float,
        progress: Progress | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        """Save to a folder, with checkpoints each `minutes` within an epoch.

        `progress` is called with each epoch's row; `provenance` is that of this run.
        """
        self.folder, self.stop, self.progress, self.minutes = folder, stop, progress, minutes
        self.segments: list[dict[str, Any]] = [{"epoch": 0, "step": 0, "provenance": dict(provenance or {})}]
        """Parts of the training, each with its first epoch and step, and its provenance."""
        self._resumed_at: dict[str, Any] = {}
        self.rows: list[Row] = []
        """The rows of metrics.csv, one per epoch."""
        self.best_loss = float("inf")
        self.seconds = 0.0  # of previous runs
        self.step_ms: list[float] = []
        self._ranks = Agreement()
        self._device = torch.device("cpu")
        self._steps: list[tuple[Any, Any]] = []
        """Start and end of each step that is not in `step_ms` yet."""
        self._step_start: Any = None
        self._rate = 0.0  # of the last step
        self._losses: list[tuple[int, float, Tensor]] = []
        """Batch number, learning rate and loss of each step since the last check."""
        self._images, self._images_per_s = 0, 0.0
        self._predictions: list[list[np.ndarray[Any, Any]]] = []
        self._start = self._last_save = self._last_report = self._epoch_start = time.perf_counter()

    def on_fit_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Reset the statistics of GPU memory."""
        self._device = trainer.strategy.root_device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)  # they may include a previous trial of this process

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """From now on, save a checkpoint before stopping on a signal."""
        self._last_save = self._epoch_start = time.perf_counter()
        self.stop.at_once = False
        if any(gather_objects(self.stop.asked)):  # asked during the start of another rank
            raise InterruptedTrialError

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Start the timer of the epoch."""
        self._images, self._epoch_start = 0, time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the timer of a step, and record its learning rate."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_start = self._now()
            self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        """Check the loss; after each step, stop the timer, and save or stop the trial if requested."""
        self._images += len(batch[0])
        self._watch(trainer, outputs["loss"], number)
        if (number + 1) % trainer.accumulate_grad_batches:
            return
        self._steps.append((self._step_start, self._now()))
        self._report_steps(trainer)
        due = self.folder.is_held and time.perf_counter() - self._last_save > 60 * self.minutes
        action = self._ranks.ask(STOP if self.stop.asked else SAVE if due else CONTINUE)
        if action == CONTINUE or trainer.is_last_batch:  # the end of the epoch saves and stops as well
            return
        self._check_finite(trainer, task)
        self._save(trainer)
        if action == STOP:
            raise InterruptedTrialError

    def _watch(self, trainer: L.Trainer, loss: Tensor, number: int) -> None:
        """Raise FloatingPointError within WATCHED_STEPS after a loss that is not finite."""
        self._losses.append((number // trainer.accumulate_grad_batches, self._rate, loss))
        if (loss.is_cpu and trainer.world_size == 1) or number % WATCHED_STEPS == WATCHED_STEPS - 1:
            self._check_losses(trainer)

    def _check_losses(self, trainer: L.Trainer) -> None:
        batches, self._losses = self._losses, []
        flags = torch.isfinite(torch.stack([loss for *_, loss in batches])).tolist() if batches else []
        bad_steps = [(batch, rate) for (batch, rate, _), is_finite in zip(batches, flags, strict=True) if not is_finite]
        if candidates := list(itertools.chain.from_iterable(gather_objects(bad_steps[:1]))):
            batch, rate = min(candidates)
            raise FloatingPointError(
                f"the training loss is nan or infinite in batch {batch} of epoch {trainer.current_epoch}, lr {rate:g}"
            )

    def _check_finite(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Raise FloatingPointError on all ranks if a weight or a rank's loss is not finite.

        It is called before each checkpoint, so that checkpoints are always finite.
        """
        self._check_losses(trainer)
        if not torch.stack([torch.isfinite(weight).all() for weight in task.parameters()]).all():
            batch = trainer.fit_loop.batch_idx // trainer.accumulate_grad_batches
            raise FloatingPointError(
                f"weights are nan or infinite after batch {batch} of epoch {trainer.current_epoch}, lr {self._rate:g}"
            )

    def _report_steps(self, trainer: L.Trainer) -> None:
        now = time.perf_counter()
        if self.progress is None or not self.folder.is_held or now - self._last_report < REPORT_SECONDS:
            return
        self._last_report = now
        epoch_steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        self.progress({"step": trainer.global_step, "steps": epoch_steps * (trainer.max_epochs or 1)})

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Stop the timer of the epoch's training."""
        self._end_training(trainer, task)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save and stop the trial if requested; a resumed trial restarts this validation."""
        if self._must_stop():
            self._save(trainer)
            raise InterruptedTrialError

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Save the state and the best weights, write metrics.csv, and report the epoch's row."""
        if self._images:  # there was no validation
            self._end_training(trainer, task)
        self._read_clock()
        task.log_dict({"lr": self._rate, "images_per_s": self._images_per_s}, rank_zero_only=True)
        scores = {key: float(value) for key, value in sorted(trainer.callback_metrics.items()) if key.startswith(KEYS)}
        row = {"epoch": trainer.current_epoch, "lr": self._rate, **scores, "images_per_s": self._images_per_s}
        self.rows = [old_row for old_row in self.rows if old_row["epoch"] < row["epoch"]] + [row]
        if (loss := row.get("val/loss", float("inf"))) < self.best_loss:
            self.best_loss = loss
            trainer.save_checkpoint(self.folder.path / "best.ckpt", weights_only=True)
        self._save(trainer)
        error = None
        if self.folder.is_held:
            self._write_rows()
            if self.progress is not None:
                try:
                    self.progress(row)
                except StoppedEarlyError as stopped:
                    error = stopped
        if (error := broadcast_object(error)) is not None:
            raise error
        if any(gather_objects(self.stop.asked)) and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            raise InterruptedTrialError

    def _end_training(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._check_finite(trainer, task)
        if self._images:  # 0 if the trial was resumed in this validation
            seconds = max(time.perf_counter() - self._epoch_start, 1e-9)
            self._images_per_s = round(self._images * trainer.world_size / seconds, 1)
            self._images = 0

    def _write_rows(self) -> None:
        """Rewrite metrics.csv with all rows, so that a resumed trial has one row per epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[-1]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        self.folder.write("metrics.csv", lambda file: file.write(text.getvalue().encode()))

    def on_test_batch_end(self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Collect the predictions, and stop the trial if requested; the training is already saved."""
        _, labels, numbers = batch
        self._predictions.append([part.cpu().numpy() for part in (numbers, labels, *outputs.values())])
        if self._must_stop():
            raise InterruptedTrialError

    def predictions(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return image, label, top5 and probability for the test images of all ranks."""
        parts = itertools.chain.from_iterable(gather_objects(self._predictions))
        arrays = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        order = np.argsort(arrays[0])
        names = ("image", "label", "top5", "probability")
        return {name: array[order] for name, array in zip(names, arrays, strict=True)}

    def _must_stop(self) -> bool:
        """Return whether a rank was asked to stop; the result is the same on all ranks."""
        return self._ranks.ask(STOP if self.stop.asked else CONTINUE) == STOP

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "rows": self.rows,
            "rate": self._rate,
            "images_per_s": self._images_per_s,
            "best_loss": self.best_loss,
            "segments": self.segments,
            "seconds": self.seconds + time.perf_counter() - self._start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; print and record a change of provenance."""
        self.rows, self._rate, self._images_per_s = (state_dict[key] for key in ("rows", "rate", "images_per_s"))
        self.best_loss, self.seconds = state_dict["best_loss"], state_dict["seconds"]
        segments, provenance = state_dict["segments"], self.segments[0]["provenance"]
        differences = store.differences(segments[-1]["provenance"], provenance)
        self.segments = segments + ([self._resumed_at | {"provenance": provenance}] if differences else [])
        for difference in differences if self.folder.is_held else ():
            print(f"trial {self.folder.trial_id} resumes, but {difference}: recorded as a segment", file=sys.stderr)

    def on_save_checkpoint(self, trainer: L.Trainer, _: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the digest of the images."""
        checkpoint["data_digest"] = trainer.datamodule.digest  # type: ignore[attr-defined]
        if trainer.validating:
            restart_validation(checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, _: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise DataError if the images have changed; record where the trial resumes."""
        self._resumed_at = {"epoch": checkpoint["epoch"], "step": checkpoint["global_step"]}
        old, digest = checkpoint.get("data_digest"), trainer.datamodule.digest  # type: ignore[attr-defined]
        if old not in (None, digest):
            raise DataError(
                f"the images have changed since the trial was started (digest {old}, now {digest}); restore them, or "
                f"delete {self.folder.path} to restart the trial"
            )

    def timings(self) -> dict[str, float]:
        """Return the total time in seconds, the median training step in ms, and the peak memory."""
        self._read_clock()
        timings = {"seconds": self.seconds + time.perf_counter() - self._start}
        if self.step_ms:
            timings["step_ms"] = statistics.median(self.step_ms)
        if self._device.type == "cuda":
            timings["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        return timings

    def _now(self) -> Any:
        """Return the time, or, on a GPU, a recorded event."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read_clock(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.step_ms += [start.elapsed_time(end) for start, end in self._steps]
        else:
            self.step_ms += [1000 * (end - start) for start, end in self._steps]
        self._steps.clear()

    def _save(self, trainer: L.Trainer) -> None:
        share_skipped(trainer)
        trainer.save_checkpoint(self.folder.path / "last.ckpt", weights_only=False)
        self._last_save = time.perf_counter()


def share_skipped(trainer: L.Trainer) -> None:
    """Merge the skipped images of all ranks on every rank."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    data.skipped = list(dict.fromkeys(itertools.chain.from_iterable(gather_objects(data.skipped))))
