"""Figures of excitations, the SE paper's 6 and 7 among them: functions from statistics to a Matplotlib figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from se_lab.excitations import measures
from se_lab.excitations.capture import ExcitationError, GateSite
from se_lab.excitations.images import class_label
from se_lab.excitations.statistics import ExcitationStatistics, UnitStatistics
from se_lab.report.figures.canvas import STYLE, legend_outside
from se_lab.spec import check_choice, seed_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANNELS = 50
"""Channels of a panel of Figure 6."""
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_NAMED = 12  # classes that a matrix names along its sides


def papers_units(sites: Sequence[GateSite]) -> list[str]:
    """Return the units that Figures 6 and 7 show: the last of each stage, and the last three of the last stage.

    For SE-ResNet-50 these are the paper's SE_2_3, SE_3_4, SE_4_6, SE_5_1, SE_5_2 and SE_5_3.
    """
    last_stage = max(site.stage for site in sites)
    stages = dict.fromkeys(site.stage for site in sites)
    chosen = [[site.name for site in sites if site.stage == stage] for stage in stages]
    ends = [names[-3:] if stage == last_stage else names[-1:] for stage, names in zip(stages, chosen, strict=True)]
    return [name for names in ends for name in names]


def activation_figure(
    statistics: ExcitationStatistics, classes: Sequence[int], units: Sequence[str] | None = None
) -> Figure:
    """Figure 6: the mean gate of fifty uniformly sampled channels, a line a class and one for the mean of all.

    Raises:
        ExcitationError: for a class that has no image.
        SpecError: for a unit the net has not got.
    """
    with unit_panels(_units(statistics, units)) as (figure, panels):
        for axes, unit in panels:
            channels = sampled_channels(unit.site)
            x = np.arange(len(channels))
            for number, label in enumerate(classes):
                values = _of_class(unit, statistics, label).mean[label]
                axes.plot(x, values[channels], **line_style(number), label=class_label(statistics.classes[label]))
            mean = measures.mean_of_classes(unit)[channels]
            # wide and light below the classes, which it would hide where they agree
            axes.plot(
                x, mean, color="0.72", linewidth=4, zorder=1.5, label=f"all ({int((unit.count > 0).sum())} classes)"
            )
            axes.set_title(unit.site.name)
            number_channels(axes, channels, unit.site.channels)
            axes.set_ylabel("mean gate")
        share_range(axes for axes, _ in panels)
        legend_above(figure, panels[0][0])
    return figure


def deviation_figure(
    statistics: ExcitationStatistics, classes: Sequence[int], units: Sequence[str] | None = None
) -> Figure:
    """Figure 7: mean ± one standard deviation of the gates within a class, over its images; fifty channels.

    The paper shows two classes; so does this figure, the first two of those given.
    """
    with unit_panels(_units(statistics, units)) as (figure, panels):
        for axes, unit in panels:
            channels = sampled_channels(unit.site)
            x = np.arange(len(channels))
            for number, label in enumerate(classes[:2]):
                of = _of_class(unit, statistics, label)
                mean, std = of.mean[label][channels], of.std[label][channels]
                axes.plot(x, mean, **line_style(number), label=f"{class_label(statistics.classes[label])}, mean ± std")
                axes.fill_between(x, mean - std, mean + std, color=f"C{number}", alpha=0.25, linewidth=0)
            axes.set_title(unit.site.name)
            number_channels(axes, channels, unit.site.channels)
            axes.set_ylabel("gate")
        share_range(axes for axes, _ in panels)
        legend_above(figure, panels[0][0])
    return figure


def distribution_figure(statistics: ExcitationStatistics) -> Figure:
    """Ridgelines: how the gates of each unit are distributed over all images and channels, stage by stage."""
    units = _units(statistics, [site.name for site in statistics.sites])
    stages = list(dict.fromkeys(unit.site.stage for unit in units))
    with single(6.4, 1.6 + 0.34 * len(units)) as (figure, axes):
        for row, unit in enumerate(reversed(units)):
            x, y = measures.density(unit)
            color = f"C{stages.index(unit.site.stage) % 6}"
            height = row + 1.6 * y / max(y.max(), 1e-9)
            axes.fill_between(x, row, height, color=color, alpha=0.55, linewidth=0, zorder=len(units) - row)
            axes.plot(x, height, color=color, linewidth=1, zorder=len(units) - row)
        axes.set_yticks(range(len(units)), [unit.site.name for unit in reversed(units)])
        axes.set_xlabel("gate")
        axes.set_title("Distribution of gates (each scaled to its own peak)")
        axes.grid(axis="y", visible=False)
    return figure


def class_similarity_figure(statistics: ExcitationStatistics, units: Sequence[str] | None = None) -> Figure:
    """How alike classes excite a unit: correlation of class means over channels, classes in clusters."""
    import matplotlib

    with unit_panels(_units(statistics, units), height=2.9) as (figure, panels):
        found = [measures.class_similarity(unit) for _, unit in panels]
        # The scale never narrows to rounding errors, as it would where a unit's gates are the same for all classes.
        low = min(0.9, *(float(np.min(matrix, initial=1.0, where=~np.isnan(matrix))) for matrix, _ in found))
        image: Any = None
        for (axes, unit), (matrix, order) in zip(panels, found, strict=True):
            image = axes.imshow(matrix, vmin=low, vmax=1, interpolation="nearest")
            axes.set_title(unit.site.name)
            axes.grid(visible=False)
            if len(order) <= _NAMED:
                names = [class_label(statistics.classes[label]) for label in order]
                axes.set_xticks(range(len(order)), names, rotation=90 if max(map(len, names)) > 2 else 0)
                axes.set_yticks(range(len(order)), names)
            else:
                axes.set_xlabel(f"{len(order)} classes, in clusters")
                axes.set_xticks([])
                axes.set_yticks([])
        with matplotlib.rc_context(fname=STYLE):
            figure.colorbar(image, ax=[axes for axes, _ in panels], shrink=0.7, label="correlation of class means")
    return figure


def sampled_channels(site: GateSite) -> NDArray[np.intp]:
    """Return fifty uniformly sampled channels of a unit, rising, the same for every net; all where there are fewer."""
    rng = np.random.default_rng(seed_of("channels", site.name))
    count = min(CHANNELS, site.channels)
    return np.sort(rng.choice(site.channels, count, replace=False))


def _of_class(unit: UnitStatistics, statistics: ExcitationStatistics, label: int) -> UnitStatistics:
    if not unit.count[label]:
        raise ExcitationError(
            f"there is no image of class {statistics.classes[label]!r} among the {statistics.images} that were run"
        )
    return unit


def _units(statistics: ExcitationStatistics, names: Sequence[str] | None) -> list[UnitStatistics]:
    every = [site.name for site in statistics.sites]
    for name in names or ():
        check_choice("unit", name, every)
    return [statistics.unit(name) for name in names or papers_units(statistics.sites)]


def line_style(number: int) -> dict[str, Any]:
    """Return the colour and dashes of the line of that number."""
    return {"color": f"C{number % 6}", "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.2}


def number_channels(axes: Axes, channels: NDArray[np.intp], of: int) -> None:
    """Write the numbers of the channels shown along the horizontal axis, where they stand one beside the other."""
    ticks = range(0, len(channels), max(1, -(-len(channels) // 6)))
    axes.set_xticks(ticks, [str(channels[tick]) for tick in ticks])
    axes.set_xlabel(f"channel ({len(channels)} of {of})")


def share_range(panels: Iterable[Axes]) -> None:
    """Give panels one vertical range, so that they can be compared."""
    every = list(panels)
    low, high = zip(*(axes.get_ylim() for axes in every), strict=True)
    for axes in every:
        axes.set_ylim(min(low), max(high))


def name_units(axes: Axes, names: Sequence[str]) -> None:
    """Write unit names along the horizontal axis."""
    axes.set_xticks(range(len(names)), names, rotation=90)


def legend_above(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Put the legend above the panels, outside of all of them."""
    legend_outside(figure, axes, "upper left", 6, title=title, alignment="left")


@contextmanager
def unit_panels(
    units: Sequence[UnitStatistics], height: float = 2.3
) -> Iterator[tuple[Figure, list[tuple[Axes, UnitStatistics]]]]:
    """Open a figure with one panel a unit, up to three in a row."""
    columns = min(3, len(units))
    rows = -(-len(units) // columns)
    with grid(rows, columns, 3.2 * columns + 0.4, height * rows + 0.5) as (figure, axes):
        for spare in axes[len(units) :]:
            spare.remove()
        yield figure, list(zip(axes, units, strict=False))


@contextmanager
def single(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure (inches) with one pair of axes."""
    with grid(1, 1, width, height) as (figure, axes):
        yield figure, axes[0]


@contextmanager
def grid(rows: int, columns: int, width: float, height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure of its own, drawn in the package's style."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)
