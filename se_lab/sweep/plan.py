"""What a sweep will cost, before it is run."""

from __future__ import annotations

import dataclasses
import io
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from se_lab.complexity import Complexity, Trace, count_variant, trace
from se_lab.data import data_shape
from se_lab.model import create_model
from se_lab.spec import ExecSpec, RunSpec, SESpec, dotted
from se_lab.store import read_record, trial_folder
from se_lab.sweep.grammar import Sweep
from se_lab.sweep.view import label

TIMED_IMAGES = 16


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, what its net costs, and how long it should take."""

    trial: RunSpec
    params: int
    macs: int
    seconds: float
    """Estimated."""
    done: bool


@dataclass(frozen=True)
class Plan:
    """A sweep's trials and their cost."""

    sweep: Sweep
    trials: list[PlannedTrial]
    workers: int

    @property
    def seconds(self) -> float:
        """Estimated time of what is left."""
        return sum(planned.seconds for planned in self.trials if not planned.done) / self.workers

    def listing(self) -> list[dict[str, Any]]:
        """Return a dictionary a trial: trial_id, spec (flat), params, macs."""
        return [
            {"trial_id": p.trial.trial_id, "spec": p.trial.flat(), "params": p.params, "macs": p.macs}
            for p in self.trials
        ]

    def text(self, remarks: list[str]) -> str:
        """Return a table of the trials, and a line that sums them up."""
        keys = self._varied()
        table = Table(title=f"{self.sweep.name}: {self.sweep.description}".rstrip(": "), title_justify="left")
        for name in ("trial", "net", *keys):
            table.add_column(name)
        for name in ("parameters", "MACs", "about", ""):
            table.add_column(name, justify="right")
        for p in self.trials:
            flat = p.trial.flat()
            values = [label(p.trial), *(str(flat[key]) for key in keys)]
            done = "finished" if p.done else ""
            table.add_row(p.trial.trial_id, *values, f"{p.params:,}", f"{p.macs:,}", duration(p.seconds), done)
        left = sum(not p.done for p in self.trials)
        lines = [
            f"{len(self.trials)} trials, {left} to run: about {duration(self.seconds)} with {self.workers} worker(s)"
        ]
        if self.sweep.repeated:
            lines.append(f"{self.sweep.repeated} points of the spec are trials it already has, and run once")
        console = Console(file=io.StringIO(), width=140)
        console.print(table)
        return "\n".join([console.file.getvalue().rstrip(), *lines, *remarks])  # type: ignore[attr-defined]

    def _varied(self) -> list[str]:
        """Return the keys that vary and that a trial's label does not say."""
        flats = [p.trial.flat() for p in self.trials]
        varied = [key for key in flats[0] if len({str(flat[key]) for flat in flats}) > 1]
        return [key for key in varied if key not in ("model.backbone", "seed") and not key.startswith("model.se.")]


def plan_sweep(sweep: Sweep, execution: ExecSpec, workers: int) -> Plan:
    """Count every distinct net of a sweep, and estimate its time from a step timed here, now.

    A step is timed once a backbone and image size, on a few images, and scaled by MACs, images and epochs.
    """
    torch.set_num_threads(execution.threads)
    counted: dict[str, Complexity] = {}
    traces: dict[str, Trace] = {}
    per_mac: dict[str, float] = {}
    planned: list[PlannedTrial] = []
    for trial in sweep.trials:
        classes, shape, images = data_shape(trial.data, root=execution.data_root)
        net = f"{dotted(trial.model)} {classes} {shape}"
        alike = f"{trial.model.backbone} {shape}"
        if net not in counted:
            plain = f"{dotted(dataclasses.replace(trial.model, se=SESpec()))} {classes} {shape}"
            if plain not in traces:
                traces[plain] = trace(trial.model, classes, shape)
            counted[net] = count_variant(trial.model, traces[plain], classes, shape)
        if alike not in per_mac:
            model = create_model(dataclasses.replace(trial.model, pretrained=False, init="timm"), classes, shape[0])
            per_mac[alike] = _time_step(model, shape, classes) / (TIMED_IMAGES * counted[net].macs)
        costs = counted[net]
        seconds = per_mac[f"{trial.model.backbone} {shape}"] * costs.macs * images * trial.train.epochs
        record = read_record(trial_folder(execution.store, trial.trial_id))
        done = record is not None and record.status == "finished"
        planned.append(PlannedTrial(trial, costs.params, costs.macs, seconds, done))
    return Plan(sweep, planned, workers)


def _time_step(model: torch.nn.Module, shape: tuple[int, int, int], classes: int) -> float:
    """Return the seconds of a forward and a backward pass of TIMED_IMAGES images, the better of two."""
    images = torch.randn(TIMED_IMAGES, *shape)
    labels = torch.randint(classes, (TIMED_IMAGES,))
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        torch.autograd.backward(F.cross_entropy(model.train()(images), labels))
        taken.append(time.perf_counter() - start)
    return min(taken)


def duration(seconds: float) -> str:
    """Return 90 seconds as '1 min 30 s', 4,000 as '1 h 7 min', and more than two days as days."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {round(seconds % 60)} s"
    if seconds > 2 * 86400:
        return f"{seconds / 86400:,.0f} days"
    return f"{int(seconds // 3600)} h {round(seconds % 3600 / 60)} min"
