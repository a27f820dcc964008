"""The content of a figure: points, lines, cells and axes, in the units of the data.

`image` draws a chart with Matplotlib, `page` converts it for Plotly.
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
"""Colours of Okabe and Ito, safe for colour-blind readers; charts also use markers, dashes or names."""
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Axis:
    """An axis: label, range, scale, and ticks (by default round numbers)."""

    label: str = ""
    limits: tuple[float, float] | None = None
    scale: Scale = "linear"
    ticks: Sequence[Tick] | None = None
    names: bool = False
    """Ticks are names, which may be wrapped, numbered or omitted to fit."""
    whole: bool = False
    """Ticks are integers."""
    visible: bool = True


@dataclass(frozen=True)
class Series:
    """N points, a line through them, or both, with intervals or a band."""

    x: Floats
    y: Floats
    name: str = ""
    """Name in the legend; empty to omit the series."""
    color: str = "#000000"
    marker: str = ""
    """One of MARKERS, or tick; empty for a line without markers."""
    size: float = 6.0
    """Size of markers in points, at the base font size."""
    dash: str = ""
    """One of DASHES; empty for points without a line."""
    width: float = 1.5
    hollow: NDArray[np.bool_] | None = None
    """Whether each marker is hollow, (N,)."""
    x_half: Floats | None = None
    y_half: Floats | None = None
    """Half-widths of intervals, (N,), or lengths below and above, (2, N); NaN without an interval."""
    low: Floats | None = None
    high: Floats | None = None
    """Bounds of a band around the line, (N,)."""
    bars: bool = False
    """Draw horizontal bars from 0 to x at heights y."""
    alpha: float = 1.0
    hover: Sequence[str] = ()
    """Hover text of each point, (N,), starting with a heading; or one text for all points."""
    keys: Sequence[tuple[int, int]] = ()
    """Variant and trial of each point, (N,), −1 for none; or one pair for the whole line."""
    hidden: bool = False
    """On a page, show the series only if it is selected in the legend."""
    front: int = 0
    """Drawing order; series with higher numbers are on top."""
    pareto: int = 0
    """1 or −1 for a Pareto front where lower or higher is better, which a page updates for visible points."""


@dataclass(frozen=True)
class Cells:
    """A matrix of values (R, C), drawn from the top row, with text in its cells."""

    values: Floats
    label: str
    """Label of the colour bar."""
    texts: Sequence[Sequence[str]] = ()
    low: float | None = None
    high: float | None = None
    """Range of the colour bar; by default that of the values."""
    dark_high: bool = False
    """High values are dark; ignored for signed values, which have a diverging colour map."""
    hover: Sequence[Sequence[str]] = ()
    keys: Sequence[Sequence[tuple[int, int]]] = ()
    mark: tuple[float, str] | None = None
    """A value to mark on the colour bar, and its label."""
    part: float = 1.0
    """Fraction of the colour map to use; lines omit its lightest part, which is hard to see on white."""

    @property
    def range(self) -> tuple[float, float]:
        """Range of the colour bar, centred on 0 if values have both signs."""
        values = self.values[np.isfinite(self.values)]
        low = self.low if self.low is not None else float(values.min(initial=np.inf))
        high = self.high if self.high is not None else float(values.max(initial=-np.inf))
        if not low <= high:  # no values
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
        """Colours from low to high, of a diverging colour map if values have both signs."""
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
    """A text at a point (x, y), or, if `at_edge` is true, at the right edge at height y."""

    x: float
    y: float
    text: str
    at_edge: bool = False
    variant: int = -1
    """The variant of the text, −1 for none."""


@dataclass(frozen=True)
class Panel:
    """A pair of axes with its content."""

    x: Axis = Axis()
    y: Axis = Axis()
    series: Sequence[Series] = ()
    cells: Cells | None = None
    title: str = ""
    names: Sequence[Text] = ()
    """Names of points, placed close to the points without overlap."""
    texts: Sequence[Text] = ()
    lines: Floats = field(default_factory=lambda: np.empty((0, 2)))
    """Corners (L, 2) of a line that names should avoid."""
    zero: Literal["", "x", "y"] = ""
    """The axis with a line at 0."""


@dataclass(frozen=True)
class Chart:
    """A figure: panels, a title, and a note on the meaning of points, intervals and omissions."""

    key: str
    """Name of the figure and its files."""
    title: str
    note: str
    panels: Sequence[Panel]
    columns: int = 1
    """Maximum number of panels in a row."""
    rows: float = 0.0
    """Height of a panel in rows of text; 0 for the default height."""
    color_key: Cells | None = None
    """Values for a colour bar, if colours of lines represent values."""
    legend: str = ""
    """Title of the legend."""
    choice: str = ""
    """Label of the chart on a page with several of the same kind."""

    @property
    def heading(self) -> str:
        """The title with a capital first letter."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def description(self) -> str:
        """A description of the figure for screen readers."""
        panel = self.panels[0]
        axes = [f"{name}: {axis.label}." for name, axis in (("Across", panel.x), ("Up", panel.y)) if axis.label]
        cells = [f"Colour: {panel.cells.label}."] if panel.cells else []
        count_text = [f"{len(self.panels)} panels: {', '.join(p.title for p in self.panels)}."] * (len(self.panels) > 1)
        series_names = list(dict.fromkeys(s.name for p in self.panels for s in p.series if s.name))
        return " ".join(
            [self.note, *axes, *cells, *count_text, *([f"Shown: {', '.join(series_names)}."] if series_names else [])]
        )

    def strings(self) -> Iterator[str]:
        """Yield all texts of the figure."""
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
    """Return colour and dashes of a line; the first 36 are distinct."""
    return COLORS[number % len(COLORS)], DASHES[(number + number // len(COLORS)) % len(DASHES)]


def point_look(number: int) -> tuple[str, str]:
    """Return colour and marker of a family; black for −1, a baseline shared by all families."""
    return (COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]) if number >= 0 else ("#000000", MARKERS[0])


def span(*values: ArrayLike, scale: Scale = "linear", margin: float = 0.06) -> tuple[float, float]:
    """Return the range of all finite values with a relative margin; (0, 1) without values."""
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
    """Return the range of an axis for means (N,) with intervals, (N,) or (2, N), and points.

    Since intervals over two seeds may be very long, the axis extends to at most three times the range of points with
    the median interval. It is also limited to the possible range of errors in % or their differences in points.
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
        room = 0.04 * (min(high, 100.0) - max(low, 0.0))  # for the marker of a point on the edge
        low, high = max(low, -room), min(high, 100.0 + room)
    return low, high


def reach_of(half: Floats) -> Floats:
    """Return the lengths (2, N) of intervals below and above their means."""
    return np.broadcast_to(np.nan_to_num(half), (2, half.shape[-1]))


def cut_intervals(series: Series, panel: Panel) -> Iterator[tuple[int, float, float, str]]:
    """Yield index, edge point (x, y) and side of each interval that extends beyond the panel."""
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
    """Return the lower and upper ends of the intervals along y, (N, 2) each."""
    lower, upper = reach_of(np.zeros(len(series.y)) if series.y_half is None else series.y_half)
    return np.column_stack([series.x, series.y - lower]), np.column_stack([series.x, series.y + upper])


def round_ticks(low: float, high: float, most: int = 5) -> list[Tick]:
    """Return up to `most` round numbers from low to high, formatted with sufficient decimals."""
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
    """Return ticks for a log axis: 1, 2 and 5 times powers of ten, or round numbers."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return [(tick, f"{tick:,.10g}") for tick in ticks]
    return round_ticks(low, high)
