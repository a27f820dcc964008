"""Charts of one net's excitations, including the SE paper's Figures 6 and 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from se_lab.excitations import measures
from se_lab.excitations.capture import ExcitationError, GateSite
from se_lab.excitations.images import class_label
from se_lab.excitations.statistics import ExcitationStatistics, UnitStatistics
from se_lab.report.figures.chart import COLORS, Axis, Cells, Chart, Panel, Series, line_look, span
from se_lab.spec import check_choice, seed_of

CHANNELS = 50
"""Number of channels in a panel of Figure 6."""
_CLASSES = 12  # maximum number of lines in a panel
_NAMED = 30  # maximum number of classes whose names are shown beside a matrix


def paper_units(sites: Sequence[GateSite]) -> list[str]:
    """Return the units of Figures 6 and 7: the last of each stage, and three of the last stage.

    For SE-ResNet-50, these are SE_2_3, SE_3_4, SE_4_6, SE_5_1, SE_5_2 and SE_5_3, as in the paper.
    """
    last_stage = max(site.stage for site in sites)
    stages = dict.fromkeys(site.stage for site in sites)
    stage_units = [[site.name for site in sites if site.stage == stage] for stage in stages]
    ends = [names[-3:] if stage == last_stage else names[-1:] for stage, names in zip(stages, stage_units, strict=True)]
    return [name for names in ends for name in names]


def activations(statistics: ExcitationStatistics, classes: Sequence[int], units: Sequence[str] | None = None) -> Chart:
    """Chart the mean gate of fifty random channels by class, and over all classes (Figure 6).

    Raises:
        ExcitationError: for a class without images.
        SpecError: for a unit that the net does not have.
    """
    first_classes = classes[:_CLASSES]

    def series(unit: UnitStatistics, channels: NDArray[np.intp]) -> list[Series]:
        x, count = channels.astype(float), int((unit.count > 0).sum())
        mean = measures.mean_of_classes(unit)[channels]
        # A wide, light line below those of the classes, so that equal lines remain visible.
        lines = [Series(x, mean, f"all ({count} classes)", "#b8b8b8", dash="solid", width=4, front=-1)]
        for number, label in enumerate(first_classes):
            color, dash = line_look(number)
            values = _check_class(unit, statistics, label).mean[label][channels]
            name = class_label(statistics.classes[label])
            lines.append(Series(x, values, name, color, dash=dash, width=1.2))
        return lines

    note = "Mean gate of sampled channels, as in the SE paper's Figure 6."
    if len(classes) > len(first_classes):
        note += f" The first {len(first_classes)} of {len(classes)} classes."
    return _by_channel("figure_6", "Mean gates by class", note, "mean gate", _units(statistics, units), series)


def deviations(statistics: ExcitationStatistics, classes: Sequence[int], units: Sequence[str] | None = None) -> Chart:
    """Chart mean ± one standard deviation of fifty channels' gates within a class (Figure 7).

    As in the paper, the figure shows two classes: the first two of `classes`.
    """

    def series(unit: UnitStatistics, channels: NDArray[np.intp]) -> list[Series]:
        lines, x = [], channels.astype(float)
        for number, label in enumerate(classes[:2]):
            class_unit = _check_class(unit, statistics, label)
            mean, std = class_unit.mean[label][channels], class_unit.std[label][channels]
            color, dash = line_look(number)
            name = f"{class_label(statistics.classes[label])}, mean ± std"
            lines.append(Series(x, mean, name, color, dash=dash, width=1.2, low=mean - std, high=mean + std))
        return lines

    note = "Mean ± one standard deviation over the images of a class, as in the SE paper's Figure 7."
    return _by_channel("figure_7", "Gates within a class", note, "gate", _units(statistics, units), series)


def distribution(statistics: ExcitationStatistics) -> Chart:
    """Chart the density of each unit's gates over all images and channels, as ridgelines."""
    units = _units(statistics, [site.name for site in statistics.sites])
    stages = list(dict.fromkeys(unit.site.stage for unit in units))
    series, named_stages = [], set()
    for row, unit in zip(range(len(units) - 1, -1, -1), units, strict=True):
        x, y = measures.density(unit)
        stage = unit.site.stage
        height = row + 1.6 * y / max(y.max(), 1e-9)
        name = "" if stage in named_stages else f"stage {stage}"
        named_stages.add(stage)
        color = COLORS[stages.index(stage) % len(COLORS)]
        low = np.full_like(height, row)
        series.append(
            Series(x, height, name, color, dash="solid", width=1, low=low, high=height, front=len(units) - row)
        )
    ticks = [(row, unit.site.name) for row, unit in enumerate(reversed(units))]
    y_axis = Axis(limits=(-0.3, len(units) + 0.9), ticks=ticks, names=True)
    panel = Panel(Axis("gate", span(*(line.x for line in series), margin=0.03)), y_axis, series)
    note = "All images and channels; the peaks of all units have the same height."
    return Chart("distribution", "Distribution of gates", note, [panel], rows=len(units) + 1.2)


