"""Read back from Matplotlib what a figure shows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from matplotlib.text import Text


def texts(figure: Any) -> list[Text]:
    """Every text that is seen: tick labels beyond the limits and those of inner panels are not."""
    figure.canvas.draw()
    unseen = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.majorTicks, *axis.minorTicks)
        if not min(axis.get_view_interval()) - 1e-9 <= tick.get_loc() <= max(axis.get_view_interval()) + 1e-9
        for label in (tick.label1, tick.label2)
    }
    every = figure.findobj(Text)
    return [one for one in every if one.get_visible() and one.get_text().strip() and id(one) not in unseen]


def extent(text: Text) -> Any:
    """The box of a text, without the thin line to its point."""
    return Text.get_window_extent(text)


def overlaps(figure: Any) -> Iterator[tuple[str, str]]:
    """Pairs of texts that cover each other by more than a pixel."""
    boxes = [(one.get_text(), extent(one).padded(-1)) for one in texts(figure)]
    yield from ((a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other))
