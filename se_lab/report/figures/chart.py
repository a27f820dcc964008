"""What a figure shows, apart from how it is drawn: points, lines, cells and axes in the units of the data.

A chart holds the values themselves, never positions on paper: `image` draws it with Matplotlib, `page` for Plotly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Scale = Literal["linear", "log", "symlog"]
Tick = tuple[float, str]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's, which the colour-blind can tell apart; charts add markers, dashes or names, so none needs colour."""
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Axis:
    """An axis: what it measures, its range, and the ticks where they are not round numbers of the range."""

    label: str = ""
    limits: tuple[float, float] | None = None
    scale: Scale = "linear"
    ticks: Sequence[Tick] | None = None
    names: bool = False
    """The ticks are names, which may be long: they are wrapped, numbered or thinned to fit."""
    whole: bool = False
    """Only whole numbers are ticks."""
    visible: bool = True


@dataclass(frozen=True)
class Series:
    """Points (N,), a line through them, or both, with the half-widths of their intervals or a band."""

    x: Floats
    y: Floats
    name: str = ""
    """Its name in the legend; without one it is not listed."""
    color: str = "#000000"
    marker: str = ""
    """Of MARKERS, or tick; without one there are no points, only the line."""
    size: float = 6.0
    """Of the markers, in points at the base font size."""
    dash: str = ""
    """Of DASHES; without one the points are not joined."""
    width: float = 1.5
    hollow: NDArray[np.bool_] | None = None
    """(N,) which markers are white inside."""
    x_half: Floats | None = None
    y_half: Floats | None = None
    """(N,) half-widths of the intervals along an axis, or (2, N) below and above; NaN for none."""
    low: Floats | None = None
    high: Floats | None = None
    """(N,) bounds of the band around a line."""
    bars: bool = False
    """Horizontal bars from 0 to x at the heights y."""
    alpha: float = 1.0
    hover: Sequence[str] = ()
    """(N,) the hover text of each point, its first line a heading; a single text is for every point."""
    keys: Sequence[tuple[int, int]] = ()
    """(N,) the variant and the trial behind each point, −1 for none; a single pair is for the whole line."""
    hidden: bool = False
    """A page shows it only when it is asked for."""
    front: int = 0
    """The drawing order: higher numbers lie on top."""
    pareto: int = 0
    """1 or −1 for a Pareto front where low or high values are better; a page draws that of its visible points."""


