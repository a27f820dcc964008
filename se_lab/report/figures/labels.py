"""Names of points that overlap neither each other nor the points: where to put each, in pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DIRECTIONS = np.array([(1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0.5), (-1, 0.5), (0, 1), (0, -1)])
_DISTANCES = (7, 14, 22, 32, 44, 58, 74, 92)  # in points
_GAP = 2.0  # pixels that stay free around a name
_MARKER = 4.5  # points from the middle of a marker to its edge


def place_names(points: Floats, sizes: Floats, solid: Floats, faint: Floats, room: Floats, scale: float) -> Floats:
    """Return the lower left corner (N, 2) of each point's name, NaN for those without room.

    The most crowded point is placed first. The result is deterministic.

    Args:
        points: (N, 2), in pixels as all that follows, upwards.
        sizes: (N, 2) width and height of each name; a point with width 0 has no name and is only avoided.
        solid: (M, 4) boxes that no name may touch, such as a legend: left, bottom, right, top.
        faint: (L, 4) boxes that names should not touch where possible, such as error bars and lines.
        room: (4,) the box that names must stay in.
        scale: Pixels of a point (1/72 inch).
    """
    corners = np.full(points.shape, np.nan)
    obstacles = [*np.hstack([points - _MARKER * scale, points + _MARKER * scale]), *solid]
    distances = np.sort(np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)), axis=1)
    for i in np.argsort(distances[:, :4].sum(axis=1), kind="stable"):
        if not sizes[i, 0]:
            continue
        places, distance = _candidates(points[i], sizes[i], scale)
        boxes = np.hstack([places, places + sizes[i]])
        is_free = (_overlap(boxes, np.array(obstacles)) == 0) & _inside(boxes, room)
        if not is_free.any():
            continue
        cost = np.where(is_free, 4 * _overlap(boxes, faint) + distance * sizes[i, 1] / 4, np.inf)
        index = int(np.argmin(cost))
        corners[i] = places[index]
        obstacles.append(boxes[index])
    return corners


def leader_end(point: Floats, corner: Floats, size: Floats, scale: float) -> Floats | None:
    """Return where a thin line from the point to its name ends, (2,), or None where the name is near enough."""
    end = np.clip(point, corner, corner + size)
    return np.asarray(end) if np.hypot(*(end - point)) > 12 * scale else None


def along(corners: Floats) -> Floats:
    """Return small boxes (M, 4) along the line through the corners (L, 2), in pixels."""
    if len(corners) < 2:
        return np.empty((0, 4))
    pieces = [np.linspace(a, b, int(np.hypot(*(b - a)) / 4) + 2) for a, b in pairwise(corners)]
    spots = np.vstack(pieces)
    return np.hstack([spots - 2, spots + 2])


def _candidates(point: Floats, size: Floats, scale: float) -> tuple[Floats, Floats]:
    """Return lower left corners (K, 2) for a name of that size (2,), and how far (K,) from the point they are."""
    reach = np.repeat(np.array(_DISTANCES) * scale, len(_DIRECTIONS))
    aim = np.tile(_DIRECTIONS, (len(_DISTANCES), 1))
    step = aim * (reach / np.maximum(1.0, np.hypot(aim[:, 0], aim[:, 1])))[:, None]
    return point + step - size * (1 - aim) / 2, reach


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """Return the square pixels that each box (K, 4), with a gap around it, shares with the others (M, 4)."""
    if not len(others):
        return np.zeros(len(boxes))
    padded_boxes = boxes + np.array([-_GAP, -_GAP, _GAP, _GAP])
    low = np.maximum(padded_boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(padded_boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=2).sum(axis=1))


def _inside(boxes: Floats, room: Floats) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, :2] >= room[:2]).all(axis=1) & (boxes[:, 2:] <= room[2:]).all(axis=1))
