"""Figures that compare units, checkpoints and variants by their excitations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from se_lab.excitations import measures
from se_lab.excitations.capture import ExcitationError
from se_lab.excitations.figures import grid, legend_above, line_style, name_units, single
from se_lab.excitations.statistics import ExcitationStatistics, UnitStatistics, bin_edges
from se_lab.report.columns import MINUS
from se_lab.report.figures.canvas import MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labelled = Sequence[tuple[str, ExcitationStatistics]]
"""Statistics of nets, each with its label."""


DECADES = tuple(step * 10**power for power in range(4) for step in (1, 2, 5))


def saturation_figure(statistics: ExcitationStatistics) -> Figure:
    """Share of each unit's gates near the bounds of its excitation, in %, over all images and channels.

    ReLU has no upper bound: its share of zeros is shown instead.
    """
    units = [statistics.unit(site.name) for site in statistics.sites]
    shares = 100 * np.nan_to_num([measures.saturation(unit) for unit in units])
    labels = measures.saturation_labels(units)
    with single(6.4, 1.4 + 0.24 * len(units)) as (figure, axes):
        y = np.arange(len(units))[::-1]
        axes.barh(y, -shares[:, 0], color="C0", label=labels[0])
        axes.barh(y, shares[:, 1], color="C1", label=labels[1], hatch="///", edgecolor="white", linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(y, [unit.site.name for unit in units])
        most = max(float(shares.max()) * 1.1, 1.0)
        axes.set_xlim(-most, most)
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlabel("share of gates in %" if shares.any() else "share of gates in % (none is saturated)")
        axes.grid(axis="y", visible=False)
        legend_above(figure, axes, "Saturation of gates")
    return figure


def selectivity_figure(labelled: Labelled) -> Figure:
    """Class selectivity of each unit: the variance between classes (ω²), and the selectivity index.

    Nets of one label, such as the seeds of a variant, are one line of their mean, in a band from the lowest to the
    highest. A dotted line is the index that chance alone gives. Gates below 0, as tanh makes them, have no selectivity
    index.
    """
    names = list(dict.fromkeys(site.name for _, statistics in labelled for site in statistics.sites))
    with_index = [label for label, nets in _by_label(labelled).items() if min(_lowest(net) for net in nets) >= 0]
    panels = 2 if with_index else 1
    with grid(1, panels, max(4.2 * panels, 1.6 + 0.16 * panels * len(names)), 3.9) as (figure, (left, *right)):
        for number, (label, nets) in enumerate(_by_label(labelled).items()):
            own = [site.name for site in nets[0].sites]
            rows = [[_selectivity(statistics.unit(name)) for name in own] for statistics in nets]
            style = line_style(number) | {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
            drawn = [left, *(right if label in with_index else [])]
            for axes, values in zip(drawn, np.array(rows).transpose(2, 0, 1), strict=False):
                x = [names.index(name) for name in own]
                axes.plot(x, values.mean(0), **style, label=label)
                axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0)
            if label in with_index:
                chance = [[measures.selectivity_without_classes(net.unit(name)) for name in own] for net in nets]
                line = {"color": style["color"], "linestyle": ":", "linewidth": 1}
                right[0].plot(x, np.mean(chance, axis=0), **line, label=f"{label}, by chance")
        some = ", of gates ≥ 0" if len(with_index) < len(_by_label(labelled)) else ""
        titles = ("variance between classes, ω² in %", f"selectivity index (dotted: by chance){some}")
        for axes, title in zip((left, *right), titles, strict=False):
            name_units(axes, names)
            axes.set_title(title)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        remarks = dict.fromkeys(measures.few_images(net.count.cpu().numpy()) for _, net in labelled)
        if remark := "; ".join(filter(None, remarks)):
            left.set_xlabel(remark, loc="left")
        if len(labelled) > 1:
            legend_above(figure, left)
    return figure


def overlay_figure(labelled: Labelled) -> Figure:
    """How the gates of nets are distributed, a panel a stage, a line a label: sigmoid beside tanh beside ReLU.

    The density of all gates of a stage's units; nets of one label are averaged. Gates above the 99.9th percentile of
    all, as ReLU makes them, are beyond the panel.
    """
    stages = sorted({site.stage for _, statistics in labelled for site in statistics.sites})
    columns = min(len(stages), 4)
    edges = bin_edges()
    with grid(-(-len(stages) // columns), columns, 2.7 * columns + 0.4, 3.2) as (figure, panels):
        for axes, stage in zip(panels, stages, strict=False):
            reach = []
            for number, (label, nets) in enumerate(_by_label(labelled).items()):
                units = [s.unit(site.name) for s in nets for site in s.sites if site.stage == stage]
                if not units:
                    continue
                counts = np.sum([unit.by_class.sum(0) for unit in units], axis=0)[:-1].astype(float)
                share = np.cumsum(counts) / counts.sum()
                reach += [edges[np.searchsorted(share, 0.001)], edges[np.searchsorted(share, 0.999) + 1]]
                axes.stairs(counts / counts.sum() / np.diff(edges)[:-1], edges[:-1], **line_style(number), label=label)
            axes.set_xlim(min(reach) - 0.02, max(reach) + 0.02)
            axes.set_yscale("symlog", linthresh=1)
            ticks = [tick for tick in (0, 0.5, *DECADES) if tick <= axes.get_ylim()[1]]
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_title(f"stage {stage}")
            axes.set_xlabel("gate")
            if max(reach) > 2:  # ReLU has no end: what lies between −1 and 1 would be squeezed into a line
                axes.set_xscale("symlog", linthresh=1, linscale=2)
                ticks = [tick for tick in (-1, -0.5, 0, 0.5, *DECADES[::3]) if min(reach) <= tick <= max(reach)]
                axes.set_xticks(ticks, [f"{tick:g}".replace("-", MINUS) for tick in ticks])
                axes.set_xlabel("gate (logarithmic above 1)")
            axes.minorticks_off()
        for spare in panels[len(stages) :]:
            spare.remove()
        panels[0].set_ylabel("density (logarithmic above 1)")
        legend_above(figure, panels[0])
    return figure


def unit_similarity_figure(a: ExcitationStatistics, b: ExcitationStatistics | None = None) -> Figure:
    """How alike units tell classes apart (debiased CKA): the units of one net, or of two nets against each other.

    A line on the colour bar is the 95 % quantile when classes are permuted: what lies below may be chance.
    """
    other = b or a
    rows = [a.unit(site.name) for site in a.sites]
    columns = [other.unit(site.name) for site in other.sites]
    matrix = measures.unit_similarity(rows, columns)
    side = 2.6 + 0.24 * max(len(rows), len(columns))
    with single(side + 0.9, side) as (figure, axes):
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        name_units(axes, [unit.site.name for unit in columns])
        axes.set_yticks(range(len(rows)), [unit.site.name for unit in rows])
        axes.grid(visible=False)
        bar = figure.colorbar(image, shrink=0.8, label="debiased CKA of class means")
        chance = measures.similarity_by_chance(rows, columns)
        if np.isfinite(chance):
            bar.ax.axhline(chance, color="black", linewidth=1)
            note: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 6}
            bar.ax.annotate("95 % by chance", (0, chance), (-3, 0), **note)
        classes = int(min((rows[0].count > 0).sum(), (columns[0].count > 0).sum()))
        why = f"{classes} classes, and it needs four" if classes < 4 else "no class moves the gates"
        blank = f"; blank: {why}" if np.isnan(matrix).any() else ""
        axes.set_title(f"Similarity of units{blank}")
        if b is not None:
            axes.set_ylabel(a.about.get("label", "first"))
            axes.set_xlabel(b.about.get("label", "second"))
    return figure


def redundancy_figure(statistics: ExcitationStatistics) -> Figure:
    """Top-1 error in % when a unit's gate is held at its mean, against the error of the net as it is (section 7.2)."""
    errors = statistics.about.get("redundancy")
    if not errors:
        raise ExcitationError("the redundancy of these units was not measured: run with --redundancy")
    names = [site.name for site in statistics.sites]
    with single(6.4, 1.4 + 0.24 * len(names)) as (figure, axes):
        y = np.arange(len(names))[::-1]
        change = np.array([errors[name] - errors[""] for name in names])
        colors = ["C1" if value > 0 else "C0" for value in change]
        axes.barh(y, change, height=0.5, color=colors)
        axes.scatter(change, y, s=22, color=colors, zorder=3)  # a change of nothing is seen as well
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(y, names)
        span = max(float(np.abs(change).max()), 0.5)
        axes.set_xlim(min(change.min(), 0) - 0.08 * span, max(change.max(), 0.5 * span) + 0.08 * span)
        axes.set_xlabel("change of the top-1 error in percentage points")
        axes.set_title(f"Each unit's gate held at its mean ({errors['']:.2f} % error as it is)")
        axes.grid(axis="y", visible=False)
    return figure


