"""The tables of a page: cells, what they sort by, and the text to copy; differences to any variant."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from se_lab.report import computed
from se_lab.report.columns import column, interval_text
from se_lab.report.render import Table
from se_lab.report.variants import BASELINE, Study

MOST_BASES = 24
"""Of more variants in a group, only the usual baseline can be compared with."""


def table_data(table: Table) -> dict[str, Any]:
    """Return the columns with their cells as they are printed, what they sort by, and the table in formats to copy."""
    grid = table.grid()
    columns = []
    for c, shown in enumerate(table.shown):
        numbers = pd.to_numeric(table.data[shown.value], errors="coerce").to_numpy(dtype=float)
        raw = [number(value) for value in numbers]
        texts = grid.cells[c]
        names = shown.is_text and not np.isfinite(numbers).any()
        columns.append(
            {"key": shown.value, "label": grid.headings[c], "text": shown.is_text, "cells": texts, "bold": grid.bold[c],
             "by": texts if names else raw, "raw": texts if names else raw}
        )  # fmt: skip
    copies = {name: _parts(table.render(format), format, len(table.data)) for name, format in COPIES.items()}
    return {"title": table.title, "columns": columns, "notes": list(table.notes), "copies": copies}


COPIES = {"LaTeX": "latex", "Markdown": "markdown", "CSV": "csv"}


def _parts(text: str, format: str, rows: int) -> dict[str, Any]:
    """Return a table's text as what stands before its rows, the rows, and what stands behind them."""
    lines = text.rstrip("\n").split("\n")
    start = {"latex": r"    \midrule", "markdown": "", "csv": None}[format]
    first = lines.index(start) + 1 if start is not None else 1
    first += 2 * (format == "markdown")
    body = [line for line in lines[first:] if line != r"    \midrule"]
    return {"head": "\n".join(lines[:first]), "rows": body[:rows], "foot": "\n".join(body[rows:])}


def settings(study: Study) -> list[str]:
    """Return the name of each variant without its group's: what variants of several groups have in common."""
    pairs = study.variants[["group", "variant"]].itertuples(index=False)
    return [name.removeprefix(f"{group}, ") if name != group else name for group, name in pairs]


def bases(study: Study, metric: str) -> list[dict[str, Any]]:
    """Return, for each setting that variants can be compared with, the study so compared and the table's column.

    The usual baseline comes first. A group that lacks a setting keeps its own baseline. Empty without a baseline.
    """
    names = np.array(settings(study), dtype=object)
    usual = study.baseline
    if not (usual >= 0).any():
        return []
    distinct = [BASELINE, *(name for name in dict.fromkeys(names) if not name.endswith(BASELINE))]
    of = column(metric, study.trials)
    answer = []
    for name in distinct if len(distinct) <= MOST_BASES else distinct[:1]:
        mine = study.is_baseline if name == BASELINE else names == name
        base = usual.copy()
        for variant in np.flatnonzero(mine):
            base[study.group == study.group[variant]] = variant
        other = dataclasses.replace(study, baseline=base)
        estimate = computed.differences(other, metric)
        texts = [
            "" if itself else interval_text(value, half, of.decimals, signed=True)
            for itself, value, half in zip(other.is_baseline, estimate.mean, estimate.half_width, strict=True)
        ]
        unit = "points" if of.unit == "%" else of.unit
        answer.append(
            {"study": other, "name": name, "variants": [int(v) for v in np.flatnonzero(mine)], "cells": texts,
             "by": [number(value) for value in estimate.mean], "column": f"{metric}:difference",
             "heading": f"Δ {of.label} to {name}" + (f" ({unit})" if unit else "")}
        )  # fmt: skip
    return answer


def number(value: float) -> float | None:
    """Return a number as JSON has it, None for NaN."""
    return float(value) if np.isfinite(value) else None
