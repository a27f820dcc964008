"""Labels of points that overlap neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_DIRECTIONS = np.array([(1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0.5), (-1, 0.5), (0, 1), (0, -1)])
_DISTANCES = (7, 14, 22, 32, 44, 58, 74, 92)  # in points
_GAP = 2.0  # pixels that stay free around a label


def place_labels(axes: Axes, x: Floats, y: Floats, half: Floats, names: Sequence[str], lines: Floats) -> list[str]:
    """Write names (N,) beside the points x, y (N,) with error bars of ± half (N,), each in a free place nearby.

    A point with an empty name is only kept clear of.
    lines: (L, 2), the corners of a line in data coordinates that labels should rather not cross. The most crowded
    point comes first; a label that has to move away gets a thin line to its point. Fixes the limits of the axes.
    Returns the names for which there was no room.
    """
    from matplotlib.patheffects import withStroke

    figure: Any = axes.figure
    figure.canvas.draw()  # limits and layout, and with them the pixels of a point, are settled by drawing
    axes.autoscale(False)
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    points = axes.transData.transform(np.column_stack([x, y]))
    low, high = (axes.transData.transform(np.column_stack([x, y + sign * half]))[:, 1] for sign in (-1, 1))
    solid = list(np.column_stack([points - 4.5 * scale, points + 4.5 * scale]))
    legend = axes.get_legend()
    if legend is not None:
        solid.append(np.array(legend.get_window_extent(renderer).extents))
    bars = np.column_stack([points[:, 0] - 2, low, points[:, 0] + 2, high])
    faint = np.vstack([bars, _along(axes.transData.transform(lines))])
    room = np.array(axes.bbox.extents)
    apart = np.sort(np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)), axis=1)
    left_out = []
    for i in np.argsort(apart[:, :4].sum(axis=1), kind="stable"):
        if not names[i]:
            continue
        text = axes.annotate(
            names[i], (x[i], y[i]), (0, 0), textcoords="offset points", fontsize=8, va="bottom", zorder=4
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        extent = text.get_window_extent(renderer)
        size = np.array([extent.width, extent.height])
        corners, distance = _candidates(points[i], size, scale)
        boxes = np.hstack([corners, corners + size])
        free = (_overlap(boxes, np.array(solid)) == 0) & _inside(boxes, room)
        if not free.any():
            text.remove()
            left_out.append(names[i])
            continue
        cost = np.where(free, 4 * _overlap(boxes, faint) + distance * extent.height / 4, np.inf)
        box = boxes[int(np.argmin(cost))]
        text.set_position(tuple((box[:2] - points[i]) / scale))
        solid.append(box)
        nearest = np.clip(points[i], box[:2], box[2:])
        if np.hypot(*(nearest - points[i])) > 12 * scale:
            ends = axes.transData.inverted().transform(np.stack([points[i], nearest]))
            axes.plot(ends[:, 0], ends[:, 1], color="0.6", linewidth=0.6, zorder=2, label="_leader")
    return left_out


def _candidates(point: Floats, size: Floats, scale: float) -> tuple[Floats, Floats]:
    """Lower left corners (K, 2) of places for a label of that size (2,), and how far (K,) from the point they are."""
    reach = np.repeat(np.array(_DISTANCES) * scale, len(_DIRECTIONS))
    aim = np.tile(_DIRECTIONS, (len(_DISTANCES), 1))
    step = aim * (reach / np.maximum(1.0, np.hypot(aim[:, 0], aim[:, 1])))[:, None]
    return point + step - size * (1 - aim) / 2, reach


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """Square pixels that each box (K, 4), with a gap around it, shares with the others (M, 4)."""
    grown = boxes + np.array([-_GAP, -_GAP, _GAP, _GAP])
    low = np.maximum(grown[:, None, :2], others[None, :, :2])
    high = np.minimum(grown[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=2).sum(axis=1))


def _inside(boxes: Floats, room: Floats) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, :2] >= room[:2]).all(axis=1) & (boxes[:, 2:] <= room[2:]).all(axis=1))


def _along(corners: Floats) -> Floats:
    """Small boxes (M, 4) along the line through the corners (L, 2), in pixels."""
    if len(corners) < 2:
        return np.empty((0, 4))
    pieces = [np.linspace(a, b, int(np.hypot(*(b - a)) / 4) + 2) for a, b in pairwise(corners)]
    spots = np.vstack(pieces)
    return np.hstack([spots - 2, spots + 2])
