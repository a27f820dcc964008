"""What all figures share: the style, a canvas without global state, files that repeat to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("se_lab.mplstyle")
MARKERS = "osD^vP*X"


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write the figure as `stem.png`, `stem.svg`, … (also pdf) and return the paths.

    Equal figures give equal files: no dates, and fixed ids in SVG. Missing folders are made.
    """
    import matplotlib

    dateless: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.parent / f"{stem.name}.{format}" for format in formats]
    with matplotlib.rc_context(fname=STYLE):
        for path, format in zip(paths, formats, strict=True):
            figure.savefig(path, format=format, metadata=dateless.get(format))
    return paths


@contextmanager
def canvas(
    width: float = 6.4, height: float = 4.2, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, tuple[Axes, ...]]]:
    """Open a figure (inches) with a grid of axes that share what they can, drawn in the package's style."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row" if columns == 1 else True)
        yield figure, tuple(grid.ravel())


def legend_outside(
    figure: Figure, axes: Axes, loc: Literal["upper left", "lower center"], most: int, **options: Any
) -> None:
    """Put the legend of the axes outside of all panels, in as many columns, up to `most`, as the figure is wide."""
    handles, labels = axes.get_legend_handles_labels()
    options |= {"loc": f"outside {loc}"}
    for columns in range(min(len(labels), most), 0, -1):
        legend = figure.legend(handles, labels, ncols=columns, **options)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def look(number: int) -> tuple[str, str]:
    """Colour and marker of a family; −1, a baseline that belongs to all of them, is black."""
    return (f"C{number % 6}", MARKERS[number % len(MARKERS)]) if number >= 0 else ("black", "o")


def keep_possible(axes: Axes, unit: str) -> None:
    """End an axis of shares in % where shares end: a t interval may go on below 0 and above 100."""
    if unit == "%":
        low, high = axes.get_ylim()
        room = 0.03 * (min(high, 100.0) - max(low, 0.0))  # for the marker of a point that stands on the edge
        axes.set_ylim(max(low, -room), min(high, 100.0 + room))


def means(n: NDArray[np.int64]) -> str:
    """Say what a point stands for: `Mean of 3 seeds, 95 % interval`."""
    low, high = int(n[n > 0].min()), int(n.max())
    if high == 1:
        return "One seed, no interval"
    return f"Mean of {high if low == high else f'{low} to {high}'} seeds with 95 % interval"
