"""Hyperband as in W&B: stop a trial that is not among the best 1/eta at a given epoch.

Tested against W&B's engine, the package `sweeps` 0.3.0. An iteration is an epoch.
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
"""Metrics allowed for searches and early stopping; metrics of test images are not."""


@dataclass(frozen=True)
class Metric:
    """The metric of a search or of early stopping."""

    name: str
    maximize: bool = False
    target: float | None = None
    """Value at which a search ends."""
    impute: str = "worst"
    """Value of a failed trial: worst (of all trials), or best or latest (of its own epochs)."""

    def history(self, folder: Path) -> list[float]:
        """Return the finite values in a trial's metrics.csv, negated if larger is better."""
        try:
            with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                values = [float(row[self.name]) for row in csv.DictReader(file) if row.get(self.name)]
        except FileNotFoundError:
            return []
        return [-value if self.maximize else value for value in values if math.isfinite(value)]


@dataclass(frozen=True)
class Hyperband:
    """The early-stopping rule of a sweep."""

    metric: Metric
    bands: tuple[int, ...]
    """Epochs, counted from 1, after which trials are compared."""
    eta: float
    strict: bool
    """Compare the trial's value at the band, not its best value so far."""

    def stops(self, own: Sequence[float], histories: Iterable[Sequence[float]]) -> bool:
        """Return whether to stop a trial, given its history and those of all trials."""
        bands = [band for band in self.bands if band <= len(own)]
        if not bands:
            return False
        band = bands[-1]
        values = sorted(history[band - 1] for history in histories if len(history) >= band)
        threshold = values[int(len(values) * (1 / self.eta))]
        return (own[band - 1] if self.strict else min(own)) > threshold


def hyperband_of(spec: Mapping[str, Any], metric: Metric) -> Hyperband:
    """Return the early-stopping rule of a valid spec, with the defaults of W&B's engine."""
    options = spec["early_terminate"]
    eta = options.get("eta", 3)
    return Hyperband(metric, tuple(_bands(options, eta)), eta, options.get("strict", True))


def _bands(options: Mapping[str, Any], eta: float) -> list[int]:
    if "max_iter" in options:
        shares = itertools.accumulate(range(options["s"]), lambda band, _: band / eta, initial=options["max_iter"])
        return sorted(int(share) for share in itertools.islice(shares, 1, None) if share >= 1)
    bands = itertools.accumulate(range(99), lambda band, _: band * eta, initial=options["min_iter"])
    return [int(band) for band in bands]


def early_stop_problems(options: Any) -> Iterator[Finding]:
    """Yield the errors in a spec's early_terminate."""
    where = "early_terminate"
    if not isinstance(options, Mapping) or options.get("type") != "hyperband":
        yield Finding(where, f"got {options!r}", "it must be {type: hyperband, min_iter: 3}, W&B's only kind")
        return
    keys = ("type", "min_iter", "max_iter", "eta", "s", "strict")
    for key in options:
        if key not in keys:
            yield Finding(f"{where}.{key}", "unknown key", f"allowed are {', '.join(keys)}")
    if not ({"min_iter", "max_iter"} & {*options}) or ("max_iter" in options and "s" not in options):
        yield Finding(where, f"got {dict(options)!r}", "it needs min_iter, or max_iter and s")
        return
    counts = {key: options[key] for key in ("min_iter", "max_iter", "s") if key in options}
    wrong_keys = [key for key, value in counts.items() if type(value) is not int or value < 1]
    for key in wrong_keys:
        yield Finding(f"{where}.{key}", f"got {options[key]!r}", "it must be a positive integer")
    eta = options.get("eta", 3)
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 1 < eta < math.inf:
        yield Finding(f"{where}.eta", f"got {eta!r}", "it must be a number above 1")
        return
    if not isinstance(options.get("strict", True), bool):
        yield Finding(f"{where}.strict", f"got {options['strict']!r}", "it must be true or false")
    if not wrong_keys and not _bands(options, eta):
        todo = "choose a larger max_iter or a smaller eta"
        yield Finding(where, f"there are no bands: max_iter {options['max_iter']} / eta is below 1", todo)
