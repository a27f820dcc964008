"""Trade-off of a metric against a cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from se_lab.report import computed
from se_lab.report.columns import Column, ReportError, column, with_prefix
from se_lab.report.figures.chart import (
    Axis,
    Chart,
    Floats,
    Panel,
    Scale,
    Series,
    Text,
    interval_limits,
    point_look,
    span,
)
from se_lab.report.figures.points import (
    families,
    finished_trials,
    means_note,
    short_names,
    trial_points,
    variant_points,
)
from se_lab.report.notes import uneven_times
from se_lab.report.statistics import Bounds
from se_lab.report.variants import Study

NAMED = 20
"""Maximum number of names; beyond it, only front and baselines, or only the front, have names."""
_BARS = 60  # with more variants, only those with a name have error bars, and the others are small points
_TRIALS = 400  # points of more trials would cover those of variants


class _Cost(NamedTuple):
    """A cost in the unit of the axis, for variants (V,) and finished trials (T,)."""

    about: Column
    variants: Floats
    trials: Floats


def tradeoff(study: Study, metric: str, cost: str) -> Chart:
    """Chart a metric against a cost (params, macs, step_ms, …), with 95 % intervals over seeds.

    The line is the Pareto front of the means; there is none for several data sets, whose errors are not comparable.
    Baselines are hollow; groups have different markers and colours. Raises ReportError if no trial has the cost.
    """
    col, costs = column(metric, study.trials), _cost(study, metric, cost)
    estimate = computed.interval(study, metric)
    x, y = costs.variants, estimate.mean
    is_plotted = np.isfinite(x) & np.isfinite(y)
    candidates = np.flatnonzero(is_plotted & ("data.name" not in study.group_keys))
    front = candidates[pareto_front(x[candidates], y[candidates], higher_is_better=col.better == "higher")]
    stairs = np.column_stack([np.repeat(x[front], 2)[1:], np.repeat(y[front], 2)[:-1]])
    is_named = _has_name(is_plotted, front, study.is_baseline)
    _, family_names = families(study)
    labels = short_names(study.variants) if family_names else list(study.variants["variant"])
    scale: Scale = "log" if x[is_plotted].min() > 0 and x[is_plotted].max() > 8 * x[is_plotted].min() else "linear"
    values = finished_trials(study, metric)[metric].to_numpy(dtype=float)
    series = list(_series(study, col, costs, estimate, is_named))
    if len(front) > 1:
        sign = -1 if col.better == "higher" else 1
        line = Series(stairs[:, 0], stairs[:, 1], "Pareto front", "#8c8c8c", dash="solid", width=1.2)
        series.insert(0, replace(line, front=-1, pareto=sign))
    panel = Panel(
        Axis(costs.about.heading, span(x[is_plotted], costs.trials, scale=scale, margin=0.1), scale),
        Axis(col.heading, interval_limits(y[is_plotted], estimate.sides[:, is_plotted], values, col.unit)),
        series,
        names=[Text(x[i], y[i], labels[i], variant=int(i)) for i in np.flatnonzero(is_named)],
        lines=stairs,
    )
    title = f"{col.label} against {costs.about.label}"
    note = _note(study, x[is_plotted], estimate.n, int((is_plotted & ~is_named).sum()))
    if costs.about.kind == "timing":
        note = " ".join([note, *uneven_times(study, cost)])
    return Chart(f"tradeoff_{cost.replace('/', '_')}", title, note, [panel], choice=costs.about.label)


def pareto_front(x: Floats, y: Floats, *, higher_is_better: bool = False) -> NDArray[np.intp]:
    """Return the indices of the Pareto front of costs x (N,) and values y (N,), by cost."""
    score = -y if higher_is_better else y
    order = np.lexsort((score, x))
    minima = np.minimum.accumulate(score[order])
    is_front = np.diff(minima, prepend=np.inf) < 0
    return np.asarray(order[is_front])


def _cost(study: Study, metric: str, cost: str) -> _Cost:
    col = column(cost, study.trials)
    if cost not in study.trials or not study.trials[cost].notna().any():
        raise ReportError(f"No trial has the cost {cost!r}.")
    x = study.per_variant(cost, "median" if col.kind == "timing" else "first").to_numpy()
    col, divisor = with_prefix(col, float(np.nanmax(x)))
    trials = finished_trials(study, metric)
    trial_costs = trials[cost].to_numpy(dtype=float) if col.kind == "timing" else x[trials["variant"]]
    return _Cost(col, x / divisor, trial_costs / divisor)


def _has_name(is_plotted: NDArray[np.bool_], front: NDArray[np.intp], baseline: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether each variant (V,) has a name in the figure."""
    if is_plotted.sum() <= NAMED:
        return is_plotted
    is_front = np.isin(np.arange(len(is_plotted)), front)
    is_named = is_plotted & (baseline | is_front)
    return is_named if is_named.sum() <= NAMED else is_front


def _series(study: Study, col: Column, costs: _Cost, estimate: Bounds, is_named: NDArray[np.bool_]) -> Iterator[Series]:
    """Yield for each family the points of trials, of variants without and with error bars."""
    is_plotted = np.isfinite(costs.variants) & np.isfinite(estimate.mean)
    has_interval = is_plotted if is_plotted.sum() <= _BARS else is_named
    trials = finished_trials(study, col.key)
    family, names = families(study)
    for number in np.unique(family[is_plotted]):
        color, marker = point_look(int(number))
        is_member = (family[trials["variant"]] == number) & np.isfinite(costs.trials)
        if is_member.any() and len(trials) <= _TRIALS:
            values = trials.loc[is_member, col.key].to_numpy(dtype=float)
            yield trial_points(study, trials[is_member], costs.trials[is_member], values, col, color)
        for with_interval, mask in ((False, is_plotted & ~has_interval), (True, is_plotted & has_interval)):
            members = np.flatnonzero(mask & (family == number))
            points = replace(
                variant_points(study, members, costs.variants[members], estimate, col), color=color, marker=marker
            )
            if len(members) and with_interval:
                half, hollow = estimate.sides[:, members], study.is_baseline[members]
                yield replace(points, name=names.get(int(number), ""), hollow=hollow, y_half=half, front=1)
            elif len(members):
                yield replace(points, size=2.5, alpha=0.5)


def _note(study: Study, x: Floats, n: NDArray[np.int64], unnamed: int) -> str:
    notes = [means_note(n)]
    if n.max() > 1 and n.sum() <= _TRIALS:
        notes.append("small points are trials")
    if study.is_baseline.any():
        notes.append("hollow points have no SE")
    _, counts = np.unique(x, return_counts=True)
    if (counts > 1).any():
        count = counts[counts > 1].sum()
        notes.append(f"{count} variants have the same cost as another")
    if unnamed:
        notes.append(f"{unnamed} names are omitted")
    return "; ".join(notes) + "."
