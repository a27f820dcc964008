"""A metric and the parameters over the reduction ratio."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from se_lab.report import computed
from se_lab.report.columns import ReportError, column, with_prefix
from se_lab.report.figures.chart import (
    DASHES,
    Axis,
    Chart,
    Panel,
    Series,
    interval_limits,
    point_look,
    span,
)
from se_lab.report.figures.points import finished_trials, keys_of, means_note, variant_points
from se_lab.report.variants import Study

REDUCTION = "model.se.reduction"


def reduction(study: Study, metric: str) -> Chart:
    """Chart a metric and the parameters over the reduction ratio.

    There is a curve for each setting of the other varied keys. Dashed lines with bands are baselines with intervals.
    Raises ReportError if no curve has two reduction ratios.
    """
    if REDUCTION not in study.se_keys:
        raise ReportError("The records need at least two reduction ratios.")
    estimate, col = computed.interval(study, metric), column(metric, study.trials)
    params = study.per_variant("params", "first").to_numpy()
    cost, divisor = with_prefix(column("params"), float(np.nanmax(params)))
    params = params / divisor
    ratio = pd.to_numeric(study.variants[REDUCTION]).to_numpy(dtype=float)
    ends = span(ratio, scale="log", margin=0.08)
    curve = curve_names(study)
    metric_series: list[Series] = []
    param_series: list[Series] = []
    for number, name in enumerate(dict.fromkeys(curve[~study.is_baseline])):
        members = np.flatnonzero((curve == name) & ~study.is_baseline & np.isfinite(estimate.mean))
        if not len(members):
            continue
        members = members[np.argsort(ratio[members])]
        color, marker = point_look(number)
        points = replace(
            variant_points(study, members, ratio[members], estimate, col),
            name=name,
            color=color,
            marker=marker,
            dash="solid",
        )
        metric_series.append(replace(points, y_half=estimate.sides[:, members], front=1))
        param_series.append(replace(points, y=params[members]))
    if all(len(series.x) < 2 for series in metric_series):
        raise ReportError("No setting has finished trials with two reduction ratios.")
    show_bands = study.is_baseline.sum() <= 3  # bands of more baselines would overlap
    for number, i in enumerate(np.flatnonzero(study.is_baseline & np.isfinite(estimate.mean))):
        name = study.variants["variant"].iloc[i]
        line_y = np.full(2, estimate.mean[i])
        keys = keys_of(np.array([i]))
        line = Series(
            np.array(ends), line_y, name, "#666666", dash=DASHES[1 + number % 5], width=1.2, keys=keys, front=-1
        )
        if show_bands and np.isfinite(estimate.low[i]):
            line = replace(line, low=np.full(2, estimate.low[i]), high=np.full(2, estimate.high[i]))
        metric_series.append(line)
        param_series.append(replace(line, y=np.full(2, params[i]), low=None, high=None))
    ticks = [(float(r), f"{r:g}") for r in np.unique(ratio[np.isfinite(ratio)])]
    x = Axis("reduction ratio r", ends, "log", ticks)
    values = finished_trials(study, metric)[metric].to_numpy(dtype=float)
    mask = np.isfinite(estimate.mean)
    y_axis = Axis(col.heading, interval_limits(estimate.mean[mask], estimate.sides[:, mask], values, col.unit))
    panels = [Panel(x, y_axis, metric_series), Panel(x, Axis(cost.heading, span(params, margin=0.1)), param_series)]
    has_band = any(series.low is not None for series in metric_series)
    note = f"{means_note(estimate.n)}." + (
        (" Dashed: no SE" + (", with its interval." if has_band else ".")) if study.is_baseline.any() else ""
    )
    return Chart("reduction", f"{col.label} over the reduction ratio", note, panels)


def curve_names(study: Study) -> np.ndarray:
    """Return the curve of each variant (V,): its name without the reduction ratio."""
    if study.keys == (REDUCTION,):
        return np.full(len(study.variants), "", dtype=object)
    names = study.variants["variant"].str.replace(r"(, )?\br=[^,]*", "", regex=True)
    return np.asarray(names.str.removeprefix(", ").to_numpy(dtype=object))
