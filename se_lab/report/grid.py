"""The text of a table, and the selection of columns that fit a width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Measure = Callable[[str], float]


@dataclass(frozen=True)
class Grid:
    """The text of a table with C columns and R rows."""

    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    """Cells (C, R), column by column."""
    is_text: Sequence[bool]
    """Whether each column (C,) contains names (left-aligned, may wrap) or numbers (right-aligned, on one line)."""
    title: str = ""
    notes: Sequence[str] = ()
    bold: Sequence[Sequence[bool]] = ()
    """Whether each cell (C, R) is bold; empty if none is."""
    groups: Sequence[object] = ()
    """Group of each row (R,); groups are separated by rules. Empty for a single group."""

    def is_bold(self, column: int, row: int) -> bool:
        """Return whether a cell is bold."""
        return bool(len(self.bold) and len(self.bold[column]) and self.bold[column][row])

    def starts_group(self, row: int) -> bool:
        """Return whether there is a rule above a row."""
        return bool(row and len(self.groups) and self.groups[row] != self.groups[row - 1])


@dataclass(frozen=True)
class FittedColumns:
    """The columns of a grid that fit a width."""

    columns: tuple[int, ...]
    headings: tuple[tuple[str, ...], ...]
    """Lines of each column's heading."""
    widths: tuple[float, ...]
    """Width of each column, to which longer names are wrapped."""
    left_out: tuple[str, ...]
    """Headings of the columns that do not fit."""


def fit(grid: Grid, available: float, measure: Measure, gap: float) -> FittedColumns:
    """Select the columns that fit: first names, then metrics (with bold cells), then the rest.

    Headings wrap to at most three lines; names wrap, numbers do not.

    Args:
        grid: The table.
        available: Total width, in the unit of `measure`.
        measure: Returns the width of a text.
        gap: Space between two columns.
    """
    cells = [max(map(measure, column), default=0.0) for column in grid.cells]
    for lines in (1, 2, 3):
        headings = [_wrap(heading, lines, measure) for heading in grid.headings]
        widths = [max(cell, *map(measure, heading)) for cell, heading in zip(cells, headings, strict=True)]
        if sum(widths) + gap * (len(widths) - 1) <= available:
            return FittedColumns(tuple(range(len(widths))), tuple(headings), tuple(widths), ())
    heading_widths = [max(map(measure, heading)) for heading in headings]
    min_width = available / 3 / max(1, sum(grid.is_text))
    min_widths = [
        min(w, max(min_width, h)) if t else w for w, h, t in zip(widths, heading_widths, grid.is_text, strict=True)
    ]
    columns: list[int] = []
    for column in sorted(range(len(min_widths)), key=lambda c: (not grid.is_text[c], not any(grid.bold[c : c + 1]))):
        if not columns or sum(min_widths[c] + gap for c in columns) + min_widths[column] <= available:
            columns.append(column)
    columns.sort()
    room = available - gap * (len(columns) - 1) - sum(widths[c] for c in columns if not grid.is_text[c])
    names = sorted((c for c in columns if grid.is_text[c]), key=lambda c: widths[c])
    for place, column in enumerate(names):  # short names leave space to longer ones
        widths[column] = min(widths[column], room / (len(names) - place))
        room -= widths[column]
    left_out = tuple(heading for c, heading in enumerate(grid.headings) if c not in columns)
    return FittedColumns(
        tuple(columns), tuple(headings[c] for c in columns), tuple(widths[c] for c in columns), left_out
    )


def _wrap(text: str, lines: int, measure: Measure) -> tuple[str, ...]:
    """Wrap a heading to the smallest width that takes at most `lines` lines."""
    words = text.split() or [""]
    for width in sorted(
        {measure(" ".join(words[i:j])) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    ):
        rows = [words[0]]
        for word in words[1:]:
            if measure(f"{rows[-1]} {word}") <= width:
                rows[-1] += f" {word}"
            else:
                rows.append(word)
        if len(rows) <= lines and max(map(measure, rows)) <= width:
            return tuple(rows)
    return (text,)
