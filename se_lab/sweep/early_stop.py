"""Hyperband as in W&B: a trial is stopped if it is not among the best 1/eta of the trials that got as far.

Held against W&B's own engine, the package `sweeps` 0.3.0. An iteration is an epoch.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from se_lab.sweep.axes import Finding

VALIDATION_METRICS = ("val/loss", "val/top1_error", "val/top5_error")
"""Metrics that a search or an early stop may use; metrics of test images are not allowed."""


@dataclass(frozen=True)
class Metric:
    """The metric that a search optimises and an early stop compares."""

    name: str
    maximize: bool = False
    target: float | None = None
    """A search proposes no further trial once one has reached this value."""
    impute: str = "worst"
    """The value of a failed trial: the worst of all, or the best or the latest of its own epochs."""

    def history(self, folder: Path) -> list[float]:
        """Return the metric of each epoch from a trial's metrics.csv, without nan and inf; smaller is better."""
        try:
            with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                values = [float(row[self.name]) for row in csv.DictReader(file) if row.get(self.name)]
        except FileNotFoundError:
            return []
        return [-value if self.maximize else value for value in values if math.isfinite(value)]


@dataclass(frozen=True)
class Hyperband:
    """When to stop a trial early."""

    metric: Metric
    bands: tuple[int, ...]
    """The epochs, counted from 1, after which trials are compared."""
    eta: float
    strict: bool
    """Compare a trial by its value at the band, not by its best value so far."""

    def stops(self, own: Sequence[float], everyone: Iterable[Sequence[float]]) -> bool:
        """Return whether to stop a trial, from its history and those of all trials, itself included."""
        bands = [band for band in self.bands if band <= len(own)]
        if not bands:
            return False
        band = bands[-1]
        values = sorted(history[band - 1] for history in everyone if len(history) >= band)
        threshold = values[int(len(values) * (1 / self.eta))]
        return (own[band - 1] if self.strict else min(own)) > threshold


def hyperband_of(spec: Mapping[str, Any], metric: Metric) -> Hyperband:
    """Return the early stop of a spec without problems; eta defaults to 3 and strict to true, as in W&B's engine."""
    options = spec["early_terminate"]
    eta = options.get("eta", 3)
    return Hyperband(metric, tuple(_bands(options, eta)), eta, options.get("strict", True))


def _bands(given: Mapping[str, Any], eta: float) -> list[int]:
    if "max_iter" in given:
        shares = itertools.accumulate(range(given["s"]), lambda band, _: band / eta, initial=given["max_iter"])
        return sorted(int(share) for share in itertools.islice(shares, 1, None) if share >= 1)
    bands = itertools.accumulate(range(99), lambda band, _: band * eta, initial=given["min_iter"])
    return [int(band) for band in bands]


def early_stop_problems(given: Any) -> Iterator[Finding]:
    """Yield the errors in a spec's early_terminate."""
    where = "early_terminate"
    if not isinstance(given, Mapping) or given.get("type") != "hyperband":
        yield Finding(where, f"it is {given!r}", "it must be {type: hyperband, min_iter: 3}, W&B's only kind")
        return
    keys = ("type", "min_iter", "max_iter", "eta", "s", "strict")
    for key in given:
        if key not in keys:
            yield Finding(f"{where}.{key}", "W&B knows no such key", f"allowed are {', '.join(keys)}")
    if not ({"min_iter", "max_iter"} & {*given}) or ("max_iter" in given and "s" not in given):
        yield Finding(where, f"it is {dict(given)!r}", "it needs min_iter, or max_iter and s")
        return
    counts = {key: given[key] for key in ("min_iter", "max_iter", "s") if key in given}
    wrong_keys = [key for key, value in counts.items() if type(value) is not int or value < 1]
    for key in wrong_keys:
        yield Finding(f"{where}.{key}", f"it is {given[key]!r}", "it must be an integer from 1 on")
    eta = given.get("eta", 3)
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 1 < eta < math.inf:
        yield Finding(f"{where}.eta", f"it is {eta!r}", "it must be a number above 1")
        return
    if not isinstance(given.get("strict", True), bool):
        yield Finding(f"{where}.strict", f"it is {given['strict']!r}", "it must be true or false")
    if not wrong_keys and not _bands(given, eta):
        todo = "choose a larger max_iter or a smaller eta"
        yield Finding(where, f"no epoch is left to compare at: max_iter {given['max_iter']} / eta is below 1", todo)
