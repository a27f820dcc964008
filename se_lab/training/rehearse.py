"""A trial's rehearsal: everything built, two steps, a checkpoint, and what the whole will take."""

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

from se_lab.data import ImageData
from se_lab.parallel.collectives import Place, find_place, joined, shared
from se_lab.spec import ExecSpec, RunSpec
from se_lab.spec.flags import import_plugins
from se_lab.training.keeper import TrialKeeper
from se_lab.training.launch import launch
from se_lab.training.preflight import check_before, check_built, check_norms, device_of
from se_lab.training.process import prepare
from se_lab.training.run import claimed, create_trainer, fuse_where_it_pays, leave_if_told, open_data
from se_lab.training.stopping import Stop, heard
from se_lab.training.task import ClassificationTask
from se_lab.units.costs import profile
from se_lab.units.model import create_model

PREDICTION_BYTES = 64
"""About what predictions.npz takes an image."""


@dataclass(frozen=True)
class Rehearsal:
    """What a trial takes, from two steps of it."""

    trial_id: str
    steps: int
    """Training steps of the whole run."""
    step_ms: float
    images_per_s: float
    """In training."""
    seconds: float
    """About what the whole run takes."""
    host_bytes: int
    """Peak memory of a process."""
    device_bytes: int
    """Peak memory of a GPU; 0 without."""
    checkpoint_bytes: int
    disk_bytes: int
    """What the trial's folder grows to: two checkpoints, the best weights, predictions."""
    free_bytes: int
    """What is free where the store is."""

    def text(self) -> str:
        """Return it in lines for a terminal."""
        minutes, gib = self.seconds / 60, 2**30
        took = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        lines = [
            f"trial {self.trial_id}: built, trained 2 steps, evaluated, saved and loaded again",
            f"memory         {self.host_bytes / gib:.2f} GiB a process"
            + (f", {self.device_bytes / gib:.2f} GiB a GPU" if self.device_bytes else ""),
            f"speed          {self.images_per_s:,.0f} images/s, {self.step_ms:.1f} ms a step",
            f"the whole run  {self.steps:,} steps, about {took}",
            f"disk           {self.disk_bytes / 2**20:,.0f} MiB, of {self.free_bytes / gib:,.1f} GiB free"
            + (": NOT ENOUGH" if self.disk_bytes > self.free_bytes else ""),
        ]
        return "\n".join(lines)


def rehearse(spec: RunSpec, execution: ExecSpec) -> Rehearsal:
    """Build a trial, take two training steps and an evaluation batch, save it, load it, and tell what it will take.

    The store is left as it is. A trial of several devices is rehearsed on as many.

    Raises:
        SpecError, DataError: as `run` does.
        Exception: whatever would make the trial fail.
    """
    import_plugins(execution.plugins)
    check_before(spec, execution)
    if (place := find_place(spec.train)) is None:
        rehearsal: Rehearsal = launch("rehearse", spec, execution)
        return rehearsal
    prepare(execution.threads)
    with (
        heard(Stop(at_once=place.ranks == 1)) as stop,
        joined(place, device_of(execution)),
        tempfile.TemporaryDirectory() as name,
    ):
        data = open_data(spec, execution, place)
        check_built(spec, data)
        leave_if_told(stop)
        return _rehearse_here(spec, execution, place, Path(shared(name)), data, stop)


def _rehearse_here(
    spec: RunSpec, execution: ExecSpec, place: Place, folder: Path, data: ImageData, stop: Stop
) -> Rehearsal:
    shape = (data.in_chans, data.image_size, data.image_size)
    macs = profile(create_model(spec.model, len(data.classes), data.in_chans), shape).macs
    clock = _Clock()

    def fit(checkpoint: Path | None) -> ClassificationTask:
        task = ClassificationTask(spec, len(data.classes), data.in_chans)
        check_norms(task.model, spec, shape)
        fuse_where_it_pays(task, execution, data, macs)
        with claimed(folder, place) as claim:
            keeper = TrialKeeper(folder, claim, stop, minutes=execution.checkpoint_minutes, val_batches=1)
            callbacks = [clock, keeper] if checkpoint is None else [keeper]
            limits: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 2 * spec.train.accumulate}
            trainer = create_trainer(spec, execution, place, folder, callbacks=callbacks, logger=False, **limits)
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return task

    task = fit(None)
    steps = len(data.train_dataloader()) // spec.train.accumulate * spec.train.epochs
    eval_s = _time_evaluation(task)
    saved = {key: value.cpu() for key, value in task.state_dict().items()}
    size = shared((folder / "last.ckpt").stat().st_size if place.rank == 0 else 0)
    best = shared((folder / "best.ckpt").stat().st_size if place.rank == 0 and data.sizes["val"] else 0)
    again = fit(folder / "last.ckpt")
    if any(not torch.equal(value.cpu(), saved[key]) for key, value in again.state_dict().items()):
        raise RuntimeError("the checkpoint that was written gives other weights back")
    batch = spec.data.batch_size
    evaluations = (data.sizes["val"] * spec.train.epochs + data.sizes["test"]) / batch
    here = Path(execution.store).absolute()
    existing = next(path for path in (here, *here.parents) if path.exists())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Rehearsal(
        trial_id=spec.trial_id,
        steps=steps,
        step_ms=1000 * clock.step_s,
        images_per_s=batch / clock.step_s,
        seconds=steps * clock.step_s + evaluations * eval_s,
        host_bytes=peak if sys.platform == "darwin" else 1024 * peak,
        device_bytes=torch.cuda.max_memory_reserved() if device_of(execution) == "cuda" else 0,
        checkpoint_bytes=size,
        disk_bytes=2 * size + best + PREDICTION_BYTES * data.sizes["test"],
        free_bytes=shutil.disk_usage(existing).free,
    )


def _time_evaluation(task: ClassificationTask) -> float:
    """Return the seconds of an evaluation batch, the better of two: the first may still be warming up."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        task.evaluate("test", most=1)
        taken.append(time.perf_counter() - start)
    return min(taken)


class _Clock(L.Callback):
    """Times the last step from the end of the one before, its data included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @property
    def step_s(self) -> float:
        return self.ends[-1] - self.ends[-2]

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Begin here, for an epoch of one step."""
        self.ends = [time.perf_counter()]

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *rest: Any) -> None:
        """Note the time, when the GPU is done too."""
        if task.device.type == "cuda":
            torch.cuda.synchronize()
        if (rest[-1] + 1) % trainer.accumulate_grad_batches == 0:
            self.ends.append(time.perf_counter())
