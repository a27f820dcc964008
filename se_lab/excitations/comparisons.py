"""Charts that compare the excitations of units, checkpoints and variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from se_lab.excitations import measures
from se_lab.excitations.capture import ExcitationError
from se_lab.excitations.statistics import ExcitationStatistics, Floats, UnitStatistics, bin_edges
from se_lab.report.columns import MINUS
from se_lab.report.figures.chart import COLORS, MARKERS, Axis, Cells, Chart, Panel, Series, line_look, span

LabelledStatistics = Sequence[tuple[str, ExcitationStatistics]]
"""Pairs of a net's label and its statistics."""
_DECADES = tuple(step * 10.0**power for power in range(4) for step in (1, 2, 5))


def saturation(statistics: ExcitationStatistics) -> Chart:
    """Chart the percentage of each unit's gates near the bounds of its excitation.

    For ReLU, which has no upper bound, this is the percentage of zeros.
    """
    units = [statistics.unit(site.name) for site in statistics.sites]
    shares = 100 * np.nan_to_num([measures.saturation(unit) for unit in units])
    labels = measures.saturation_labels(units)
    rows = np.arange(len(units), dtype=float)
    bars = [
        Series(sign * share, rows, label, color, bars=True)
        for sign, share, label, color in zip((-1, 1), shares.T, labels, COLORS, strict=False)
    ]
    limit = max(float(shares.max()) * 1.1, 1.0)
    label = "gates in %" + ("" if shares.any() else " (none is saturated)")
    axis = Axis(label, (-limit, limit), ticks=[(tick, f"{abs(tick):g}") for tick in _around_zero(limit)])
    panel = Panel(axis, _unit_rows([unit.site.name for unit in units]), bars, zero="x")
    note = "All images and channels; left: near the lower bound, right: near the upper bound."
    return Chart("saturation", "Saturation of gates", note, [panel], rows=len(units))


def selectivity(pairs: LabelledStatistics) -> Chart:
    """Chart the class selectivity of units: variance between classes (ω²) and index.

    Nets with the same label, such as seeds of a variant, are shown by their mean and range. Dotted lines are the index
    expected by chance. The index is omitted for negative gates, such as those of tanh.
    """
    names = list(dict.fromkeys(site.name for _, statistics in pairs for site in statistics.sites))
    variance: list[Series] = []
    index: list[Series] = []
    for number, (label, nets) in enumerate(_by_label(pairs).items()):
        site_names = [site.name for site in nets[0].sites]
        units = [[net.unit(name) for name in site_names] for net in nets]
        line = Series(
            np.array([names.index(name) for name in site_names], dtype=float), np.empty(0), label, width=1.2, size=4
        )
        color, dash = line_look(number)
        line = replace(line, color=color, dash=dash, marker=MARKERS[number % len(MARKERS)])
        shares = np.array([[100 * measures.unit_variance_explained(unit) for unit in net] for net in units])
        variance.append(_with_range(line, shares))
        if min(_lowest(net) for net in nets) >= 0:
            values = np.array([[measures.selectivity_index(unit).mean() for unit in net] for net in units])
            chance = np.array([[measures.selectivity_without_classes(unit) for unit in net] for net in units]).mean(0)
            index += [_with_range(line, values), replace(line, y=chance, name="", dash="dot", marker="", width=1)]
    suffix = ", of gates ≥ 0" if len(index) < 2 * len(variance) else ""
    margin = max(0.5, 0.02 * len(names))  # leaves room for markers
    columns = replace(_unit_columns(names), limits=(-margin, len(names) - 1 + margin))
    panels = [
        Panel(columns, Axis(label, _from_zero(lines)), lines)
        for label, lines in (("variance between classes, ω² in %", variance), (f"selectivity index{suffix}", index))
        if lines
    ]
    remarks = dict.fromkeys(measures.few_images(net.count.cpu().numpy()) for _, net in pairs)
    note = "; ".join(["Dotted: index expected by chance"] * bool(index) + list(filter(None, remarks)))
    wide = len(names) > 25
    return Chart(
        "selectivity", "Class selectivity of units", f"{note}." if note else "", panels, columns=1 if wide else 2
    )