def training_figure(labelled: Sequence[tuple[float, ExcitationStatistics]]) -> Figure:
    """How units change over training: selectivity, saturation and spread of the gates by epoch, a line a stage.

    Args:
        labelled: Statistics of several checkpoints of one trial, by epoch.
    """
    labelled = sorted(labelled, key=lambda one: one[0])
    sites = labelled[0][1].sites
    epochs = [epoch for epoch, _ in labelled]
    with grid(1, 3, 9.6, 3.4) as (figure, panels):
        for number, stage in enumerate(dict.fromkeys(site.stage for site in sites)):
            names = [site.name for site in sites if site.stage == stage]
            rows = [[_summary(statistics.unit(name)) for name in names] for _, statistics in labelled]
            values = np.array(rows).mean(1)
            for axes, column in zip(panels, values.T, strict=True):
                style = line_style(number) | {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
                axes.plot(epochs, column, **style, label=f"stage {stage}")
        titles = ("variance between classes, ω² in %", "saturated gates, %", "standard deviation of gates")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            axes.locator_params(axis="x", integer=True)
        legend_above(figure, panels[0])
    return figure


def _lowest(statistics: ExcitationStatistics) -> float:
    return float(statistics.minimum.min())


def _summary(unit: UnitStatistics) -> tuple[float, float, float]:
    between, within = measures.variances(unit)
    saturated = 100 * float(np.nansum(measures.saturation(unit)))
    return 100 * measures.unit_variance_explained(unit), saturated, float(np.sqrt(between + within).mean())


def _selectivity(unit: UnitStatistics) -> tuple[float, float]:
    return 100 * measures.unit_variance_explained(unit), float(measures.selectivity_index(unit).mean())


def _by_label(labelled: Labelled) -> dict[str, list[ExcitationStatistics]]:
    found: dict[str, list[ExcitationStatistics]] = {}
    for label, statistics in labelled:
        found.setdefault(label, []).append(statistics)
    return found
