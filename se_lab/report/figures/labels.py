"""Placement of the names of points without overlaps, in pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DIRECTIONS = np.array([(1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0.5), (-1, 0.5), (0, 1), (0, -1)])
_DISTANCES = (7, 14, 22, 32, 44, 58, 74, 92)  # in points
_GAP = 2.0  # margin around a name in pixels
_MARKER = 4.5  # radius of a marker in points


def place_names(points: Floats, sizes: Floats, solid: Floats, faint: Floats, room: Floats, scale: float) -> Floats:
    """Return the lower left corner (N, 2) of each point's name, NaN if there is no room.

    Names of crowded points are placed first. The result is deterministic. All positions are in pixels from the lower
    left; boxes are (left, bottom, right, top).

    Args:
        points: Points (N, 2).
        sizes: Width and height of each name, (N, 2); a point with width 0 has no name and is only avoided.
        solid: Boxes (M, 4) that names must avoid, such as a legend.
        faint: Boxes (L, 4) that names should avoid if possible, such as error bars and lines.
        room: The box (4,) that contains all names.
        scale: Pixels per point (1/72 inch).
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
    """Return the end (2,) of a leader line from a point to its name; None if the name is close."""
    end = np.clip(point, corner, corner + size)
    return np.asarray(end) if np.hypot(*(end - point)) > 12 * scale else None


def boxes_along(corners: Floats) -> Floats:
    """Return small boxes (M, 4) along the line through the corners (L, 2), in pixels."""
    if len(corners) < 2:
        return np.empty((0, 4))
    pieces = [np.linspace(a, b, int(np.hypot(*(b - a)) / 4) + 2) for a, b in pairwise(corners)]
    spots = np.vstack(pieces)
    return np.hstack([spots - 2, spots + 2])


def _candidates(point: Floats, size: Floats, scale: float) -> tuple[Floats, Floats]:
    """Return candidates for the lower left corner of a name, (K, 2), and their distances (K,)."""
    reach = np.repeat(np.array(_DISTANCES) * scale, len(_DIRECTIONS))
    aim = np.tile(_DIRECTIONS, (len(_DISTANCES), 1))
    step = aim * (reach / np.maximum(1.0, np.hypot(aim[:, 0], aim[:, 1])))[:, None]
    return point + step - size * (1 - aim) / 2, reach


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """Return the area of overlap, in square pixels, of each box (K, 4) with the others (M, 4)."""
    if not len(others):
        return np.zeros(len(boxes))
    padded_boxes = boxes + np.array([-_GAP, -_GAP, _GAP, _GAP])
    low = np.maximum(padded_boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(padded_boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=2).sum(axis=1))


def _inside(boxes: Floats, room: Floats) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, :2] >= room[:2]).all(axis=1) & (boxes[:, 2:] <= room[2:]).all(axis=1))
