"""Print tables of states, plans, backbones and findings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from se_lab.report.grid import Grid
from se_lab.report.terminal import terminal_text

_NUMBER = re.compile(r"[-+−]?[\d.,]+( ?(%|[kMG]|[kMGT]?i?B|bytes|ms|s|min|h|days)( \d+ (s|min))?)?")


def show(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns that do not fit the terminal are named in a note."""
    columns = [[row[place] for row in rows] for place in range(len(headings))]
    is_text = [not all(_NUMBER.fullmatch(cell) for cell in column if cell) for column in columns]
    print(terminal_text(Grid(headings, columns, is_text)), end="")
