"""A finished table, and how it is written: terminal, Markdown, CSV, LaTeX, JSON, HTML."""

from __future__ import annotations

import html
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from se_lab.report.columns import BLANK, MINUS, Column, interval_text, is_missing, unknown, value_texts


@dataclass(frozen=True)
class Shown:
    """One printed column: where its values are in the table's data, and how they look."""

    column: Column
    value: str
    half: str | None = None
    """Data column with the half-width of the 95 % interval."""
    bold: str | None = None
    """Data column that is true where the value is printed bold."""
    divisor: float = 1.0
    signed: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the column holds names, not numbers."""
        return self.column.kind in ("spec", "text")


@dataclass(frozen=True)
class Table:
    """A table as data with what its columns mean.

    data: tidy, one row a variant, full precision; counts and times in units of one, errors in %. Besides what is
    printed: `variant` (its name), `group`, `is_baseline`. A metric's half-width is under `METRIC:ci95`, its paired
    difference to the baseline under `METRIC:difference`, `METRIC:difference:ci95` and `METRIC:pairs`.
    """

    title: str
    data: pd.DataFrame
    shown: tuple[Shown, ...]
    notes: tuple[str, ...]

    def render(self, format: str) -> str:
        """Write the table as text: terminal, markdown, csv, latex, json or html.

        CSV is the data alone, without notes. The terminal's text has escape codes only where stdout is a terminal.
        Raises ReportError for another format.
        """
        if format not in FORMATS:
            raise unknown("format", format, FORMATS)
        return FORMATS[format](self)


def _terminal(table: Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    printed = RichTable(box=box.SIMPLE_HEAD)
    for shown in table.shown:
        printed.add_column(shown.column.heading, justify="left" if shown.is_text else "right")
    columns = [_aligned(shown, table.data) for shown in table.shown]
    groups = table.data["group"].to_numpy()
    for i, cells in enumerate(zip(*columns, strict=True)):
        bold = [bool(shown.bold and table.data[shown.bold].iat[i]) for shown in table.shown]
        texts = [Text(cell, style="bold" if b else "") for cell, b in zip(cells, bold, strict=True)]
        printed.add_row(*texts, end_section=i + 1 < len(groups) and groups[i] != groups[i + 1])
    interactive = sys.stdout.isatty()
    out = io.StringIO()
    # A file or a pipe has no width that the table would have to fit.
    console = Console(file=out, force_terminal=interactive, width=None if interactive else 10_000, highlight=False)
    console.print(Text(table.title, style="italic"), soft_wrap=True)
    console.print(printed)
    for note in table.notes:
        console.print(Text(note.replace("Bold:", "Bold, *:", 1)), soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _aligned(shown: Shown, data: pd.DataFrame) -> list[str]:
    """Cells whose decimal points line up under right justification, a star after those that are best."""
    cells = cell_texts(shown, data)
    tails = [cell[cell.find(" ±") :] if " ±" in cell else "" for cell in cells]
    width = max(map(len, tails), default=0)
    cells = [cell[: len(cell) - len(tail)] + tail.rjust(width) for cell, tail in zip(cells, tails, strict=True)]
    if shown.bold and data[shown.bold].any():
        cells = [cell + ("*" if best else " ") for cell, best in zip(cells, data[shown.bold], strict=True)]
    return cells


def _markdown(table: Table) -> str:
    columns = []
    for shown in table.shown:
        cells = [cell.replace("|", r"\|") for cell in cell_texts(shown, table.data)]
        bold = table.data[shown.bold] if shown.bold else [False] * len(cells)
        cells = [f"**{cell}**" if best else cell for cell, best in zip(cells, bold, strict=True)]
        heading = shown.column.heading.replace("|", r"\|")
        width = max(3, len(heading), *map(len, cells))
        rule = "-" * width if shown.is_text else "-" * (width - 1) + ":"
        pad = str.ljust if shown.is_text else str.rjust
        columns.append([pad(heading, width), rule, *(pad(cell, width) for cell in cells)])
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    return "\n".join([f"**{table.title}**", "", *lines, "", *(f"- {note}" for note in table.notes)]) + "\n"


def _csv(table: Table) -> str:
    data = table.data.copy()
    for shown in table.shown:
        if shown.is_text:
            data[shown.value] = value_texts(data[shown.value]).mask(data[shown.value].isna(), "")
    return str(data.to_csv(index=False, lineterminator="\n"))


def _json(table: Table) -> str:
    columns = [
        {
            "key": shown.value,
            "label": shown.column.label,
            "unit": shown.column.unit if shown.divisor == 1 else "",
            "better": shown.column.better,
            "interval": shown.half,
        }
        for shown in table.shown
    ]
    rows = [{key: _plain(value) for key, value in row.items()} for row in table.data.to_dict("records")]
    whole = {"title": table.title, "columns": columns, "rows": rows, "notes": list(table.notes)}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """Return the value as JSON has it: NumPy scalars as Python's, NaN as null."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if is_missing(value) else value