def class_similarity(statistics: ExcitationStatistics, units: Sequence[str] | None = None) -> Chart:
    """Chart the correlation of class means over channels for each unit, with clustered classes."""
    unit_statistics = _units(statistics, units)
    matrices = [measures.class_similarity(unit) for unit in unit_statistics]
    # A minimum range avoids showing rounding errors of units with the same gates for all classes.
    low = min(0.9, *(float(np.min(matrix, initial=1.0, where=~np.isnan(matrix))) for matrix, _ in matrices))
    panels = []
    for unit, (matrix, order) in zip(unit_statistics, matrices, strict=True):
        show_names = len(order) <= _NAMED
        names = [class_label(statistics.classes[label]) for label in order] if show_names else []
        ticks = list(enumerate(names))
        label = "" if show_names else f"{len(order)} classes, clustered"
        limits = (-0.5, len(order) - 0.5)
        x_axis, y_axis = Axis(label, limits, ticks=ticks, names=True), Axis("", limits[::-1], ticks=ticks, names=True)
        cells = Cells(matrix, "correlation of class means", low=low, high=1.0, dark_high=True)
        panels.append(Panel(x_axis, y_axis, cells=cells, title=unit.site.name))
    note = "Classes are clustered by similarity."
    return Chart("class_similarity", "Similarity of classes by unit", note, panels, columns=3)


def sampled_channels(site: GateSite) -> NDArray[np.intp]:
    """Return up to fifty random channels of a unit, sorted, the same for every net."""
    rng = np.random.default_rng(seed_of("channels", site.name))
    count = min(CHANNELS, site.channels)
    return np.sort(rng.choice(site.channels, count, replace=False))


def _by_channel(
    key: str,
    title: str,
    note: str,
    label: str,
    units: Sequence[UnitStatistics],
    series: Callable[[UnitStatistics, NDArray[np.intp]], list[Series]],
) -> Chart:
    """Return a chart with a panel of lines over channels for each unit, on a common scale."""
    panels = []
    for unit in units:
        channels = sampled_channels(unit.site)
        axis = Axis(f"channel ({len(channels)} of {unit.site.channels})", (-1.0, float(unit.site.channels)), whole=True)
        panels.append(Panel(axis, series=series(unit, channels), title=unit.site.name))
    lines = [line for panel in panels for line in panel.series]
    limits = span(*(part for line in lines for part in (line.y, line.low, line.high) if part is not None))
    return Chart(key, title, note, [replace(panel, y=Axis(label, limits)) for panel in panels], columns=3)


def _check_class(unit: UnitStatistics, statistics: ExcitationStatistics, label: int) -> UnitStatistics:
    if not unit.count[label]:
        raise ExcitationError(f"none of the {statistics.images} images is of class {statistics.classes[label]!r}")
    return unit


def _units(statistics: ExcitationStatistics, names: Sequence[str] | None) -> list[UnitStatistics]:
    site_names = [site.name for site in statistics.sites]
    for name in names or ():
        check_choice("unit", name, site_names)
    return [statistics.unit(name) for name in names or paper_units(statistics.sites)]
