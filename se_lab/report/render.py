"""A table and its output formats: terminal, Markdown, CSV, LaTeX, JSON, HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from se_lab.report.columns import Column, interval_text, is_missing, range_texts, unknown_name, value_texts
from se_lab.report.grid import Grid
from se_lab.report.latex import Setting, latex_text
from se_lab.report.terminal import terminal_text


@dataclass(frozen=True)
class PrintedColumn:
    """A column as a table prints it: its meaning, and the data columns with the values of its cells."""

    column: Column
    value: str
    half: str | None = None
    """Data column with the value to print after ±, such as the half-width of the 95 % interval."""
    bold: str | None = None
    """Boolean data column that marks bold cells."""
    divisor: float = 1.0
    signed: bool = False
    ends: tuple[str, str] | None = None
    """Data columns with the ends of an interval that may be asymmetric."""
    total: str | None = None
    """Data column with the total for a count."""

    @property
    def is_text(self) -> bool:
        """Whether the column contains names, not numbers."""
        return self.column.kind in ("spec", "text")


@dataclass(frozen=True)
class Table:
    """A table of variants.

    data: one row per variant in full precision, with counts and times without SI prefix and errors in %. Columns that
    are not printed: `variant` (the name), `group`, `is_baseline`; for each metric the interval `METRIC:low` and
    `METRIC:high`, the standard deviation `METRIC:std`, and the difference from the baseline `METRIC:difference`,
    with half-width `METRIC:difference:ci95` and number of seeds `METRIC:pairs`.
    """

    title: str
    data: pd.DataFrame
    columns: tuple[PrintedColumn, ...]
    notes: tuple[str, ...]

    def render(self, format: str, *, width: int | None = None, setting: Setting | None = None) -> str:
        """Format the table as terminal, markdown, csv, latex, json or html.

        CSV has no notes. Terminal text is `width` characters wide, by default the terminal's width, with escape codes
        only if stdout is a terminal. `setting` is for LaTeX. Raises ReportError for an unknown format.
        """
        if format not in FORMATS:
            raise unknown_name("format", format, FORMATS)
        return FORMATS[format](self, width, setting or Setting())

    def grid(self) -> Grid:
        """Return the printed cells of the table."""
        return Grid(
            headings=[col.column.heading for col in self.columns],
            cells=[cell_texts(col, self.data) for col in self.columns],
            is_text=[col.is_text for col in self.columns],
            title=self.title,
            notes=self.notes,
            bold=[list(self.data[col.bold].astype(bool)) if col.bold else [] for col in self.columns],
            groups=list(self.data["group"]),
        )


def _add_stars(grid: Grid) -> Grid:
    """Return the grid with aligned decimal points, and a star after bold cells."""
    cells = [_align(*column) for column in zip(grid.cells, grid.bold, strict=True)]
    return replace(grid, cells=cells, notes=[note.replace("Bold:", "Bold, *:", 1) for note in grid.notes])


def _align(cells: Sequence[str], bold: Sequence[bool]) -> list[str]:
    tails = [match[0] if (match := re.search(r" [±(].*", cell)) else "" for cell in cells]
    width = max(map(len, tails), default=0)
    texts = [cell[: len(cell) - len(tail)] + tail.rjust(width) for cell, tail in zip(cells, tails, strict=True)]
    return [cell + ("*" if best else " ") for cell, best in zip(texts, bold, strict=True)] if any(bold) else texts


def _markdown(grid: Grid) -> str:
    columns = []
    for c, (heading, texts) in enumerate(zip(grid.headings, grid.cells, strict=True)):
        cells = [text.replace("|", r"\|") for text in texts]
        cells = [f"**{cell}**" if grid.is_bold(c, row) else cell for row, cell in enumerate(cells)]
        heading = heading.replace("|", r"\|")
        width = max(3, len(heading), *map(len, cells))
        rule = "-" * width if grid.is_text[c] else "-" * (width - 1) + ":"
        pad = str.ljust if grid.is_text[c] else str.rjust
        columns.append([pad(heading, width), rule, *(pad(cell, width) for cell in cells)])
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    return "\n".join([f"**{grid.title}**", "", *lines, "", *(f"- {note}" for note in grid.notes)]) + "\n"


def _csv(table: Table) -> str:
    data = table.data.copy()
    for col in table.columns:
        if col.is_text:
            data[col.value] = value_texts(data[col.value]).mask(data[col.value].isna(), "")
    return str(data.to_csv(index=False, lineterminator="\n"))


def _json(table: Table) -> str:
    columns = [
        {
            "key": col.value,
            "label": col.column.label,
            "unit": col.column.unit if col.divisor == 1 else "",
            "better": col.column.better,
            "interval": col.half or col.ends,
        }
        for col in table.columns
    ]
    rows = [{key: _plain(value) for key, value in row.items()} for row in table.data.to_dict("records")]
    document = {"title": table.title, "columns": columns, "rows": rows, "notes": list(table.notes)}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """Convert a value for JSON: NumPy scalars to Python scalars, NaN to None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if is_missing(value) else value


