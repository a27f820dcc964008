"""Draw a chart with Matplotlib, without using its global state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from se_lab.report.figures.chart import Cells, Chart, Panel
from se_lab.report.figures.look import SMALLEST, Look, printable
from se_lab.report.figures.names import wrap
from se_lab.report.figures.panels import DASHES, MARKERS, draw_series, set_axes, write_axes, write_cells, write_names
from se_lab.report.figures.sheet import Sheet, open_sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(chart: Chart, look: Look | None = None) -> Figure:
    """Draw a chart as a Matplotlib figure.

    Long names are wrapped, or numbered with a key below the panels; the note lists omitted text. The label of the
    figure has the title, followed by lines of description.
    """
    look = look or Look()
    with open_sheet(chart, look) as sheet:
        grid = list(sheet.figure.subplots(sheet.down, sheet.across, squeeze=False).flat)
        for spare_axes in grid[len(chart.panels) :]:
            spare_axes.remove()
        panels = list(zip(grid, chart.panels, strict=False))
        remarks: list[str] = []
        for place, (axes, panel) in enumerate(panels):
            for series in panel.series:
                draw_series(axes, series, panel, look.scale)
            set_axes(axes, panel)
            remarks += write_axes(sheet, axes, place)
        _color_keys(sheet, panels)
        points = [
            sheet.names.fit([text.text for text in p.names], 0.45 * sheet.panel_width, sheet.measure)
            for p in chart.panels
        ]
        legends = _legends(sheet)
        _lay_out(sheet, legends, remarks)
        sheet.figure.draw_without_rendering()  # fixes the layout, which determines pixel positions
        for (axes, panel), names in zip(panels, points, strict=True):
            remarks += [*write_names(sheet, axes, panel, names), *write_cells(sheet, axes, panel)]
        height = sheet.figure.get_figheight()
        _lay_out(sheet, legends, remarks)
        if sheet.figure.get_figheight() != height:  # the note has more lines
            sheet.figure.draw_without_rendering()
        sheet.figure.set_layout_engine("none")  # to avoid a new layout for each saved file
    return sheet.figure


def _color_keys(sheet: Sheet, panels: Sequence[tuple[Axes, Panel]]) -> None:
    """Draw matrices, with a common colour bar for those with the same range."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    axes_by_key: dict[tuple[Any, ...], list[Axes]] = {}
    keys: dict[tuple[Any, ...], tuple[Any, Cells]] = {}
    pairs = [(axes, panel.cells) for axes, panel in panels if panel.cells]
    if sheet.chart.color_key:
        pairs = [(axes, sheet.chart.color_key) for axes, _ in panels]
    for axes, cells in pairs:
        low, high = cells.range
        colors = ScalarMappable(Normalize(low, high), ListedColormap(cells.colors))
        if cells is not sheet.chart.color_key:
            axes.imshow(cells.values, cmap=colors.cmap, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        key = (cells.label, low, high)
        axes_by_key.setdefault(key, []).append(axes)
        keys.setdefault(key, (colors, cells))
    for key, (colors, cells) in keys.items():
        label = wrap(printable(cells.label), 0.7 * sheet.down * sheet.panel_height, sheet.measure_label)
        bar = sheet.figure.colorbar(colors, ax=axes_by_key[key], label=label, shrink=0.9)
        if cells.mark:
            value, reason = cells.mark
            bar.ax.axhline(value, color="black", linewidth=1)
            bar.ax.annotate(reason, (0, value), (-3, 0), textcoords="offset points", ha="right", va="center",
                            fontsize=SMALLEST, rotation=90)  # fmt: skip


def _legends(sheet: Sheet) -> list[Any]:
    """Return the legend of the series and the key of numbered names."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    look, legends = sheet.look, []
    room = sheet.width - sheet.lines(4)
    series_by_name = {
        series.name: series
        for panel in reversed(sheet.chart.panels)
        for series in reversed(panel.series)
        if series.name
    }
    handles: list[Any] = []
    for series in reversed(series_by_name.values()):
        line: dict[str, Any] = {"color": series.color, "linestyle": DASHES.get(series.dash, "None")}
        marker = MARKERS.get(series.marker, "")
        if series.hollow is not None and series.hollow.all():
            line["markerfacecolor"] = "white"
        size = min(series.size, 6.0) * look.scale
        handles.append(
            Patch(color=series.color) if series.bars
            else Line2D([], [], linewidth=min(series.width, 4.0) * look.scale, marker=marker, markersize=size, **line)
        )  # fmt: skip
    if handles:
        texts = [wrap(printable(name), room, sheet.measure) for name in reversed(series_by_name)]
        legends.append(_legend(sheet, handles, texts, sheet.chart.legend))
    if key := sheet.names.key(room, sheet.measure):
        blanks = [Line2D([], [], linestyle="None")] * len(key)
        legends.append(_legend(sheet, blanks, key, "", handlelength=0, handletextpad=0))
    return legends


def _legend(sheet: Sheet, handles: Sequence[Any], texts: Sequence[str], title: str, **options: Any) -> Any:
    """Return a legend with as many columns as fit the figure."""
    width = sheet.width
    for columns in range(min(len(texts), 6), 0, -1):
        legend = sheet.figure.legend(
            handles, texts, ncols=columns, loc="upper left", alignment="left", title=title or None,
            title_fontsize=sheet.look.small, borderaxespad=0.3, columnspacing=1.2, **options,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= width:
            break
        legend.remove()
    legend.set_in_layout(False)
    return legend


def _lay_out(sheet: Sheet, legends: Sequence[Any], remarks: Sequence[str]) -> None:
    """Place title, note, panels and legends below each other, and set the height of the figure."""
    look, figure = sheet.look, sheet.figure
    dpi, pad = figure.dpi, sheet.lines(0.4)
    title = sheet.chart.heading if look.title is None else look.title
    font = f"No installed font has the characters {sheet.missing}." if sheet.missing else ""
    note = " ".join(filter(None, [sheet.chart.note, *dict.fromkeys(remarks), font]))
    figure.set_label(f"{printable(title or sheet.chart.heading)}\n{printable(sheet.chart.description)}")
    heading = []
    for text, size, color in ((title, look.font + 1, "black"), (note, look.small, "0.3")):
        if text:
            lines = wrap(printable(text), sheet.width - 2 * pad, partial(sheet.measure, size=size))
            heading.append((lines, size, color))
    top = sum(sheet.lines(text.count("\n") + 1, size) for text, size, _ in heading) + pad
    heights = [legend.get_window_extent().height + pad for legend in legends]
    body = sheet.body
    total = top + body + sum(heights) + pad
    figure.set_size_inches(look.inches, total / dpi)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, (sum(heights) + pad / 2) / total, 1, body / total))
    for text in sheet.heading:
        text.remove()
    sheet.heading, y = [], total - pad / 2
    for text, size, color in heading:
        x = pad / (look.inches * dpi)
        sheet.heading.append(
            figure.text(x, y / total, text, va="top", fontsize=size, color=color, linespacing=1.15, in_layout=False)
        )
        y -= sheet.lines(text.count("\n") + 1, size)
    y = sum(heights)
    for legend, height in zip(legends, heights, strict=True):
        legend.set_bbox_to_anchor((0, y / total), transform=figure.transFigure)
        y -= height
