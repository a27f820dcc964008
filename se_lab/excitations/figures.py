"""Charts of one net's excitations, the SE paper's Figures 6 and 7 among them; `report.figures.image` draws them."""

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
"""Channels of a panel of Figure 6."""
_CLASSES = 12  # classes whose lines can be told apart in a panel
_NAMED = 30  # classes that a matrix names along its sides


def papers_units(sites: Sequence[GateSite]) -> list[str]:
    """Return the units that Figures 6 and 7 show: the last of each stage, and the last three of the last stage.

    For SE-ResNet-50 these are the paper's SE_2_3, SE_3_4, SE_4_6, SE_5_1, SE_5_2 and SE_5_3.
    """
    last_stage = max(site.stage for site in sites)
    stages = dict.fromkeys(site.stage for site in sites)
    stage_units = [[site.name for site in sites if site.stage == stage] for stage in stages]
    ends = [names[-3:] if stage == last_stage else names[-1:] for stage, names in zip(stages, stage_units, strict=True)]
    return [name for names in ends for name in names]


def activations(statistics: ExcitationStatistics, classes: Sequence[int], units: Sequence[str] | None = None) -> Chart:
    """Chart Figure 6: the mean gate of fifty uniformly sampled channels, a line a class and one for the mean of all.

    Raises:
        ExcitationError: for a class that has no image.
        SpecError: for a unit the net has not got.
    """
    first_classes = classes[:_CLASSES]

    def series(unit: UnitStatistics, channels: NDArray[np.intp]) -> list[Series]:
        x, count = channels.astype(float), int((unit.count > 0).sum())
        mean = measures.mean_of_classes(unit)[channels]
        # wide and light below the classes, which it would hide where they agree
        lines = [Series(x, mean, f"all ({count} classes)", "#b8b8b8", dash="solid", width=4, front=-1)]
        for number, label in enumerate(first_classes):
            color, dash = line_look(number)
            values = _of_class(unit, statistics, label).mean[label][channels]
            name = class_label(statistics.classes[label])
            lines.append(Series(x, values, name, color, dash=dash, width=1.2))
        return lines

    note = "Mean gate of sampled channels, as in the SE paper's Figure 6."
    if len(classes) > len(first_classes):
        note += f" The first {len(first_classes)} of {len(classes)} classes."
    return _by_channel("figure_6", "Mean gates by class", note, "mean gate", _units(statistics, units), series)


def deviations(statistics: ExcitationStatistics, classes: Sequence[int], units: Sequence[str] | None = None) -> Chart:
    """Chart Figure 7: mean ± one standard deviation of the gates within a class, over its images; fifty channels.

    The paper shows two classes; so does this figure, the first two of those given.
    """

    def series(unit: UnitStatistics, channels: NDArray[np.intp]) -> list[Series]:
        lines, x = [], channels.astype(float)
        for number, label in enumerate(classes[:2]):
            class_unit = _of_class(unit, statistics, label)
            mean, std = class_unit.mean[label][channels], class_unit.std[label][channels]
            color, dash = line_look(number)
            name = f"{class_label(statistics.classes[label])}, mean ± std"
            lines.append(Series(x, mean, name, color, dash=dash, width=1.2, low=mean - std, high=mean + std))
        return lines

    note = "Mean ± one standard deviation over the images of a class, as in the SE paper's Figure 7."
    return _by_channel("figure_7", "Gates within a class", note, "gate", _units(statistics, units), series)


def distribution(statistics: ExcitationStatistics) -> Chart:
    """Chart ridgelines: how the gates of each unit are distributed over all images and channels, stage by stage."""
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
    note = "Over all images and channels; each unit is scaled to its own peak."
    return Chart("distribution", "Distribution of gates", note, [panel], rows=len(units) + 1.2)


def class_similarity(statistics: ExcitationStatistics, units: Sequence[str] | None = None) -> Chart:
    """Chart how alike classes excite a unit: correlation of class means over channels, classes in clusters."""
    unit_statistics = _units(statistics, units)
    matrices = [measures.class_similarity(unit) for unit in unit_statistics]
    # The scale never narrows to rounding errors, as it would where a unit's gates are the same for all classes.
    low = min(0.9, *(float(np.min(matrix, initial=1.0, where=~np.isnan(matrix))) for matrix, _ in matrices))
    panels = []
    for unit, (matrix, order) in zip(unit_statistics, matrices, strict=True):
        show_names = len(order) <= _NAMED
        names = [class_label(statistics.classes[label]) for label in order] if show_names else []
        ticks = list(enumerate(names))
        label = "" if show_names else f"{len(order)} classes, in clusters"
        limits = (-0.5, len(order) - 0.5)
        x_axis, y_axis = Axis(label, limits, ticks=ticks, names=True), Axis("", limits[::-1], ticks=ticks, names=True)
        cells = Cells(matrix, "correlation of class means", low=low, high=1.0, dark_high=True)
        panels.append(Panel(x_axis, y_axis, cells=cells, title=unit.site.name))
    note = "Classes that excite a unit alike stand together."
    return Chart("class_similarity", "Similarity of classes by unit", note, panels, columns=3)


def sampled_channels(site: GateSite) -> NDArray[np.intp]:
    """Return fifty uniformly sampled channels of a unit, rising, the same for every net; all where there are fewer."""
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
    """Return panels of lines over the channels of units, with one vertical range, so that they can be compared."""
    panels = []
    for unit in units:
        channels = sampled_channels(unit.site)
        axis = Axis(f"channel ({len(channels)} of {unit.site.channels})", (-1.0, float(unit.site.channels)), whole=True)
        panels.append(Panel(axis, series=series(unit, channels), title=unit.site.name))
    lines = [line for panel in panels for line in panel.series]
    limits = span(*(part for line in lines for part in (line.y, line.low, line.high) if part is not None))
    return Chart(key, title, note, [replace(panel, y=Axis(label, limits)) for panel in panels], columns=3)


def _of_class(unit: UnitStatistics, statistics: ExcitationStatistics, label: int) -> UnitStatistics:
    if not unit.count[label]:
        raise ExcitationError(
            f"there is no image of class {statistics.classes[label]!r} among the {statistics.images} that were run"
        )
    return unit


def _units(statistics: ExcitationStatistics, names: Sequence[str] | None) -> list[UnitStatistics]:
    site_names = [site.name for site in statistics.sites]
    for name in names or ():
        check_choice("unit", name, site_names)
    return [statistics.unit(name) for name in names or papers_units(statistics.sites)]