def overlay(pairs: LabelledStatistics) -> Chart:
    """Chart the density of gates in each stage, with a line per label.

    Nets with the same label are averaged. The range of a panel ends at the 99.9th percentile of gates, for ReLU.
    """
    stages = sorted({site.stage for _, statistics in pairs for site in statistics.sites})
    edges = bin_edges()
    lines: dict[int, list[Series]] = {stage: [] for stage in stages}
    reach: list[float] = []
    for stage in stages:
        for number, (label, nets) in enumerate(_by_label(pairs).items()):
            units = [s.unit(site.name) for s in nets for site in s.sites if site.stage == stage]
            if not units:
                continue
            counts = np.sum([unit.by_class.sum(0) for unit in units], axis=0)[:-1].astype(float)
            share = np.cumsum(counts) / counts.sum()
            reach += [float(edges[np.searchsorted(share, 0.001)]), float(edges[np.searchsorted(share, 0.999) + 1])]
            density = counts / counts.sum() / np.diff(edges)[:-1]
            x, y = np.repeat(edges[:-1], 2), np.concatenate([[0.0], np.repeat(density, 2), [0.0]])
            color, dash = line_look(number)
            lines[stage].append(Series(x, y, label, color, dash=dash, width=1.2))
    low, high = min(reach) - 0.02, max(reach) + 0.02
    ticks = [tick for tick in (-1.0, -0.5, 0.0, 0.5, *_DECADES[::3]) if low <= tick <= high]
    gate = Axis("gate", (low, high))
    if high > 2:  # for ReLU, a linear axis would compress the range from −1 to 1
        gate = Axis("gate (logarithmic above 1)", (low, high), "symlog", _plain(ticks))
    top = 1.1 * max(float(line.y.max()) for stage_lines in lines.values() for line in stage_lines)
    ticks = [tick for tick in (0.0, 0.5, *_DECADES) if tick <= top]
    density_axis = Axis("density (logarithmic above 1)", (0.0, top), "symlog", _plain(ticks))
    panels = [Panel(gate, density_axis, lines[stage], title=f"stage {stage}") for stage in stages]
    return Chart("distribution", "Distribution of gates by stage", "All images and channels.", panels, columns=4)


def unit_similarity(a: ExcitationStatistics, b: ExcitationStatistics | None = None) -> Chart:
    """Chart the similarity (debiased CKA) between the units of one net, or of two nets.

    A line on the colour bar marks the 95 % quantile for permuted classes.

    Raises:
        ExcitationError: for fewer than four classes, for which debiased CKA is not defined.
    """
    other = b or a
    rows = [a.unit(site.name) for site in a.sites]
    columns = [other.unit(site.name) for site in other.sites]
    classes = int(min((rows[0].count > 0).sum(), (columns[0].count > 0).sum()))
    if classes < 4:
        raise ExcitationError(f"the images have {classes} classes; the similarity of units needs at least 4")
    matrix = measures.unit_similarity(rows, columns)
    chance = measures.similarity_by_chance(rows, columns)
    mark = (chance, "95 % by chance") if np.isfinite(chance) else None
    cells = Cells(matrix, "debiased CKA of class means", low=-1.0, high=1.0, mark=mark)
    names = ("", "") if b is None else (a.about.get("label", "first"), b.about.get("label", "second"))
    ticks = [(place, unit.site.name) for place, unit in enumerate(rows)]
    panel = Panel(
        replace(_unit_columns([unit.site.name for unit in columns]), label=names[1]),
        Axis(names[0], (len(rows) - 0.5, -0.5), ticks=ticks, names=True),
        cells=cells,
    )
    note = "High for units that distinguish the same classes."
    if np.isnan(matrix).any():
        note = "Blank: the gates do not depend on the class."
    return Chart("unit_similarity", "Similarity of units", note, [panel], rows=1.15 * len(rows) + 3)


