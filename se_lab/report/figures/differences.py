"""Differences of the variants from the baseline, with simultaneous intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report.columns import Column, ReportError, column, interval_text
from se_lab.report.computed import differences as compare
from se_lab.report.computed import paired_matrix
from se_lab.report.figures.chart import Axis, Chart, Floats, Panel, Series, Text, interval_limits, point_look
from se_lab.report.figures.points import finished_trials, keys_of, means_note, trial_points
from se_lab.report.joint import Comparison
from se_lab.report.variants import BASELINE, Study

MOST_ROWS = 60


def differences(study: Study, metric: str) -> Chart:
    """Chart a forest plot of differences from the baseline with simultaneous 95 % intervals.

    Ticks are differences of single seeds; filled squares have intervals that exclude zero. At most sixty variants are
    shown, those with the largest differences. Raises ReportError if no variant has a baseline.
    """
    pairs, comparison = paired_matrix(study, metric), compare(study, metric)
    candidates = np.flatnonzero(np.isfinite(comparison.mean) & (study.baseline != np.arange(len(study.baseline))))
    if not len(candidates):
        raise ReportError("No variant has a baseline (insertion none), so there are no differences.")
    rows = np.sort(candidates[np.argsort(-np.abs(comparison.mean[candidates]), kind="stable")[:MOST_ROWS]])
    heights = np.full(len(comparison.n), np.nan)  # with a gap between groups
    heights[rows] = (
        np.arange(len(rows)) + np.cumsum(np.diff(study.group[rows], prepend=study.group[rows[0]]) != 0) * 0.8
    )
    col = column(metric, study.trials)
    unit = "points" if col.unit == "%" else col.unit
    texts = [
        interval_text(mean, half, col.decimals, signed=True)
        for mean, half in zip(comparison.mean, comparison.half_width, strict=True)
    ]
    seeds = _seeds(study, col, pairs, heights)
    names = study.variants["variant"]
    limits = interval_limits(comparison.mean[rows], comparison.half_width[rows], np.append(seeds.x, 0.0), unit)
    panel = Panel(
        Axis(f"Δ {col.label} to {BASELINE}" + (f" ({unit})" if unit else ""), limits),
        Axis(limits=(heights[rows[-1]] + 0.7, -0.7), ticks=[(heights[i], names.iloc[i]) for i in rows], names=True),
        [seeds, *_squares(study, comparison, rows, heights, [f"{text} {unit}" for text in texts])],
        texts=[Text(0, heights[i], texts[i], at_edge=True, variant=int(i)) for i in rows],
        zero="x",
    )
    counts = study.by_seed(metric).notna().sum(axis=1).to_numpy()
    note = means_note(np.append(counts[rows], counts[counts == 0])).replace("Mean", "Mean difference")
    if counts[rows].max() > 1:
        note += "; ticks are seeds" * bool(len(seeds.x)) + "; filled squares have intervals that exclude zero"
    if len(candidates) > len(rows):
        note += f"; {len(candidates) - len(rows)} smaller differences are omitted"
    return Chart(
        "differences", f"Difference of {col.label} to {BASELINE}", f"{note}.", [panel], rows=heights[rows[-1]] + 1.4
    )


def _seeds(study: Study, col: Column, pairs: Floats, heights: Floats) -> Series:
    """Return a tick for the difference of each seed."""
    trials = finished_trials(study, col.key)
    places = study.by_seed(col.key).columns.get_indexer(pd.Index(trials["seed"]))
    delta = pairs[trials["variant"].to_numpy(dtype=int), places]
    mask = np.isfinite(delta) & np.isfinite(heights[trials["variant"]])
    trials, delta = trials[mask], delta[mask]
    points = trial_points(study, trials, delta, heights[trials["variant"]], col, "#808080")
    return replace(points, marker="tick", size=7, alpha=1.0)


def _squares(
    study: Study, comparison: Comparison, rows: NDArray[np.intp], heights: Floats, texts: list[str]
) -> Iterator[Series]:
    """Yield the mean differences with their intervals, with one colour per group."""
    names = study.variants["variant"]
    for group in np.unique(study.group[rows]):
        members = rows[study.group[rows] == group]
        color, _ = point_look(int(group))
        yield Series(
            comparison.mean[members], heights[members], color=color, marker="square", front=1, keys=keys_of(members),
            hollow=~comparison.excludes_zero[members], x_half=comparison.half_width[members],
            hover=[f"{names.iloc[i]}\n{texts[i]}" for i in members],
        )  # fmt: skip
