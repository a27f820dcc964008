"""A metric against a cost: every variant at its own cost and mean, and the front that no other beats."""

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
from se_lab.report.statistics import Bounds
from se_lab.report.variants import Study

NAMED = 20
"""With more variants, only the front and the baselines have names, and with more of those only the front."""
_BARS = 60  # with more, only the named have an error bar, and the others are small
_TRIALS = 400  # with more, points of single trials would cover those of the variants


class _Cost(NamedTuple):
    """A cost in the unit of its axis: of each variant, (V,), and of each finished trial, (T,)."""

    about: Column
    variants: Floats
    trials: Floats


def tradeoff(study: Study, metric: str, cost: str) -> Chart:
    """Chart a metric against a cost (params, macs, step_ms, …): a point a variant with its 95 % interval over seeds.

    The line is the Pareto front: the variants that no other beats in both means. Baselines are hollow; groups have
    their own marker and colour. Variants of equal cost stand above each other. Raises ReportError where no trial has
    the cost.
    """
    of, costs = column(metric, study.trials), _cost(study, metric, cost)
    estimate = computed.interval(study, metric)
    x, y = costs.variants, estimate.mean
    there = np.isfinite(x) & np.isfinite(y)
    front = np.flatnonzero(there)[pareto_front(x[there], y[there], higher_is_better=of.better == "higher")]
    stairs = np.column_stack([np.repeat(x[front], 2)[1:], np.repeat(y[front], 2)[:-1]])
    named = _named(there, front, study.is_baseline)
    _, grouped = families(study)
    labels = short_names(study.variants) if grouped else list(study.variants["variant"])
    scale: Scale = "log" if x[there].min() > 0 and x[there].max() > 8 * x[there].min() else "linear"
    values = finished_trials(study, metric)[metric].to_numpy(dtype=float)
    series = list(_series(study, of, costs, estimate, named))
    if len(front) > 1:
        sign = -1 if of.better == "higher" else 1
        line = Series(stairs[:, 0], stairs[:, 1], "Pareto front", "#8c8c8c", dash="solid", width=1.2)
        series.insert(0, replace(line, front=-1, pareto=sign))
    panel = Panel(
        Axis(costs.about.heading, span(x[there], costs.trials, scale=scale, margin=0.1), scale),
        Axis(of.heading, interval_limits(y[there], estimate.sides[:, there], values, of.unit)),
        series,
        names=[Text(x[i], y[i], labels[i], variant=int(i)) for i in np.flatnonzero(named)],
        lines=stairs,
    )
    title = f"{of.label} against {costs.about.label}"
    note = _note(study, x[there], estimate.n, int((there & ~named).sum()))
    return Chart(f"tradeoff_{cost.replace('/', '_')}", title, note, [panel], choice=costs.about.label)


def pareto_front(x: Floats, y: Floats, *, higher_is_better: bool = False) -> NDArray[np.intp]:
    """Return the indices, by ascending cost x (N,), of the points that no other beats in cost and in y (N,)."""
    score = -y if higher_is_better else y
    order = np.lexsort((score, x))
    best = np.minimum.accumulate(score[order])
    first = np.r_[True, best[1:] < best[:-1]]
    return np.asarray(order[first])


def _cost(study: Study, metric: str, cost: str) -> _Cost:
    about = column(cost, study.trials)
    if cost not in study.trials or not study.trials[cost].notna().any():
        raise ReportError(f"No trial has a value of {cost!r}.")
    x = study.per_variant(cost, "median" if about.kind == "timing" else "first").to_numpy()
    about, divisor = with_prefix(about, float(np.nanmax(x)))
    trials = finished_trials(study, metric)
    own = trials[cost].to_numpy(dtype=float) if about.kind == "timing" else x[trials["variant"]]
    return _Cost(about, x / divisor, own / divisor)


def _named(there: NDArray[np.bool_], front: NDArray[np.intp], baseline: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (V,) which variants have a name in the figure."""
    if there.sum() <= NAMED:
        return there
    of_front = np.isin(np.arange(len(there)), front)
    named = there & (baseline | of_front)
    return named if named.sum() <= NAMED else of_front


def _series(study: Study, of: Column, costs: _Cost, estimate: Bounds, named: NDArray[np.bool_]) -> Iterator[Series]:
    """Yield the points of each family: its trials, its variants without an interval, those with one."""
    there = np.isfinite(costs.variants) & np.isfinite(estimate.mean)
    whole = there if there.sum() <= _BARS else named
    trials = finished_trials(study, of.key)
    family, names = families(study)
    for number in np.unique(family[there]):
        color, marker = point_look(int(number))
        own = (family[trials["variant"]] == number) & np.isfinite(costs.trials)
        if own.any() and len(trials) <= _TRIALS:
            values = trials.loc[own, of.key].to_numpy(dtype=float)
            yield trial_points(study, trials[own], costs.trials[own], values, of, color)
        for full, chosen in ((False, there & ~whole), (True, there & whole)):
            mine = np.flatnonzero(chosen & (family == number))
            points = replace(
                variant_points(study, mine, costs.variants[mine], estimate, of), color=color, marker=marker
            )
            if len(mine) and full:
                half, hollow = estimate.sides[:, mine], study.is_baseline[mine]
                yield replace(points, name=names.get(int(number), ""), hollow=hollow, y_half=half, front=1)
            elif len(mine):
                yield replace(points, size=2.5, alpha=0.5)


def _note(study: Study, x: Floats, n: NDArray[np.int64], unnamed: int) -> str:
    notes = [means_note(n)]
    if n.max() > 1 and n.sum() <= _TRIALS:
        notes.append("small points are trials")
    if study.is_baseline.any():
        notes.append("hollow: no SE")
    _, equal = np.unique(x, return_counts=True)
    if (equal > 1).any():
        count = equal[equal > 1].sum()
        notes.append(f"{count} variants share their cost with others: they and their intervals lie over each other")
    if unnamed:
        notes.append(f"{unnamed} variants without a name")
    return "; ".join(notes) + "."