def _html(table: Table) -> str:
    def cells(i: int) -> str:
        parts = []
        for shown, column in zip(table.shown, columns, strict=True):
            text = html.escape(column[i])
            best = shown.bold and table.data[shown.bold].iat[i]
            kind = ' class="text"' if shown.is_text else ""
            parts.append(f"<td{kind}>{f'<strong>{text}</strong>' if best else text}</td>")
        return "".join(parts)

    columns = [cell_texts(shown, table.data) for shown in table.shown]
    head = "".join(f'<th scope="col">{html.escape(shown.column.heading)}</th>' for shown in table.shown)
    body = "\n".join(f"<tr>{cells(i)}</tr>" for i in range(len(table.data)))
    notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f'<table class="ablation">\n<caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody>\n</table>\n<ul class="notes">\n{notes}\n</ul>\n'
    )


def _latex(table: Table) -> str:
    """Write a table environment with booktabs rules and siunitx S columns."""
    columns = [_latex_column(shown, table.data) for shown in table.shown]
    head = " & ".join(f"{{{_tex(shown.column.heading)}}}" for shown in table.shown)
    groups = table.data["group"].to_numpy()
    lines = []
    for i in range(len(table.data)):
        if i and groups[i] != groups[i - 1]:
            lines.append(r"    \midrule")
        lines.append("    " + " & ".join(cells[i] for _, cells in columns) + r" \\")
    return "\n".join(
        [
            r"% \usepackage{booktabs,siunitx}",
            r"% \sisetup{separate-uncertainty = true, retain-explicit-plus = true, detect-weight = true, mode = text}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(table.title)}}}",
            rf"  \begin{{tabular}}{{{''.join(kind for kind, _ in columns)}}}",
            r"    \toprule",
            rf"    {head} \\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\footnotesize {_tex(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _latex_column(shown: Shown, data: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the column's letter and its cells."""
    cells = cell_texts(shown, data)
    if shown.is_text:
        return "l", [_tex(cell) for cell in cells]
    plain = [cell.replace(MINUS, "-").replace(",", "").replace("±", r"\pm") for cell in cells]
    numbers = [cell for cell in plain if cell not in ("", BLANK)]
    whole = max((len(cell.split(".")[0].split(" ")[0].lstrip("+-")) for cell in numbers), default=1)
    decimals = shown.column.decimals or 0
    spread = [re.sub(r"\D", "", cell.split(r"\pm")[1]).lstrip("0") for cell in numbers if r"\pm" in cell]
    uncertain = f"({max(1, *map(len, spread))})" if spread else ""
    sign = "+" if shown.signed else "-" if any(cell.startswith("-") for cell in numbers) else ""
    cells = [cell if cell in numbers else f"{{{_tex(cell)}}}" for cell in plain]
    if shown.bold:
        cells = [rf"\bfseries {cell}" if best else cell for cell, best in zip(cells, data[shown.bold], strict=True)]
    return f"S[table-format={sign}{whole}.{decimals}{uncertain}]", cells


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    MINUS: "$-$",
    BLANK: "--",
    "≥": r"$\ge$",
    "√": r"$\surd$",
    **{char: rf"\{char}" for char in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)


def cell_texts(shown: Shown, data: pd.DataFrame) -> list[str]:
    """Write the column's cells: `7.41 ± 0.32`; a dash where a number is missing, nothing where none belongs."""
    if shown.is_text:
        return list(_labels(shown, data))
    decimals = shown.column.decimals
    values = data[shown.value].to_numpy(dtype=float) / shown.divisor
    halves = data[shown.half].to_numpy(dtype=float) / shown.divisor if shown.half else np.full(len(values), np.nan)
    texts = [interval_text(*pair, decimals, signed=shown.signed) for pair in zip(values, halves, strict=True)]
    if shown.signed:  # a difference to itself is no number that is missing
        texts = ["" if base else text for text, base in zip(texts, data["is_baseline"], strict=True)]
    return texts


def _labels(shown: Shown, data: pd.DataFrame) -> pd.Series:
    """Write the values of a key; the baseline has `no SE` under the first SE key and nothing under the others."""
    texts = value_texts(data[shown.value])
    if not shown.value.startswith("model.se."):
        return texts
    first = next(key for key in data if str(key).startswith("model.se."))
    return texts.mask(data["is_baseline"], "no SE" if shown.value == first else "")


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
    "html": _html,
}
