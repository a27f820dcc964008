"""What each variant changes: paired differences to the baseline with their simultaneous intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from se_lab.report.columns import ReportError, column, interval_text
from se_lab.report.computed import differences as compare
from se_lab.report.computed import paired_matrix
from se_lab.report.figures.chart import Axis, Chart, Panel, Text, interval_limits, point_look
from se_lab.report.figures.points import finished_trials, means_note, trial_points, variant_points
from se_lab.report.statistics import Estimate
from se_lab.report.variants import BASELINE, Study

MOST_ROWS = 60


def differences(study: Study, metric: str) -> Chart:
    """Chart a forest plot: each variant's difference to its baseline with its simultaneous 95 % interval.

    Ticks are seeds. A filled square has an interval that excludes zero. Of more than sixty variants, those with the
    largest differences. Raises ReportError where nothing pairs with a baseline.
    """
    pairs, compared = paired_matrix(study, metric), compare(study, metric)
    every = np.flatnonzero(compared.n > 0)
    if not len(every):
        raise ReportError("Nothing pairs with a baseline (insertion none) of the same seed: there are no differences.")
    rows = np.sort(every[np.argsort(-np.abs(compared.mean[every]), kind="stable")[:MOST_ROWS]])
    at = np.full(len(compared.n), np.nan)  # a blank line stands between groups
    at[rows] = np.arange(len(rows)) + np.cumsum(np.diff(study.group[rows], prepend=study.group[rows[0]]) != 0) * 0.8
    of = column(metric, study.trials)
    unit = "points" if of.unit == "%" else of.unit
    estimate = Estimate(compared.mean, compared.half_width, compared.n)

    trials = finished_trials(study, metric)
    seeds = study.by_seed(metric).columns.get_indexer(pd.Index(trials["seed"]))
    delta = pairs[trials["variant"].to_numpy(dtype=int), seeds]
    known = np.isfinite(delta) & np.isfinite(at[trials["variant"]])
    trials, delta = trials[known], delta[known]
    series = [
        replace(
            trial_points(study, trials, delta, at[trials["variant"]], of, "#808080"), marker="tick", size=7, alpha=1.0
        )
    ]
    for group in np.unique(study.group[rows]):
        own = rows[study.group[rows] == group]
        color, _ = point_look(int(group))
        points = variant_points(study, own, compared.mean[own], estimate, of)
        hollow = ~compared.excludes_zero[own]
        texts = [interval_text(compared.mean[i], compared.half_width[i], of.decimals, signed=True) for i in own]
        hover = [
            f"{study.variants['variant'].iloc[i]}\n{text} {unit}, {compared.n[i]} pairs"
            for i, text in zip(own, texts, strict=True)
        ]
        series.append(
            replace(
                points,
                y=at[own],
                color=color,
                marker="square",
                hollow=hollow,
                x_half=compared.half_width[own],
                hover=hover,
                front=1,
            )
        )
    aside = [
        Text(
            0,
            at[i],
            interval_text(compared.mean[i], compared.half_width[i], of.decimals, signed=True),
            aside=True,
            variant=int(i),
        )
        for i in rows
    ]
    names = study.variants["variant"]
    limits = interval_limits(compared.mean[rows], compared.half_width[rows], np.append(delta, 0.0))
    label = f"Δ {of.label} to {BASELINE}" + (f" ({unit})" if unit else "")
    panel = Panel(
        Axis(label, limits),
        Axis(limits=(at[rows[-1]] + 0.7, -0.7), ticks=[(at[i], names.iloc[i]) for i in rows], names=True),
        series, texts=aside, zero="x",
    )  # fmt: skip
    note = means_note(compared.n[rows]).replace("Mean", "Mean difference")
    if compared.n.max() > 1:
        note += "; ticks are seeds; a filled square has an interval that excludes zero"
    if len(every) > len(rows):
        note += f"; {len(every) - len(rows)} smaller differences left out"
    return Chart("differences", f"Difference of {of.label} to {BASELINE}", f"{note}.", [panel], rows=at[rows[-1]] + 1.4)
