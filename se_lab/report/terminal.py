"""Tables on the terminal, of every verb in one style."""

from __future__ import annotations

import io
import os
import sys

from se_lab.report.grid import Grid, fit

EVERYTHING = 10_000
"""The width of a file or a pipe, which has none that the table would have to fit."""


def terminal_width() -> int:
    """Return the width of the terminal in characters, of COLUMNS where that is set, else `EVERYTHING`."""
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
    chosen = fit(grid, width, cell_len, gap=2)
    most = max(map(len, chosen.headings))
    printed = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(chosen.columns):
        heading = Text("\n" * (most - len(chosen.headings[place])) + "\n".join(chosen.headings[place]))
        printed.add_column(
            heading,
            justify="left" if grid.is_text[column] else "right",
            width=int(chosen.widths[place]),
            no_wrap=not grid.is_text[column],
            overflow="fold",
        )
    rows = len(grid.cells[0])
    for row in range(rows):
        cells = [Text(grid.cells[c][row], style="bold" if grid.is_bold(c, row) else "") for c in chosen.columns]
        printed.add_row(*cells, end_section=row + 1 < rows and grid.starts_group(row + 1))
    out = io.StringIO()
    console = Console(file=out, force_terminal=sys.stdout.isatty(), width=width, highlight=False)
    if grid.title:
        console.print(Text(grid.title, style="italic"), soft_wrap=width == EVERYTHING)
        console.print()
    console.print(printed)
    notes = list(grid.notes)
    if chosen.left_out:
        notes.insert(0, f"Not shown at {width} characters: {', '.join(chosen.left_out)}.")
    if notes:
        console.print()
    for note in notes:
        console.print(Text(note), soft_wrap=width == EVERYTHING)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