def _html(grid: Grid) -> str:
    def row_of(row: int) -> str:
        cells = []
        for c, column in enumerate(grid.cells):
            text = f"<strong>{html.escape(column[row])}</strong>" if grid.is_bold(c, row) else html.escape(column[row])
            kind = ' class="text"' if grid.is_text[c] else ""
            cells.append(f"<td{kind}>{text}</td>")
        return f"<tr>{''.join(cells)}</tr>"

    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in grid.headings)
    body = "\n".join(map(row_of, range(len(grid.cells[0]))))
    notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in grid.notes)
    return (
        f'<table class="ablation">\n<caption>{html.escape(grid.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody>\n</table>\n<ul class="notes">\n{notes}\n</ul>\n'
    )


def cell_texts(col: PrintedColumn, data: pd.DataFrame) -> list[str]:
    """Format the cells of a column, such as `7.41 ± 0.32`, or a dash for a missing number."""
    if col.is_text:
        return list(_labels(col, data))
    decimals = col.column.decimals
    values = data[col.value].to_numpy(dtype=float) / col.divisor
    halves = data[col.half].to_numpy(dtype=float) / col.divisor if col.half else np.full(len(values), np.nan)
    if col.ends:
        return range_texts(
            values,
            *(data[end].to_numpy(dtype=float) for end in col.ends),
            decimals=decimals,
            even=col.column.kind == "metric",
        )
    texts = [interval_text(*pair, decimals, signed=col.signed) for pair in zip(values, halves, strict=True)]
    if col.total:
        totals = data[col.total].to_numpy(dtype=int)
        texts = [
            text if n == total else f"{text}/{total} finished"
            for text, n, total in zip(texts, values, totals, strict=True)
        ]
    if col.signed:  # empty for the baseline, not a dash
        texts = ["" if base else text for text, base in zip(texts, data["is_baseline"], strict=True)]
    return texts


def _labels(col: PrintedColumn, data: pd.DataFrame) -> pd.Series:
    """Format the values of a spec key; the baseline is `no SE` in the first SE key only."""
    texts = value_texts(data[col.value])
    if not col.value.startswith("model.se."):
        return texts
    first_key = next(key for key in data if str(key).startswith("model.se."))
    return texts.mask(data["is_baseline"], "no SE" if col.value == first_key else "")


FORMATS: dict[str, Callable[[Table, int | None, Setting], str]] = {
    "terminal": lambda table, width, _: terminal_text(_add_stars(table.grid()), width),
    "markdown": lambda table, *_: _markdown(table.grid()),
    "csv": lambda table, *_: _csv(table),
    "latex": lambda table, _, setting: latex_text(table.grid(), setting),
    "json": lambda table, *_: _json(table),
    "html": lambda table, *_: _html(table.grid()),
}
