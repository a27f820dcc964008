"""Tables for the terminal, in one style for all verbs."""

from __future__ import annotations

import io
import os
import sys

from se_lab.report.grid import Grid, fit

EVERYTHING = 10_000
"""The width assumed for a file or a pipe, to which no table need be fitted."""


def terminal_width() -> int:
    """Return the terminal's width in characters (COLUMNS where set), or `EVERYTHING` without a terminal."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        from rich.console import Console

        return Console().width
    return EVERYTHING


def terminal_text(grid: Grid, width: int | None = None) -> str:
    """Write a table for a terminal; columns that do not fit are named beneath it.

    Args:
        grid: The table.
        width: The width in characters, by default that of the terminal. There are escape codes only where stdout is
            a terminal.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = width or terminal_width()
    layout = fit(grid, width, cell_len, gap=2)
    heading_lines = max(map(len, layout.headings))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(layout.columns):
        heading = Text("\n" * (heading_lines - len(layout.headings[place])) + "\n".join(layout.headings[place]))
        table.add_column(
            heading,
            justify="left" if grid.is_text[column] else "right",
            width=int(layout.widths[place]),
            no_wrap=not grid.is_text[column],
            overflow="fold",
        )
    rows = len(grid.cells[0])
    for row in range(rows):
        cells = [Text(grid.cells[c][row], style="bold" if grid.is_bold(c, row) else "") for c in layout.columns]
        table.add_row(*cells, end_section=row + 1 < rows and grid.starts_group(row + 1))
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=sys.stdout.isatty(), width=width, highlight=False)
    if grid.title:
        console.print(Text(grid.title, style="italic"), soft_wrap=width == EVERYTHING)
        console.print()
    console.print(table)
    notes = list(grid.notes)
    if layout.left_out:
        notes.insert(0, f"Not shown at {width} characters: {', '.join(layout.left_out)}.")
    if notes:
        console.print()
    for note in notes:
        console.print(Text(note), soft_wrap=width == EVERYTHING)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
