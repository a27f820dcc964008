"""Rehearse a trial: train two steps, save a checkpoint, and estimate the whole run."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from se_lab.parallel.collectives import broadcast_object, find_rank
from se_lab.spec import ExecSpec, RunSpec
from se_lab.spec.flags import import_plugins
from se_lab.spec.text import counted
from se_lab.training.keeper import TrialKeeper
from se_lab.training.launch import launch
from se_lab.training.pieces import create_callbacks
from se_lab.training.preflight import check_before, device_of
from se_lab.training.task import ClassificationTask
from se_lab.training.trainer import create_trainer
from se_lab.training.trial import Trial, open_trial
from se_lab.units.costs import profile
from se_lab.units.model import create_model

PREDICTION_BYTES = 64
"""Approximate size of predictions.npz per image."""


@dataclass(frozen=True)
class Rehearsal:
    """The estimated time, memory and disk space of a trial."""

    trial_id: str
    rehearsed_steps: int
    """The number of training steps in the rehearsal."""
    steps: int
    """The number of training steps in the whole run."""
    step_ms: float
    images_per_s: float
    """The number of training images per second."""
    seconds: float
    """The estimated time of the whole run."""
    host_bytes: int
    """The peak memory of a process."""
    device_bytes: int
    """The peak memory of a GPU, or 0."""
    checkpoint_bytes: int
    disk_bytes: int
    """The final size of the trial's folder: two checkpoints, the best weights, predictions."""
    free_bytes: int
    """The free space on the store's disk."""

    def text(self) -> str:
        """Return the estimates as lines of text."""
        minutes, gib = self.seconds / 60, 2**30
        duration = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        lines = [
            f"trial {self.trial_id}: trained {counted(self.rehearsed_steps, 'step')}, evaluated, saved and resumed",
            f"memory         {self.host_bytes / gib:.2f} GiB per process"
            + (f", {self.device_bytes / gib:.2f} GiB per GPU" if self.device_bytes else ""),
            f"speed          {self.images_per_s:,.0f} images/s, {self.step_ms:.1f} ms per step",
            f"the whole run  {self.steps:,} steps, about {duration}",
            f"disk           {self.disk_bytes / 2**20:,.0f} MiB, of {self.free_bytes / gib:,.1f} GiB free"
            + (": NOT ENOUGH" if self.disk_bytes > self.free_bytes else ""),
        ]
        return "\n".join(lines)


def rehearse(spec: RunSpec, execution: ExecSpec) -> Rehearsal:
    """Train two steps of a trial, evaluate, save and resume; return estimates for the run.

    The store is not changed. A trial on several devices is rehearsed on the same number of devices.

    Raises:
        SpecError, DataError: as `run` does.
        Exception: any error that would make the trial fail.
    """
    import_plugins(execution.plugins)
    check_before(spec, execution)
    if (rank := find_rank(spec.train)) is None:
        rehearsal: Rehearsal = launch("rehearse", spec, execution)
        return rehearsal
    with open_trial(spec, execution, rank) as trial, tempfile.TemporaryDirectory() as name:
        return _rehearse_in(Path(broadcast_object(name), spec.trial_id), trial)  # the parent is marked as a store


def _rehearse_in(folder: Path, trial: Trial) -> Rehearsal:
    spec, execution, data = trial.spec, trial.execution, trial.data
    macs = profile(create_model(spec.model, len(data.classes), data.in_chans), trial.shape).macs
    clock = _Clock()

    def fit(checkpoint: Path | None) -> ClassificationTask:
        task = trial.create_task()
        trial.fuse_if_faster(task, macs)
        with trial.claim_folder(folder) as trial_folder:
            keeper = TrialKeeper(trial_folder, trial.stop, minutes=execution.checkpoint_minutes)
            callbacks = [*create_callbacks(execution), *([clock] if checkpoint is None else []), keeper]
            limits = {"limit_train_batches": 2 * spec.train.accumulate, "limit_val_batches": 1, "limit_test_batches": 2}
            limits |= {name: value for name, value in execution.trainer.items() if name in limits}
            limits["limit_train_batches"] = max(limits["limit_train_batches"], spec.train.accumulate)
            options = {"max_epochs": 1, "logger": False, "callbacks": callbacks, **limits}
            trainer = create_trainer(spec, execution, trial.rank, trial_folder, **options)
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if checkpoint is None:
                trainer.test(task, datamodule=data, verbose=False)
        return task

    task = fit(None)
    steps = len(data.train_dataloader()) // spec.train.accumulate * spec.train.epochs
    saved_state = {key: value.cpu() for key, value in task.state_dict().items()}
    rank_0 = trial.rank.number == 0
    size = broadcast_object((folder / "last.ckpt").stat().st_size if rank_0 else 0)
    best = folder / "best.ckpt"  # missing without validation images, or if their loss is NaN
    best_size = broadcast_object(best.stat().st_size if rank_0 and best.exists() else 0)
    resumed_task = fit(folder / "last.ckpt")
    if any(not torch.equal(value.cpu(), saved_state[key]) for key, value in resumed_task.state_dict().items()):
        raise RuntimeError("the weights in the checkpoint differ from those saved")
    batch = spec.data.batch_size
    evaluations = (data.sizes["val"] * spec.train.epochs + data.sizes["test"]) / batch
    store_path = Path(execution.store).absolute()
    existing_folder = next(path for path in (store_path, *store_path.parents) if path.exists())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Rehearsal(
        trial_id=spec.trial_id,
        rehearsed_steps=len(clock.ends) - 1,
        steps=steps,
        step_ms=1000 * clock.step_s,
        images_per_s=batch / clock.step_s,
        seconds=steps * clock.step_s + evaluations * clock.test_s,
        host_bytes=peak if sys.platform == "darwin" else 1024 * peak,
        device_bytes=torch.cuda.max_memory_reserved() if device_of(execution) == "cuda" else 0,
        checkpoint_bytes=size,
        disk_bytes=2 * size + best_size + PREDICTION_BYTES * data.sizes["test"],
        free_bytes=shutil.disk_usage(existing_folder).free,
    )


class _Clock(L.Callback):
    """Measures the last training step, its data included, and the faster of two test batches."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.test_s, self._test_start = float("inf"), 0.0

    @property
    def step_s(self) -> float:
        return self.ends[-1] - self.ends[-2]

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Start the timer, which an epoch of one step needs."""
        self.ends = [time.perf_counter()]

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *rest: Any) -> None:
        """Record the end of the step, after waiting for the GPU."""
        if task.device.type == "cuda":
            torch.cuda.synchronize()
        if (rest[-1] + 1) % trainer.accumulate_grad_batches == 0:
            self.ends.append(time.perf_counter())

    def on_test_batch_start(self, *_: Any) -> None:
        """Start the timer of a test batch."""
        self._test_start = time.perf_counter()

    def on_test_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        """Record the time of the test batch, after waiting for the GPU."""
        if task.device.type == "cuda":
            torch.cuda.synchronize()
        self.test_s = min(self.test_s, time.perf_counter() - self._test_start)