@dataclass(frozen=True)
class Cells:
    """A matrix: values (R, C), drawn row by row from the top, with the texts in its cells."""

    values: Floats
    label: str
    """What the values measure, beside the colour key."""
    texts: Sequence[Sequence[str]] = ()
    low: float | None = None
    high: float | None = None
    """Ends of the colour key; by default those of the values."""
    dark_high: bool = False
    """High values are dark, as where they are better; signed values have a diverging map instead."""
    hover: Sequence[Sequence[str]] = ()
    keys: Sequence[Sequence[tuple[int, int]]] = ()
    mark: tuple[float, str] | None = None
    """A value that the colour key marks, and why."""
    part: float = 1.0
    """Share of the map that is used; lines leave out its lightest part, which is hard to see on white."""

    @property
    def range(self) -> tuple[float, float]:
        """Ends of the colour key; around 0 where values have both signs, so that the map's middle is 0."""
        values = self.values[np.isfinite(self.values)]
        low = self.low if self.low is not None else float(values.min(initial=np.inf))
        high = self.high if self.high is not None else float(values.max(initial=-np.inf))
        if not low <= high:  # no value at all
            return 0.0, 1.0
        if low < 0 < high:
            return -max(-low, high), max(-low, high)
        return low, high

    @property
    def signed(self) -> bool:
        """Whether the values have both signs."""
        low, high = self.range
        return low < 0 < high

    @property
    def colors(self) -> list[str]:
        """Colours from low to high, of a diverging map for values of both signs."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        name = "RdBu_r" if self.signed else "cividis_r" if self.dark_high else "cividis"
        ends = (0.0, 1.0) if self.signed else (1 - self.part, 1.0) if self.dark_high else (0.0, self.part)
        return [to_hex(color) for color in colormaps[name](np.linspace(*ends, 64))]

    def color_of(self, values: Floats) -> list[str]:
        """Return the colour of each value (N,)."""
        low, high = self.range
        places = np.nan_to_num((values - low) / ((high - low) or 1.0))
        return [self.colors[int(place)] for place in np.rint(np.clip(places, 0, 1) * 63)]


@dataclass(frozen=True)
class Text:
    """A text at a point of the panel; `aside` ones stand at the right edge of the panel, at the height y."""

    x: float
    y: float
    text: str
    aside: bool = False
    variant: int = -1
    """The variant that it belongs to, −1 for none."""


@dataclass(frozen=True)
class Panel:
    """A pair of axes with what is in it."""

    x: Axis = Axis()
    y: Axis = Axis()
    series: Sequence[Series] = ()
    cells: Cells | None = None
    title: str = ""
    names: Sequence[Text] = ()
    """Names of points, each put where there is room near its point."""
    texts: Sequence[Text] = ()
    lines: Floats = field(default_factory=lambda: np.empty((0, 2)))
    """(L, 2) corners of a line that names should not cross where possible."""
    zero: Literal["", "x", "y"] = ""
    """The axis whose 0 is marked by a line."""


@dataclass(frozen=True)
class Chart:
    """A figure: panels with a title and a note on the meaning of points and intervals and on omissions."""

    key: str
    """Its name, that of its files too."""
    title: str
    note: str
    panels: Sequence[Panel]
    columns: int = 1
    """Panels in a row where there is room."""
    rows: float = 0.0
    """Height of a panel in rows of text; 0 for that of a plot."""
    color_key: Cells | None = None
    """Lines whose colour stands for a value have its key beside the panels."""
    legend: str = ""
    """Title of the legend."""
    choice: str = ""
    """Its label on a page among the charts of one kind."""

    @property
    def heading(self) -> str:
        """The title with its first letter in upper case."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def description(self) -> str:
        """The figure in words, for readers who cannot see it."""
        panel = self.panels[0]
        axes = [f"{name}: {axis.label}." for name, axis in (("Across", panel.x), ("Up", panel.y)) if axis.label]
        cells = [f"Colour: {panel.cells.label}."] if panel.cells else []
        count_text = [f"{len(self.panels)} panels: {', '.join(p.title for p in self.panels)}."] * (len(self.panels) > 1)
        series_names = list(dict.fromkeys(s.name for p in self.panels for s in p.series if s.name))
        return " ".join(
            [self.note, *axes, *cells, *count_text, *([f"Shown: {', '.join(series_names)}."] if series_names else [])]
        )

    def strings(self) -> Iterator[str]:
        """Yield every text of the figure."""
        yield from (self.title, self.note, self.legend)
        for panel in self.panels:
            yield from (panel.title, panel.x.label, panel.y.label)
            yield from (text for axis in (panel.x, panel.y) for _, text in axis.ticks or ())
            yield from (series.name for series in panel.series)
            yield from (text.text for text in (*panel.names, *panel.texts))
            if panel.cells:
                yield panel.cells.label
                yield from (text for row in panel.cells.texts for text in row)


