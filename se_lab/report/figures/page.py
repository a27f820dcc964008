"""Convert a chart to Plotly traces and layout, with the variant and trial of each point."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from se_lab.report.figures.chart import (
    Axis,
    Cells,
    Chart,
    Floats,
    Panel,
    Series,
    cut_intervals,
    interval_ends,
    log_ticks,
    reach_of,
)
from se_lab.report.figures.labels import boxes_along, place_names
from se_lab.report.figures.names import wrap

Dict = dict[str, Any]

_SYMBOLS = {"tick": "line-ns-open"}  # other markers have the same names in Plotly
_ARROWS = {"left": "triangle-left", "right": "triangle-right", "below": "triangle-down", "above": "triangle-up"}
_PLOT = np.array([820.0, 370.0])
"""Size of a plot in pixels on a typical screen, for placing names of points."""
_CHARACTER = 6.9  # approximate width of a character in pixels
_FONT = 12
_WRAP = 42  # characters per line of a name


def section(key: str, title: str, charts: Sequence[Chart]) -> Dict | None:
    """Return a section of a page with a title, one or more plots to choose from, and a note.

    A choice has `label`, `traces`, `layout` (with a height in pixels if it has rows), `note` and `description` (for
    screen readers). `customdata` of a point, or `meta` of a trace, has its variant and trial, −1 for none; the
    annotation of variant n is named `vn`. None without charts.
    """
    if not charts:
        return None
    return {"id": key, "title": title, "choices": [plot(chart) for chart in charts], "note": charts[0].note}


def plot(chart: Chart) -> Dict:
    """Return a chart as Plotly traces and layout, with all text escaped."""
    columns = min(chart.columns, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    traces: list[Dict] = []
    layout: Dict = {"annotations": [], "shapes": [], "legend": {"title": {"text": escape(chart.legend)}}}
    if any(text.at_edge for panel in chart.panels for text in panel.texts):
        layout["margin"] = {"l": 60, "r": 120, "t": 34, "b": 48}
    if chart.rows:
        layout["height"] = round(120 + rows * 24 * chart.rows)
    elif rows > 1:
        layout["height"] = 120 + 260 * rows
    for place, panel in enumerate(chart.panels):
        number = "" if place == 0 else str(place + 1)
        column, row = place % columns, place // columns
        for letter, axis, part, parts in (("x", panel.x, column, columns), ("y", panel.y, rows - 1 - row, rows)):
            other = "y" if letter == "x" else "x"
            domain = [part / parts + (0.04 if part else 0), (part + 1) / parts - (0.04 if part < parts - 1 else 0)]
            layout[f"{letter}axis{number}"] = _axis(axis) | {"domain": domain, "anchor": other + number}
            lower_place = place + columns
            if letter == "x" and lower_place < len(chart.panels) and chart.panels[lower_place].x.label == axis.label:
                layout[f"xaxis{number}"]["title"] = {"text": ""}  # only the lowest panel has the label
        panel_traces = [trace for series in panel.series for trace in _traces(series, panel)]
        panel_traces += [_matrix(panel.cells)] if panel.cells else []
        traces += [trace | ({"xaxis": f"x{number}", "yaxis": f"y{number}"} if number else {}) for trace in panel_traces]
        layout["annotations"] += _texts(panel, number)
        if panel.zero:
            fixed_axis, free_axis = (panel.zero, "y" if panel.zero == "x" else "x")
            ends = {f"{fixed_axis}0": 0, f"{fixed_axis}1": 0, f"{free_axis}0": 0, f"{free_axis}1": 1}
            refs = {f"{fixed_axis}ref": fixed_axis + number, f"{free_axis}ref": f"{free_axis}{number} domain"}
            layout["shapes"].append({"type": "line", "layer": "below", "line": {"width": 1.2}} | ends | refs)
    if chart.color_key:
        traces.append(_color_key(chart.color_key))
    names = set()
    for trace in traces:  # show each name in the legend once
        trace["showlegend"] = bool(trace.get("name")) and trace["name"] not in names and trace["showlegend"]
        names |= {trace["name"]} if trace["showlegend"] else set()
    return {
        "label": chart.choice or chart.heading, "traces": traces, "layout": layout, "note": chart.note,
        "description": chart.description,
    }  # fmt: skip


def escape(text: object) -> str:
    """Escape text that Plotly would interpret as markup."""
    return html.escape(str(text), quote=False)


def as_list(values: ArrayLike, digits: int = 6) -> list[float | None]:
    """Return numbers rounded to `digits` significant digits; None if not finite."""
    return [
        float(f"{value:.{digits}g}") if math.isfinite(value) else None
        for value in np.asarray(values, dtype=float).tolist()
    ]


def _traces(series: Series, panel: Panel) -> Iterator[Dict]:
    """Yield the traces of a series: band, line or points, and arrows for truncated intervals."""
    common: Dict = {"visible": "legendonly" if series.hidden else True, "showlegend": bool(series.name)}
    if series.dash and series.keys:
        common |= {"legendgroup": series.keys[0][0]}
    is_line = bool(series.dash) and len(series.keys) == 1
    meta: Dict = {"meta": list(series.keys[0])} if is_line else {}
    if series.low is not None and series.high is not None:
        band_y = np.concatenate([series.high, series.low[::-1]])
        band_x = np.concatenate([series.x, series.x[::-1]])
        yield {
            "type": "scatter", "mode": "lines", "x": as_list(band_x), "y": as_list(band_y, 5), "fill": "toself",
            "fillcolor": f"{series.color}33", "line": {"width": 0}, "hoverinfo": "skip",
        } | common | meta | {"showlegend": False}  # fmt: skip
    mode = "+".join([*(["lines"] if series.dash else []), *(["markers"] if series.marker else [])])
    trace: Dict = {
        "type": "scatter",
        "mode": mode,
        "x": as_list(series.x),
        "y": as_list(series.y),
        "name": escape(series.name),
    }
    trace |= common | meta
    if series.keys and not is_line:
        trace["customdata"] = [list(key) for key in series.keys]
    if series.hover:
        is_single = len(series.hover) == 1
        texts = [_hover(text) for text in series.hover]
        trace |= {
            "hovertext": texts[0] if is_single else texts,
            "hoverinfo": "x+y+text" if is_single and len(series.x) > 1 else "text",
        }
    else:
        trace["hoverinfo"] = "name" if series.name else "skip"
    if series.pareto:
        trace["meta"] = {"front": series.pareto}
    if series.dash:
        trace["line"] = {"color": series.color, "dash": series.dash, "width": series.width}
    if series.marker:
        trace["marker"] = _marker(series)
    for name, half in (("error_x", series.x_half), ("error_y", series.y_half)):
        if half is not None and np.isfinite(half).any():
            bars = {
                "type": "data",
                "symmetric": False,
                "array": as_list(reach_of(half)[1]),
                "arrayminus": as_list(reach_of(half)[0]),
                "color": series.color,
                "thickness": 1.2,
                "width": 3,
            }
            trace[name] = bars
    yield trace
    for i, x, y, side in cut_intervals(series, panel):
        marker = {"color": series.color, "symbol": _ARROWS[side], "size": 9}
        arrow: Dict = {"type": "scatter", "mode": "markers", "x": [x], "y": [y], "marker": marker, "cliponaxis": False}
        if len(series.keys) > i:
            arrow["meta"] = list(series.keys[i])
        yield arrow | {"hovertext": "the interval extends further", "hoverinfo": "text", "showlegend": False}


def _marker(series: Series) -> Dict:
    face = [("white" if h else series.color) for h in series.hollow] if series.hollow is not None else series.color
    symbol = _SYMBOLS.get(series.marker, series.marker)
    outline = {"color": series.color, "width": 2 if series.hollow is not None or symbol != series.marker else 0}
    return {"color": face, "symbol": symbol, "size": 1.6 * series.size, "opacity": series.alpha, "line": outline}


def _hover(text: str) -> str:
    """Format a hover text with its first line in bold."""
    heading, *lines = escape(text).split("\n")
    return "<br>".join([f"<b>{heading}</b>", *lines])


def _matrix(cells: Cells) -> Dict:
    low, high = cells.range
    rows, columns = cells.values.shape
    trace: Dict = {
        "type": "heatmap", "x": list(range(columns)), "y": list(range(rows)),
        "z": [as_list(line) for line in cells.values], "zmin": low, "zmax": high,
        "xgap": 1, "ygap": 1,
        "colorscale": _colorscale(cells), "colorbar": {"title": {"text": escape(cells.label), "side": "right"}},
        "hoverinfo": "text", "showlegend": False,
    }  # fmt: skip
    if cells.hover:
        trace["hovertext"] = [[_hover(text) if text else "" for text in line] for line in cells.hover]
    if cells.keys:
        trace["customdata"] = [[list(key) for key in line] for line in cells.keys]
    if len(cells.texts) and cells.values.size <= 400:
        trace |= {"text": [[escape(text) for text in line] for line in cells.texts], "texttemplate": "%{text}"}
    return trace


def _color_key(cells: Cells) -> Dict:
    """Return a trace without points that adds a colour bar for lines."""
    low, high = cells.range
    marker = {"color": [low], "cmin": low, "cmax": high, "colorscale": _colorscale(cells), "showscale": True, "size": 0}
    marker |= {"colorbar": {"title": {"text": escape(cells.label), "side": "right"}}}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "marker": marker,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _colorscale(cells: Cells) -> list[list[Any]]:
    return [[i / 63, color] for i, color in enumerate(cells.colors)]


def _axis(axis: Axis) -> Dict:
    layout: Dict = {"title": {"text": escape(axis.label)}, "automargin": True, "visible": axis.visible}
    if axis.limits:
        layout["range"] = [math.log10(end) for end in axis.limits] if axis.scale == "log" else list(axis.limits)
    if axis.scale == "log":
        layout["type"] = "log"
    ticks = axis.ticks
    if ticks is None and axis.scale == "log" and axis.limits:
        ticks = log_ticks(*axis.limits)
    if ticks is not None:
        names = [wrap(text, _WRAP, len).replace("\n", "<br>") for text in (escape(text) for _, text in ticks)]
        layout |= {"tickvals": [value for value, _ in ticks], "ticktext": names}
    if axis.names:
        layout |= {"showgrid": False}
    if axis.whole and axis.limits and axis.limits[1] - axis.limits[0] < 10:
        layout["dtick"] = 1
    return layout


def _texts(panel: Panel, number: str) -> list[Dict]:
    """Return annotations for the title of a panel, its texts, and names of points."""
    style: Dict = {"showarrow": False, "font": {"size": _FONT}}
    axis_refs: Dict = {"xref": f"x{number}", "yref": f"y{number}"}
    notes = []
    if panel.title:
        refs = {
            "xref": f"x{number} domain",
            "yref": f"y{number} domain",
            "x": 0,
            "y": 1,
            "xanchor": "left",
            "yanchor": "bottom",
        }
        notes.append(style | refs | {"text": escape(panel.title)})
    for text in panel.texts:
        place: Dict = {"x": text.x, "y": text.y, "xshift": 5} | axis_refs
        if not text.at_edge:
            place |= {"bgcolor": "white", "borderpad": 0}  # hides lines behind the text
        else:
            place |= {"x": 1, "xref": f"x{number} domain", "xshift": 9}  # leaves room for arrows
        notes.append(style | place | {"text": escape(text.text), "xanchor": "left", "name": f"v{text.variant}"})
    return notes + _names(panel, axis_refs)


def _names(panel: Panel, axis_refs: Dict) -> list[Dict]:
    """Return annotations with the names of points, placed for a plot of typical size."""
    if not panel.names or not panel.x.limits or not panel.y.limits:
        return []
    points = _pixels(panel, np.array([(label.x, label.y) for label in panel.names]))
    sizes = np.array([(_CHARACTER * len(label.text), 15.0) for label in panel.names])
    boxes = [
        np.hstack([_pixels(panel, low) - 2, _pixels(panel, high) + 2])
        for low, high in (interval_ends(series) for series in panel.series if series.y_half is not None)
    ]
    faint = np.vstack([*boxes, boxes_along(_pixels(panel, panel.lines)), np.empty((0, 4))])
    corners = place_names(points, sizes, np.empty((0, 4)), faint, np.array([0.0, 0.0, *_PLOT]), 1.3)
    notes = []
    for name, point, corner, size in zip(panel.names, points, corners, sizes, strict=True):
        if np.isnan(corner[0]):
            continue
        dx, dy = corner + size / 2 - point
        x = math.log10(name.x) if panel.x.scale == "log" else float(name.x)
        offset = {"ax": round(dx), "ay": -round(dy), "showarrow": True, "arrowhead": 0, "arrowwidth": 0.6}
        text = {"text": escape(name.text), "standoff": 5, "font": {"size": _FONT}, "name": f"v{name.variant}"}
        notes.append(axis_refs | {"x": x, "y": float(name.y)} | offset | text)
    return notes


def _pixels(panel: Panel, values: Floats) -> Floats:
    """Return the positions (N, 2) of values in a plot of typical size, in pixels."""
    low, high = np.array([panel.x.limits, panel.y.limits], dtype=float).T
    points = values.astype(float).reshape(-1, 2)
    if panel.x.scale == "log":
        low[0], high[0], points = (
            math.log10(low[0]),
            math.log10(high[0]),
            np.column_stack([np.log10(points[:, 0]), points[:, 1]]),
        )
    return np.asarray((points - low) / (high - low) * _PLOT)
