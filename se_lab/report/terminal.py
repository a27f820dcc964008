"""Tables for the terminal."""

from __future__ import annotations

import io
import os
import sys

from se_lab.report.grid import Grid, fit

EVERYTHING = 10_000
"""Width for a file or a pipe, where tables are not limited."""


def terminal_width() -> int:
    """Return the terminal's width in characters (COLUMNS if set), or else `EVERYTHING`."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        from rich.console import Console

        return Console().width
    return EVERYTHING


def terminal_text(grid: Grid, width: int | None = None) -> str:
    """Format a table for a terminal, with escape codes only if stdout is a terminal.

    Args:
        grid: The table; columns that do not fit are named in a note.
        width: Width in characters, by default that of the terminal.
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
        notes.insert(0, f"Columns that do not fit {width} characters: {', '.join(layout.left_out)}.")
    if notes:
        console.print()
    for note in notes:
        console.print(Text(note), soft_wrap=width == EVERYTHING)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
