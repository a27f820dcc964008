"""Estimate the cost of a sweep before it runs."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from se_lab.data import DataShape, data_shapes
from se_lab.spec import ExecSpec, RunSpec, SESpec, dotted, label
from se_lab.spec.text import counted
from se_lab.store import read_record, trial_folder
from se_lab.sweep.grammar import Sweep
from se_lab.sweep.view import duration
from se_lab.training.process import prepare
from se_lab.training.rehearse import PREDICTION_BYTES
from se_lab.units.costs import Complexity, Trace, trace
from se_lab.units.model import create_model

TIMED_IMAGES = 16


@dataclass(frozen=True)
class PlannedTrial:
    """The cost of a trial."""

    trial: RunSpec
    params: int
    macs: int
    seconds: float
    """Estimated time of the trial."""
    bytes: int
    """Estimated size of the trial's folder."""
    is_finished: bool


@dataclass(frozen=True)
class Plan:
    """The cost of a sweep."""

    sweep: Sweep
    store: str
    trials: list[PlannedTrial]
    workers: int
    future_trial: PlannedTrial | None = None
    """An example of the trials that a search has yet to propose."""

    @property
    def remaining(self) -> list[PlannedTrial]:
        """The trials still to run, including those that a search has yet to propose."""
        search = self.sweep.search
        count = search.cap - len(self.trials) if search is not None else 0
        planned = [planned for planned in self.trials if not planned.is_finished]
        return planned + [self.future_trial] * count if self.future_trial is not None else planned

    @property
    def seconds(self) -> float:
        """Estimated total time of the trials still to run."""
        return sum(planned.seconds for planned in self.remaining) / self.workers

    def listing(self) -> list[dict[str, Any]]:
        """Return a dictionary for each trial: trial_id, spec (flat), params, macs."""
        return [
            {"trial_id": p.trial.trial_id, "spec": p.trial.flat(), "params": p.params, "macs": p.macs}
            for p in self.trials
        ]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the cells of a table with one row per trial."""
        keys = self._varied()
        headings = ["trial", "net", *(key.rpartition(".")[2] for key in keys), "params", "MACs", "time", "finished"]
        cells = []
        for p in self.trials:
            flat = p.trial.flat()
            values = [label(p.trial), *(str(flat[key]) for key in keys), f"{p.params:,}", f"{p.macs:,}"]
            cells.append([p.trial.trial_id, *values, duration(p.seconds), "yes" if p.is_finished else "no"])
        return headings, cells

    def summary(self) -> str:
        """Return a line with the number of trials to run, their time, and their disk space."""
        total = self.sweep.search.cap if self.sweep.search is not None else len(self.trials)
        size, room = sum(p.bytes for p in self.remaining), free_bytes(self.store)
        return (
            f"{total} trials, {len(self.remaining)} to run: about {duration(self.seconds)} with "
            f"{counted(self.workers, 'worker')}, {size / 2**30:,.2f} GiB of disk space "
            f"({room / 2**30:,.1f} GiB free in {self.store}"
            + (": NOT ENOUGH)" if size > room else ")")
            + (f"; {self.sweep.repeats} points of the spec repeat a trial" if self.sweep.repeats else "")
        )

    def _varied(self) -> list[str]:
        """Return the varied keys that are not part of a trial's label."""
        flats = [p.trial.flat() for p in self.trials]
        keys = [key for key in (flats[0] if flats else ()) if len({str(flat[key]) for flat in flats}) > 1]
        return [key for key in keys if key not in ("model.backbone", "seed") and not key.startswith("model.se.")]


def plan_sweep(sweep: Sweep, execution: ExecSpec, workers: int) -> Plan:
    """Count the cost of each distinct net of a sweep, and estimate the time of its trials.

    One step per backbone and image size is timed on a few images, and scaled by MACs, images and epochs.
    """
    prepare(execution.threads)
    complexities: dict[str, Complexity] = {}
    traces: dict[str, Trace] = {}
    per_mac: dict[str, float] = {}
    trials: list[PlannedTrial] = []
    samples = sweep.search.corners()[:1] if sweep.search is not None else []
    shapes = data_shapes((trial.data for trial in [*sweep.trials, *samples]), root=execution.data_root)
    for trial in [*sweep.trials, *samples]:
        data = shapes[trial.data]
        classes, shape, images = data.classes, data.shape, data.sizes["train"]
        net = f"{dotted(trial.model)} {classes} {shape}"
        backbone_key = f"{trial.model.backbone} {shape}"
        if net not in complexities:
            plain_net = f"{dotted(dataclasses.replace(trial.model, se=SESpec()))} {classes} {shape}"
            if plain_net not in traces:
                traces[plain_net] = trace(trial.model, classes, shape)
            complexities[net] = traces[plain_net].variant(trial.model.se)
        if backbone_key not in per_mac:
            model = create_model(dataclasses.replace(trial.model, pretrained=False, init="timm"), classes, shape[0])
            per_mac[backbone_key] = _time_step(model, shape, classes) / (TIMED_IMAGES * complexities[net].macs)
        costs = complexities[net]
        seconds = per_mac[f"{trial.model.backbone} {shape}"] * costs.macs * images * trial.train.epochs
        record = read_record(trial_folder(execution.store, trial.trial_id))
        is_finished = record is not None and record.status == "finished"
        size = folder_bytes(trial, costs.params, data)
        trials.append(PlannedTrial(trial, costs.params, costs.macs, seconds, size, is_finished))
    return Plan(sweep, execution.store, trials[: len(sweep.trials)], workers, trials[-1] if samples else None)


def folder_bytes(trial: RunSpec, params: int, data: DataShape) -> int:
    """Estimate the size of a trial's folder: two checkpoints, the best weights, predictions."""
    is_sgd = trial.optim.name in ("sgd", "nesterov", "momentum")
    states = int(trial.optim.momentum > 0) if is_sgd else 2
    weights = 4 * params * (2 if trial.train.ema else 1)
    best = weights if data.sizes["val"] else 0
    return 2 * (weights + 4 * params * states) + best + PREDICTION_BYTES * data.sizes["test"]


def free_bytes(folder: str) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _time_step(model: torch.nn.Module, shape: tuple[int, int, int], classes: int) -> float:
    """Return the seconds of a training step on TIMED_IMAGES images, the best of two."""
    images = torch.randn(TIMED_IMAGES, *shape)
    labels = torch.randint(classes, (TIMED_IMAGES,))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        torch.autograd.backward(F.cross_entropy(model.train()(images), labels))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
