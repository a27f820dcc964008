"""Sources of variance of a metric, from trials that differ in one source only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from se_lab.report.columns import (
    SPEC_SECTIONS,
    Column,
    ReportError,
    column,
    full_key,
    number_text,
    value_texts,
)
from se_lab.report.predictions import has_predictions, image_errors
from se_lab.report.render import PrintedColumn, Table

ROUNDING = "floating point"
SOURCES = {
    "data order": "data.order_seed",
    "initial weights": "model.init_seed",
    "split": "data.split_seed",
    ROUNDING: "model.rounding",
}
"""The spec key of each source."""
ALL = "seed (order and weights)"
IMAGES = "test images"


class Component(NamedTuple):
    """The variance of one source, pooled over sets of trials that differ in this source only."""

    variance: float
    df: int
    trials: int

    def limits(self) -> tuple[float, float]:
        """Return the 95 % chi-squared interval of the standard deviation."""
        if not self.df:
            return float("nan"), float("nan")
        high, low = (float(stats.chi2.ppf(level, self.df)) for level in (0.025, 0.975))
        return float(np.sqrt(self.df * self.variance / low)), float(np.sqrt(self.df * self.variance / high))


def variance_table(records: pd.DataFrame, metric: str = "test/top1_error") -> Table:
    """Return a table of the variance of a metric by source.

    Sources are those of SOURCES and, for top-1 and top-5 test errors with predictions, the test images. The variance of
    a source is that within sets of trials that differ in its key only, weighted by degrees of freedom. Raises
    ReportError if no two trials differ in one source only.
    """
    metric = full_key(metric, records)
    if metric not in records:
        raise ReportError(f"No trial has a value of {metric!r}.")
    values = pd.to_numeric(records[metric], errors="coerce").astype(float)
    trials = records[(records["status"] == "finished") & np.isfinite(values)]
    components = {name: component(trials, metric, key) for name, key in {**SOURCES, ALL: "seed"}.items()}
    components = {name: part for name, part in components.items() if part.df}
    if not components.keys() - {ALL}:
        keys = ", ".join(SOURCES.values())
        raise ReportError(f"No two trials differ in one source of variance only; vary one of {keys}.")
    if images := image_component(trials, metric):
        components[IMAGES] = images
    return _table(components, column(metric, trials))


def component(trials: pd.DataFrame, metric: str, key: str) -> Component:
    """Return the variance of a metric within sets of trials that differ in `key` only."""
    if key not in trials or trials.empty:
        return Component(float("nan"), 0, 0)
    keys = [str(name) for name in trials if str(name).startswith(SPEC_SECTIONS) or name == "seed"]
    settings = [value_texts(trials[name]).to_numpy() for name in keys if name != key]
    sets = trials[metric].astype(float).groupby(settings)
    df = len(trials) - sets.ngroups
    squares = float(((trials[metric].astype(float) - sets.transform("mean")) ** 2).sum())
    return Component(squares / df if df else float("nan"), df, int((sets.transform("size") > 1).sum()))


def image_component(trials: pd.DataFrame, metric: str) -> Component | None:
    """Return the variance of an error over new test images, averaged over trials.

    For a trial with N images, this is the variance of the images' errors, divided by N. None without predictions.
    """
    if metric not in ("test/top1_error", "test/top5_error") or "folder" not in trials:
        return None
    variances = []
    for folder in trials["folder"]:
        if not has_predictions(folder):
            return None
        errors = 100.0 * image_errors(folder, 5 if "top5" in metric else 1)[1]
        variances.append(errors.var(ddof=1) / len(errors))
    return Component(float(np.mean(variances)), 0, len(variances))


def _table(components: Mapping[str, Component], col: Column) -> Table:
    """Return a table of standard deviations and shares of variance."""
    floor = components[ROUNDING].variance if ROUNDING in components else 0.0
    noisy_sources = ("data order", "initial weights", "split")
    variances = {
        name: max(part.variance - floor * (name in noisy_sources), 0.0)
        for name, part in components.items()
        if name != ALL
    }
    total = sum(variances.values())
    unit = "points" if col.unit == "%" else col.unit
    rows = []
    for name, part in components.items():
        low, high = part.limits()
        interval = f"{number_text(low, col.decimals)}–{number_text(high, col.decimals)}" if part.df else ""
        share = 100 * variances[name] / total if name in variances and total else float("nan")
        rows.append((name, "", False, part.trials, part.df, np.sqrt(part.variance), interval, low, high, share))
    names = ["variant", "group", "is_baseline", "trials", "df", "sd", "interval", "sd:low", "sd:high", "share"]
    columns = (
        PrintedColumn(Column("source", "source", "text"), "variant"),
        PrintedColumn(Column("trials", "trials", "statistic", decimals=0), "trials"),
        PrintedColumn(Column("df", "df", "statistic", decimals=0), "df"),
        PrintedColumn(Column("sd", "SD", "statistic", unit, decimals=col.decimals), "sd"),
        PrintedColumn(Column("interval", "95 % interval", "text"), "interval"),
        PrintedColumn(Column("share", "share of variance", "statistic", "%", decimals=0), "share"),
    )
    notes = [
        "Each row is from trials that differ in one source only: standard deviation (SD) with degrees of freedom (df) "
        "and chi-squared interval.",
        "Shares are relative to the sum of the varied sources.",
    ]
    if ROUNDING in components:
        notes.append("The shares of order, weights and split exclude the variance due to floating point.")
    if IMAGES in components:
        notes.append("Test images: variance over other images with the same weights, averaged over trials.")
    if "split" in components:
        notes.append("Split: includes test images if the split changes them too, as for digits.")
    missing = [name for name in SOURCES if name not in components]
    if missing:
        notes.append(f"Not varied separately: {', '.join(missing)}.")
    return Table(f"Sources of variance: {col.heading}", pd.DataFrame(rows, columns=names), columns, tuple(notes))
