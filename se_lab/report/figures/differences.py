"""Figures of what a variant changes: paired differences to the baseline, and curves over the reduction ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from se_lab.report import statistics
from se_lab.report.columns import ReportError, column, interval_text, with_prefix
from se_lab.report.computed import differences, paired_matrix
from se_lab.report.figures.canvas import canvas, keep_possible, legend_outside, look, means
from se_lab.report.tables import refuse_absent_metric
from se_lab.report.variants import BASELINE, Study, group_variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REDUCTION = "model.se.reduction"
_MOST_ROWS = 60
_BASE: dict[str, Any] = {"color": "0.4", "linewidth": 1.2, "zorder": 1.5}
_DASHES = ("--", ":", "-.", (0, (8, 2)), (0, (1, 3)))  # baselines, told apart without colour


def difference_figure(
    records: pd.DataFrame, metric: str = "test/top1_error", *, where: Mapping[str, object] | None = None
) -> Figure:
    """Draw a forest plot: each variant's difference to its baseline with its simultaneous 95 % interval, a tick a seed.

    A filled square has an interval that excludes zero. Of more than sixty variants, those with the largest
    differences. Raises ReportError where nothing pairs with a baseline.
    """
    study = group_variants(records, where=where)
    refuse_absent_metric(study, metric)
    pairs = paired_matrix(study, metric)
    estimate = differences(study, metric)
    rows = np.flatnonzero(estimate.n > 0)
    if not len(rows):
        raise ReportError("Nothing pairs with a baseline (insertion none) of the same seed: there are no differences.")
    total = len(rows)
    rows = np.sort(rows[np.argsort(-np.abs(estimate.mean[rows]), kind="stable")[:_MOST_ROWS]])
    # a blank line stands between groups
    at = np.arange(len(rows)) + np.cumsum(np.diff(study.group[rows], prepend=study.group[rows[0]]) != 0) * 0.8
    of = column(metric, study.trials)
    unit = "points" if of.unit == "%" else of.unit

    with canvas(6.4, 0.9 + 0.26 * (at[-1] + 1)) as (figure, (axes,)):
        axes.axvline(0, color="0.2", linewidth=1)
        for y, i in zip(at, rows, strict=True):
            mean, half = estimate.mean[i], estimate.half_width[i]
            color, _ = look(int(study.group[i]))
            seeds = pairs[i][~np.isnan(pairs[i])]
            axes.plot(seeds, np.full(len(seeds), y), "|", color="0.5", markersize=7, zorder=2)
            if np.isfinite(half):
                axes.errorbar(mean, y, xerr=half, color=color, elinewidth=1.5)
            face = color if estimate.excludes_zero[i] else "white"
            axes.plot(mean, y, "s", color=color, markerfacecolor=face, zorder=3)
            text = interval_text(mean, half, of.decimals, signed=True)
            axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        axes.set_yticks(at, study.variants["variant"].iloc[rows])
        axes.set_ylim(at[-1] + 0.7, -0.7)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"Δ {of.label} to {BASELINE}" + (f" ({unit})" if unit else ""))
        shown = f"; {total - len(rows)} smaller differences left out" if total > len(rows) else ""
        axes.set_title(means(estimate.n[rows]).replace("Mean", "Difference") + "; ticks are seeds" + shown)
    return figure


def reduction_figure(
    records: pd.DataFrame, metric: str = "test/top1_error", *, where: Mapping[str, object] | None = None
) -> Figure:
    """Draw a metric and the parameters over the reduction ratio, a curve for each setting of the other varied keys.

    Dashed lines with bands are the baselines and their intervals. Raises ReportError where fewer than two reduction
    ratios have the metric.
    """
    study = group_variants(records, where=where)
    refuse_absent_metric(study, metric)
    estimate = statistics.t_interval(study.by_seed(metric).to_numpy())
    if REDUCTION not in study.se_keys:
        raise ReportError("The records have no two reduction ratios: there is no curve to draw.")
    ratio = pd.to_numeric(study.variants[REDUCTION]).to_numpy(dtype=float)
    others = [key for key in study.keys if key != REDUCTION]
    curve = curve_names(study, others)
    of, cost = column(metric, study.trials), column("params")
    params = study.per_variant("params", "first").to_numpy()
    cost, divisor = with_prefix(cost, float(np.nanmax(params)))

    with canvas(6.4, 5.2, rows=2) as (figure, (top, bottom)):
        for number, name in enumerate(dict.fromkeys(curve[~study.is_baseline])):
            color, marker = look(number)
            mine = np.flatnonzero((curve == name) & ~study.is_baseline)
            mine = mine[np.argsort(ratio[mine])]
            nudge = 2 ** (0.04 * number)  # curves over the same ratios would hide each other's intervals
            half = np.nan_to_num(estimate.half_width[mine])
            top.errorbar(ratio[mine] * nudge, estimate.mean[mine], half, marker=marker, color=color, label=name or None)
            bottom.plot(ratio[mine] * nudge, params[mine] / divisor, marker=marker, color=color)
        for number, i in enumerate(np.flatnonzero(study.is_baseline)):
            dashes, name = _DASHES[number % len(_DASHES)], study.variants["variant"].iloc[i]
            top.axhline(estimate.mean[i], linestyle=dashes, label=name, **_BASE)
            bottom.axhline(params[i] / divisor, linestyle=dashes, **_BASE)
            if np.isfinite(half := estimate.half_width[i]):
                top.axhspan(estimate.mean[i] - half, estimate.mean[i] + half, color="0.4", alpha=0.12, linewidth=0)
        keep_possible(top, of.unit)
        top.set_xscale("log", base=2)
        ticks = np.unique(ratio[~np.isnan(ratio)])
        top.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        top.minorticks_off()
        bottom.set_xlabel("reduction ratio r")
        top.set_ylabel(of.heading)
        bottom.set_ylabel(cost.heading)
        top.set_title(means(estimate.n))
        if len(set(curve)) > 1 or study.is_baseline.any():
            legend_outside(figure, top, "lower center", 3)
    return figure


def curve_names(study: Study, others: list[str]) -> np.ndarray:
    """(V,) what the variants on one curve share."""
    names = study.variants["variant"].str.replace(r"(, )?\br=[^,]*", "", regex=True) if others else None
    return np.array([""] * len(study.variants) if names is None else names.str.removeprefix(", "))