def line_look(number: int) -> tuple[str, str]:
    """Return colour and dashes of a line: no two of 36 are the same."""
    return COLORS[number % len(COLORS)], DASHES[(number + number // len(COLORS)) % len(DASHES)]


def point_look(number: int) -> tuple[str, str]:
    """Return colour and marker of a family; −1, a baseline that belongs to all of them, is black."""
    return (COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]) if number >= 0 else ("#000000", MARKERS[0])


def span(*values: ArrayLike, scale: Scale = "linear", margin: float = 0.06) -> tuple[float, float]:
    """Return the range of all finite values with a margin of that share on both sides; 0 to 1 for none."""
    numbers = np.concatenate([np.ravel(np.asarray(part, dtype=np.float64)) for part in values] or [np.empty(0)])
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return 0.0, 1.0
    low, high = float(numbers.min()), float(numbers.max())
    if scale == "log":
        ratio = (high / low) ** margin if high > low else 1.3
        return low / ratio, high * ratio
    room = margin * (high - low) if high > low else 0.05 * abs(high) or 0.5
    return low - room, high + room


def interval_limits(mean: Floats, half: Floats, points: Floats, unit: str = "") -> tuple[float, float]:
    """Return the range of an axis for means (N,) with intervals of ± half, (N,) or (2, N), and for single points.

    Intervals of two seeds can be a hundred times as long as all differences: the axis is cut off at three times
    the range of the points with the median interval, and where errors in %, or their differences in points, cannot be.
    """
    lower, upper = reach_of(half)
    reaches = np.append(lower, upper)
    median = float(np.median(reaches[reaches > 0])) if (reaches > 0).any() else 0.0
    core = span(mean - np.minimum(lower, median), mean + np.minimum(upper, median), points, margin=0.0)
    reach = core[1] - core[0]
    low, high = span(mean - lower, mean + upper, points, margin=0.08)
    low, high = max(low, core[0] - reach), min(high, core[1] + reach)
    if unit == "points":
        low, high = max(low, -100.0), min(high, 100.0)
    if unit == "%":
        room = 0.04 * (min(high, 100.0) - max(low, 0.0))  # for the marker of a point that stands on the edge
        low, high = max(low, -room), min(high, 100.0 + room)
    return low, high


def reach_of(half: Floats) -> Floats:
    """Return (2, N) how far intervals reach below and above their means, 0 where there is none."""
    return np.broadcast_to(np.nan_to_num(half), (2, half.shape[-1]))


def cut_intervals(series: Series, panel: Panel) -> Iterator[tuple[int, float, float, str]]:
    """Yield index, edge point (x, y) and side (left, right, below, above) of each interval that leaves the panel."""
    for half, axis, positions, sides in (
        (series.x_half, panel.x, series.x, ("left", "right")),
        (series.y_half, panel.y, series.y, ("below", "above")),
    ):
        if half is None or axis.limits is None:
            continue
        for sign, limit, side, reach in zip((-1, 1), axis.limits, sides, reach_of(half), strict=True):
            indices = np.flatnonzero(sign * (positions + sign * reach - limit) > 0)
            for i in map(int, indices):
                x, y = (limit, float(series.y[i])) if axis is panel.x else (float(series.x[i]), limit)
                yield i, x, y, side


def interval_ends(series: Series) -> tuple[Floats, Floats]:
    """Return the lower and upper ends of the intervals along y, (N, 2) each; the points where there are none."""
    lower, upper = reach_of(np.zeros(len(series.y)) if series.y_half is None else series.y_half)
    return np.column_stack([series.x, series.y - lower]), np.column_stack([series.x, series.y + upper])


def round_ticks(low: float, high: float, most: int = 5) -> list[Tick]:
    """Return up to `most` round numbers from low to high, written with the decimals that tell them apart."""
    if not high > low:
        return [(low, f"{low:g}")]
    for power in range(int(np.floor(np.log10(high - low))) - 2, 310):
        for step in (1.0, 2.0, 2.5, 5.0):
            size = step * 10.0**power
            first, last = int(np.ceil(low / size - 1e-9)), int(np.floor(high / size + 1e-9))
            if last - first < most:
                decimals = max(0, -power + (step == 2.5))
                return [(i * size, f"{i * size + 0.0:,.{decimals}f}".replace("-", "−")) for i in range(first, last + 1)]
    return []


def log_ticks(low: float, high: float) -> list[Tick]:
    """Return 1, 2 and 5 times powers of ten from low to high; round numbers where those would be fewer than three."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return [(tick, f"{tick:,.10g}") for tick in ticks]
    return round_ticks(low, high)
