"""Draw one panel of a chart with Matplotlib: series, axes, names of points, and cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from se_lab.report.figures.chart import (
    Axis,
    Panel,
    Series,
    Text,
    Tick,
    cut_intervals,
    interval_ends,
    log_ticks,
    reach_of,
    round_ticks,
)
from se_lab.report.figures.labels import boxes_along, leader_end, place_names
from se_lab.report.figures.look import printable
from se_lab.report.figures.names import wrap
from se_lab.report.figures.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "pentagon": "p", "x": "X",
    "star": "*", "tick": "|",
}  # fmt: skip
DASHES: dict[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 2)), "longdashdot": (0, (8, 2, 1, 2)),
}  # fmt: skip
_ARROWS = {"left": "<", "right": ">", "below": "v", "above": "^"}


def draw_series(axes: Axes, series: Series, panel: Panel, scale: float) -> None:
    """Draw a series, with an arrow at the edge for an interval that extends beyond the panel."""
    x, y, color = series.x, series.y, series.color
    order = 2 + series.front
    style: dict[str, Any] = {"color": color, "alpha": series.alpha, "zorder": order}
    if series.bars:
        axes.barh(y, x, height=0.7, **style)
    if series.low is not None and series.high is not None:
        axes.fill_between(
            x,
            series.low,
            series.high,
            color=color,
            alpha=0.1 if series.front < 0 else 0.22,
            linewidth=0,
            zorder=order - 0.5,
        )
    for half, name, limits, positions in (
        (series.x_half, "xerr", panel.x.limits, x), (series.y_half, "yerr", panel.y.limits, y)
    ):  # fmt: skip
        if half is not None:
            lower, upper = reach_of(half)
            low, high = limits or (-np.inf, np.inf)
            lengths = [
                np.clip(np.minimum(lower, positions - low), 0, None),
                np.clip(np.minimum(upper, high - positions), 0, None),
            ]
            axes.errorbar(x, y, fmt="none", elinewidth=1.1 * scale, **{name: lengths}, **style)  # type: ignore[arg-type]
    for _, at_x, at_y, side in cut_intervals(series, panel):
        axes.plot(at_x, at_y, _ARROWS[side], markersize=4.5 * scale, clip_on=False, gid="cut", **style)
    if series.dash:
        axes.plot(x, y, linestyle=DASHES[series.dash], linewidth=series.width * scale, **style)
    if series.marker:
        hollow = series.hollow if series.hollow is not None else np.zeros(len(x), dtype=bool)
        for mask, face in ((hollow, "white"), (~hollow, color)):
            if mask.any():
                axes.plot(
                    x[mask], y[mask], MARKERS[series.marker], markersize=series.size * scale,
                    markerfacecolor=face, **style,
                )  # fmt: skip


def set_axes(axes: Axes, panel: Panel) -> None:
    """Set scales and ranges, and draw the line at 0."""
    for axis, set_scale, set_limits in (
        (panel.x, axes.set_xscale, axes.set_xlim), (panel.y, axes.set_yscale, axes.set_ylim)
    ):  # fmt: skip
        if axis.scale == "symlog":  # linear from −1 to 1
            set_scale("symlog", linthresh=1, linscale=2)
        elif axis.scale == "log":
            set_scale("log")
        if axis.limits:
            set_limits(*axis.limits)
    if panel.zero:
        (axes.axvline if panel.zero == "x" else axes.axhline)(0, color="0.2", linewidth=0.9, zorder=1.8)
    axes.minorticks_off()


def write_axes(sheet: Sheet, axes: Axes, place: int) -> list[str]:
    """Write title, labels and ticks of a panel; return remarks on omitted ticks."""
    panels = sheet.chart.panels
    panel = panels[place]
    show_y = place % sheet.across == 0 or panel.y != panels[place - 1].y
    lower_place = place + sheet.across
    show_x = lower_place >= len(panels) or panel.x != panels[lower_place].x
    if panel.title:
        axes.set_title(wrap(printable(panel.title), 0.88 * sheet.panel_width, sheet.measure_label))
    remarks = _write_x(sheet, axes, panel.x, visible=show_x) + _write_y(sheet, axes, panel, visible=show_y)
    for panel_axis, axis in ((panel.x, axes.xaxis), (panel.y, axes.yaxis)):
        if panel_axis.names or panel.cells:
            axis.grid(visible=False)
    if panel.cells:
        axes.spines[:].set_visible(False)
    if not panel.y.visible:
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(visible=False)
    places = sorted({text.x for text in panel.texts if not text.at_edge})
    for x in places:  # an axis of parallel coordinates, with either names or numbers
        texts = [text for text in panel.texts if text.x == x]
        room = max(2, int(0.6 * sheet.panel_height / sheet.lines(1)))  # leaves room for labels below
        texts = texts[:: -(-len(texts) // room)]
        names = sheet.names.fit([text.text for text in texts], 0.7 * sheet.panel_width / len(places), sheet.measure)
        for text, name in zip(texts, names, strict=True):
            _write_text(sheet, axes, text, name)
    for text in panel.texts:
        if text.at_edge:
            _write_text(sheet, axes, text, text.text)
    return remarks


def _write_x(sheet: Sheet, axes: Axes, axis: Axis, *, visible: bool) -> list[str]:
    label = wrap(printable(axis.label), sheet.panel_width, sheet.measure_label)
    if visible:
        axes.set_xlabel(label)
    axes.tick_params(labelbottom=visible)
    ticks = _ticks(axis, 0.9 * sheet.panel_width, lambda text: sheet.measure(text) + sheet.lines(1.2))
    if ticks is None:
        return []
    ticks, remarks = _thin(axis, ticks, sheet.plot_width / sheet.lines(0.9), "columns")
    texts = [printable(text) for _, text in ticks]
    room = 0.92 * sheet.plot_width / max(len(texts), 1)
    rotation: dict[str, Any] = {}
    if axis.names and texts:
        wrapped_texts = [wrap(text, room, sheet.measure) for text in texts]
        words = max((sheet.measure(word) for text in texts for word in text.split()), default=0.0)
        if not remarks and words <= room and max(text.count("\n") for text in wrapped_texts) < 3:
            texts = wrapped_texts
        else:
            texts = sheet.names.fit(texts, sheet.lines(9), sheet.measure)
            longest = max(map(sheet.measure, texts))
            if longest > room:
                rotation = {"rotation": 90}
                sheet.below = max(sheet.below, longest - sheet.lines(1))
    axes.set_xticks([value for value, _ in ticks], texts, **rotation)
    return remarks


def _write_y(sheet: Sheet, axes: Axes, panel: Panel, *, visible: bool) -> list[str]:
    axis = panel.y
    if not axis.visible:
        axes.set_yticks([])
        return []
    if visible:
        axes.set_ylabel(wrap(printable(axis.label), 0.72 * sheet.panel_height, sheet.measure_label))
    axes.tick_params(labelleft=visible)
    ticks = _ticks(axis, 0.9 * sheet.panel_height, lambda _: sheet.lines(2))
    if ticks is None:
        return []
    ticks, remarks = _thin(axis, ticks, sheet.panel_height / sheet.lines(0.95), "rows")
    texts = [printable(text) for _, text in ticks]
    if axis.names:
        texts = sheet.names.fit(texts, 0.42 * sheet.panel_width, sheet.measure, 2 if sheet.chart.rows else 1)
        sheet.two_lines |= any("\n" in text for text in texts)
    axes.set_yticks([value for value, _ in ticks], texts)
    return remarks


def _thin(axis: Axis, ticks: Sequence[Tick], most: float, what: str) -> tuple[Sequence[Tick], list[str]]:
    """Return every n-th name, at most `most`, and a remark if names are omitted."""
    step = -(-len(ticks) // max(int(most), 1)) if axis.names else 1
    return ticks[:: max(step, 1)], [f"Some names of {what} are omitted."] if step > 1 else []


def _ticks(axis: Axis, room: float, size: Callable[[str], float]) -> Sequence[Tick] | None:
    """Return the ticks of an axis, by default round numbers; None without a range."""
    if axis.ticks is not None or axis.limits is None:
        return axis.ticks
    for count in range(8, 1, -1):
        ticks = log_ticks(*axis.limits) if axis.scale == "log" else round_ticks(*axis.limits, count)
        if axis.whole:
            ticks = [(value, f"{value:,.0f}".replace("-", "−")) for value, _ in ticks if value == round(value)]
        if sum(size(text) for _, text in ticks) <= room:
            break
    return ticks


def _write_text(sheet: Sheet, axes: Axes, text: Text, name: str) -> None:
    options: dict[str, Any] = {"fontsize": sheet.look.small, "va": "center", "annotation_clip": False}
    if text.at_edge:
        gap = (6 * sheet.look.scale, 0)  # leaves room for the arrow of a truncated interval
        axes.annotate(name, (1, text.y), gap, xycoords=("axes fraction", "data"), textcoords="offset points", **options)
        return
    box = {"boxstyle": "square,pad=0.1", "color": "white", "linewidth": 0, "alpha": 0.85}
    axes.annotate(
        printable(name), (text.x, text.y), (3 * sheet.look.scale, 0), textcoords="offset points", bbox=box,
        **options,
    )  # fmt: skip


def write_names(sheet: Sheet, axes: Axes, panel: Panel, names: Sequence[str]) -> list[str]:
    """Write the names of points without overlaps; return a remark on omitted names."""
    from matplotlib.patheffects import withStroke

    if not names:
        return []
    scale = sheet.figure.dpi / 72
    to_pixels = axes.transData.transform
    anchors = np.array([(label.x, label.y) for label in panel.names])
    points = to_pixels(anchors)
    sizes = np.array([(sheet.measure(name), sheet.lines(0.8)) for name in names])
    ends = [interval_ends(series) for series in panel.series if series.y_half is not None]
    bars = [np.column_stack([to_pixels(low) - 2, to_pixels(high) + 2]) for low, high in ends]
    marker_points = [to_pixels(np.column_stack([s.x, s.y])) for s in panel.series if s.marker and s.front >= 0]
    solid = np.vstack([*marker_points, np.empty((0, 2))])
    solid = np.hstack([solid - 4 * scale * sheet.look.scale, solid + 4 * scale * sheet.look.scale])
    faint = np.vstack([*bars, boxes_along(to_pixels(panel.lines)), np.empty((0, 4))])
    corners = place_names(points, sizes, solid, faint, np.array(axes.bbox.extents), scale)
    for point, value, corner, size, name in zip(points, anchors, corners, sizes, names, strict=True):
        if np.isnan(corner[0]):
            continue
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        has_leader = leader_end(point, corner, size, scale) is not None
        text = axes.annotate(
            name, tuple(value), tuple((corner - point) / scale), textcoords="offset points", va="bottom",
            fontsize=sheet.look.small, zorder=6, arrowprops=line if has_leader else None,
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    count = int(np.isnan(corners[:, 0]).sum())
    return [f"{count} more names are omitted for lack of room."] if count else []


def write_cells(sheet: Sheet, axes: Axes, panel: Panel) -> list[str]:
    """Write numbers into the cells of a matrix if they fit; return a remark otherwise."""
    cells = panel.cells
    if cells is None or not len(cells.texts):
        return []
    rows, columns = cells.values.shape
    text_width = max(sheet.measure(text) for row in cells.texts for text in row)
    if axes.bbox.width / columns < text_width + sheet.lines(0.4) or axes.bbox.height / rows < sheet.lines(0.9):
        return ["Numbers are omitted for lack of room."]
    (image,) = axes.images
    for (row, cell), value in np.ndenumerate(cells.values):
        is_dark = np.isfinite(value) and sum(image.cmap(image.norm(value))[:3]) < 1.5
        color = "white" if is_dark else "black"
        axes.text(cell, row, cells.texts[row][cell], ha="center", va="center", fontsize=sheet.look.small, color=color)
    return []
