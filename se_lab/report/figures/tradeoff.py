"""Figures of an ablation: functions from records to a Matplotlib figure, without global state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report import statistics
from se_lab.report.columns import ReportError, column, value_texts, with_prefix
from se_lab.report.figures.canvas import MARKERS, canvas, keep_possible, look, means
from se_lab.report.figures.labels import place_labels
from se_lab.report.statistics import Floats
from se_lab.report.tables import refuse_absent_metric
from se_lab.report.variants import Study, group_variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 20  # with more variants, a trade-off figure names the front and the baselines, with more of those the front
_BARS = 60  # with more, only the named have an error bar, and the others are small


def tradeoff_figure(
    records: pd.DataFrame,
    cost: str = "params",
    metric: str = "test/top1_error",
    *,
    where: Mapping[str, object] | None = None,
) -> Figure:
    """Plot a metric against a cost (params, macs, step_ms, …), a point a variant with its 95 % interval over seeds.

    The line is the Pareto front: the variants that no other beats in both means. Baselines are hollow, groups have
    their own marker and colour. Raises ReportError where no trial has the metric or the cost.
    """
    study = group_variants(records, where=where)
    refuse_absent_metric(study, metric)
    y_column, x_column = column(metric, study.trials), column(cost, study.trials)
    if cost not in study.trials or not study.trials[cost].notna().any():
        raise ReportError(f"No trial has a value of {cost!r}.")
    x = study.per_variant(cost, "median" if x_column.kind == "timing" else "first").to_numpy()
    x_column, divisor = with_prefix(x_column, float(np.nanmax(x)))
    x = x / divisor
    estimate = statistics.t_interval(study.by_seed(metric).to_numpy())
    y, half = estimate.mean, estimate.half_width
    there = np.isfinite(x) & np.isfinite(y)
    front = np.flatnonzero(there)[pareto_front(x[there], y[there], higher_is_better=y_column.better == "higher")]

    named = there.copy()
    if there.sum() > _NAMED:
        named &= study.is_baseline
        named[front] = True
        if named.sum() > _NAMED:
            named = np.isin(np.arange(len(x)), front)
    whole = there if there.sum() <= _BARS else named
    family, family_names = families(study)

    with canvas() as (figure, (axes,)):
        if x[there].min() > 0 and x[there].max() > 8 * x[there].min():
            axes.set_xscale("log")
        axes.margins(0.1, 0.12)
        axes.errorbar(x[there], y[there], yerr=np.nan_to_num(half[there]), alpha=0)  # settles the limits
        keep_possible(axes, y_column.unit)
        x = _side_by_side(axes, x)
        for number in np.unique(family[there]):
            color, marker = look(int(number))
            mine = there & (family == number)
            barred, bare = mine & whole, mine & ~whole
            axes.errorbar(x[barred], y[barred], np.nan_to_num(half[barred]), fmt="none", ecolor=color, elinewidth=1)
            axes.plot(x[bare], y[bare], marker, color=color, markersize=2.5, alpha=0.5, markeredgewidth=0, zorder=1)
            for chosen, face in ((barred & study.is_baseline, "white"), (barred & ~study.is_baseline, color)):
                axes.plot(x[chosen], y[chosen], marker, color=color, markerfacecolor=face, zorder=3)
        stairs = np.column_stack([np.repeat(x[front], 2)[1:], np.repeat(y[front], 2)[:-1]])
        if len(front) > 1:
            axes.plot(stairs[:, 0], stairs[:, 1], color="0.55", linewidth=1.2, zorder=1.5, label="Pareto front")
        for number, name in family_names.items():
            color, marker = look(number)
            axes.plot([], [], marker, color=color, label=name)
        axes.set_xlabel(x_column.heading)
        axes.set_ylabel(y_column.heading)
        if len(front) > 1 or family_names:
            axes.legend(loc="best" if len(x) <= _NAMED else "upper right")
        names = short_names(study.variants) if family_names else study.variants["variant"]
        names = [name if told else "" for name, told in zip(names, named, strict=True)]
        shown = np.flatnonzero(there)
        left_out = place_labels(axes, x[shown], y[shown], np.nan_to_num(half[shown]), [names[i] for i in shown], stairs)
        unnamed = int(there.sum() - named.sum()) + len(left_out)
        axes.set_title(means(estimate.n) + (f"; {unnamed} variants without a name" if unnamed else ""))
    return figure


def pareto_front(x: Floats, y: Floats, *, higher_is_better: bool = False) -> NDArray[np.intp]:
    """Return the indices, by ascending cost x (N,), of the points that no other beats in cost and in y (N,)."""
    score = -y if higher_is_better else y
    order = np.lexsort((score, x))
    best = np.minimum.accumulate(score[order])
    first = np.r_[True, best[1:] < best[:-1]]
    return np.asarray(order[first])


def families(study: Study) -> tuple[NDArray[np.intp], dict[int, str]]:
    """(V,) what gives a variant its colour and marker, and the names: its group, else its first of several SE keys.

    More groups than there are markers have no names: the variants' own must tell them apart.
    """
    if study.group_keys or len(study.se_keys) < 2:
        names = dict(zip(study.group.tolist(), study.variants["group"], strict=True))
        return study.group, names if study.group_keys and len(names) <= len(MARKERS) else {}
    key = study.se_keys[0]
    codes, values = pd.factorize(value_texts(study.variants[key]).mask(study.is_baseline))
    return codes, dict(enumerate(map(column(key, study.trials).short.format, values)))


def _side_by_side(axes: Axes, x: Floats) -> Floats:
    """Move points (N,) of equal cost apart by a few pixels, so that their error bars can be told apart."""
    order = pd.Series(x).groupby(x).cumcount().to_numpy()
    gaps = np.nan_to_num(pd.Series(x).groupby(x).transform("size").to_numpy(dtype=float), nan=1.0) - 1
    pixels = np.minimum(6, 24 / np.maximum(gaps, 1)) * (order - gaps / 2)
    to_screen = axes.transScale.transform
    low, high = to_screen([(limit, 1) for limit in axes.get_xlim()])[:, 0]
    at = to_screen(np.column_stack([x, np.ones_like(x)]))[:, 0]
    moved = at + pixels * (high - low) / axes.bbox.width
    return np.asarray(axes.transScale.inverted().transform(np.column_stack([moved, np.ones_like(x)]))[:, 0])


def short_names(variants: pd.DataFrame) -> list[str]:
    """Names without the group, which marker and legend already tell."""
    return [
        name.removeprefix(f"{group}, ") if group else name
        for name, group in zip(variants["variant"], variants["group"], strict=True)
    ]