def redundancy(statistics: ExcitationStatistics) -> Chart:
    """Chart the change of the top-1 error with a unit's gate at its mean (section 7.2)."""
    errors = statistics.about.get("redundancy")
    if not errors:
        raise ExcitationError("the redundancy of units was not measured; run with --redundancy")
    names = [site.name for site in statistics.sites]
    change = np.array([errors[name] - errors[""] for name in names])
    rows = np.arange(len(names), dtype=float)
    series = []
    for color, mask in ((COLORS[1], change > 0), (COLORS[0], change <= 0)):
        if mask.any():
            bars = Series(change[mask], rows[mask], color=color, bars=True)
            series += [bars, replace(bars, bars=False, marker="circle", size=5, front=1)]  # shows a change of 0 too
    extent = max(float(np.abs(change).max()), 0.5)
    limits = (min(change.min(), 0) - 0.08 * extent, max(change.max(), 0.5 * extent) + 0.08 * extent)
    panel = Panel(Axis("change of the top-1 error in percentage points", limits), _unit_rows(names), series, zero="x")
    note = f"Top-1 error of the unchanged net: {errors['']:.2f} %."
    return Chart("redundancy", "Error with each unit's gate replaced by its mean", note, [panel], rows=len(names))


def training(pairs: Sequence[tuple[float, ExcitationStatistics]]) -> Chart:
    """Chart selectivity, saturation and standard deviation of gates over training, by stage.

    Args:
        pairs: Pairs of epoch and statistics, for several checkpoints of one trial.
    """
    pairs = sorted(pairs, key=lambda pair: pair[0])
    sites = pairs[0][1].sites
    epochs = np.array([epoch for epoch, _ in pairs], dtype=float)
    titles = ("variance between classes, ω² in %", "saturated gates, %", "standard deviation of gates")
    lines: list[list[Series]] = [[] for _ in titles]
    for number, stage in enumerate(dict.fromkeys(site.stage for site in sites)):
        names = [site.name for site in sites if site.stage == stage]
        rows = [[_summary(statistics.unit(name)) for name in names] for _, statistics in pairs]
        color, dash = line_look(number)
        for measure_lines, values in zip(lines, np.array(rows).mean(1).T, strict=True):
            marker = MARKERS[number % len(MARKERS)]
            measure_lines.append(Series(epochs, values, f"stage {stage}", color, marker, 4, dash, 1.2))
    epoch = Axis("epoch", span(epochs, margin=0.04), whole=True)
    panels = [
        Panel(epoch, Axis(title, _from_zero(series)), series) for title, series in zip(titles, lines, strict=True)
    ]
    return Chart("training", "Units over training", "Means over the units of a stage.", panels, columns=3)


def _unit_rows(names: Sequence[str]) -> Axis:
    """Return a vertical axis with the names of units, from top to bottom."""
    return Axis(limits=(len(names) - 0.4, -0.6), ticks=list(enumerate(names)), names=True)


def _unit_columns(names: Sequence[str]) -> Axis:
    """Return a horizontal axis with the names of units."""
    return Axis(limits=(-0.5, len(names) - 0.5), ticks=list(enumerate(names)), names=True)


def _around_zero(limit: float) -> list[float]:
    step = next(
        step for step in sorted(base * 10.0**power for base in (1, 2, 5) for power in range(-2, 3)) if step * 3 >= limit
    )
    return [float(tick) for tick in np.arange(-3, 4) * step if abs(tick) <= limit]


def _plain(ticks: Sequence[float]) -> list[tuple[float, str]]:
    return [(tick, f"{tick:g}".replace("-", MINUS)) for tick in ticks]


def _from_zero(lines: Sequence[Series]) -> tuple[float, float]:
    """Return the range of lines and their bands, including 0."""
    return span([0.0], *(part for line in lines for part in (line.y, line.low, line.high) if part is not None))


def _with_range(line: Series, values: Floats) -> Series:
    """Return a line with the mean of values (nets, units) over nets, and a band of the range."""
    has_range = len(values) > 1
    return replace(
        line, y=values.mean(0), low=values.min(0) if has_range else None, high=values.max(0) if has_range else None
    )


def _lowest(statistics: ExcitationStatistics) -> float:
    return float(statistics.minimum.min())


def _summary(unit: UnitStatistics) -> tuple[float, float, float]:
    between, within = measures.variances(unit)
    saturated = 100 * float(np.nansum(measures.saturation(unit)))
    return 100 * measures.unit_variance_explained(unit), saturated, float(np.sqrt(between + within).mean())


def _by_label(pairs: LabelledStatistics) -> dict[str, list[ExcitationStatistics]]:
    nets: dict[str, list[ExcitationStatistics]] = {}
    for label, statistics in pairs:
        nets.setdefault(label, []).append(statistics)
    return nets
