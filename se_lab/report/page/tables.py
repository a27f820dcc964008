"""Data of the tables of a page, with differences from any variant."""

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
"""Maximum number of settings offered as baseline; beyond it, only insertion none."""


def table_data(table: Table) -> dict[str, Any]:
    """Return columns with printed cells and sort keys, and the table in formats for copying."""
    grid = table.grid()
    columns = []
    for c, col in enumerate(table.columns):
        numbers = pd.to_numeric(table.data[col.value], errors="coerce").to_numpy(dtype=float)
        raw = [number(value) for value in numbers]
        texts = grid.cells[c]
        is_name = col.is_text and not np.isfinite(numbers).any()
        columns.append(
            {"key": col.value, "label": grid.headings[c], "text": col.is_text, "cells": texts, "bold": grid.bold[c],
             "by": texts if is_name else raw, "raw": texts if is_name else raw}
        )  # fmt: skip
    copies = {name: _parts(table.render(format), format, len(table.data)) for name, format in COPIES.items()}
    return {"title": table.title, "columns": columns, "notes": list(table.notes), "copies": copies}


COPIES = {"LaTeX": "latex", "Markdown": "markdown", "CSV": "csv"}


def _parts(text: str, format: str, rows: int) -> dict[str, Any]:
    """Split the text of a table into head, rows and foot."""
    lines = text.rstrip("\n").split("\n")
    start = {"latex": r"    \midrule", "markdown": "", "csv": None}[format]
    first = lines.index(start) + 1 if start is not None else 1
    first += 2 * (format == "markdown")
    body = [line for line in lines[first:] if line != r"    \midrule"]
    return {"head": "\n".join(lines[:first]), "rows": body[:rows], "foot": "\n".join(body[rows:])}


def settings(study: Study) -> list[str]:
    """Return the name of each variant without its group."""
    pairs = study.variants[["group", "variant"]].itertuples(index=False)
    return [name.removeprefix(f"{group}, ") if name != group else name for group, name in pairs]


def bases(study: Study, metric: str) -> list[dict[str, Any]]:
    """Return the study and the column of differences for each setting that can be the baseline.

    Insertion none is first. A group without the setting keeps its own baseline. Settings without a finished trial are
    omitted. The list is empty if there is no baseline.
    """
    names = np.array(settings(study), dtype=object)
    baseline = study.baseline
    if not (baseline >= 0).any():
        return []
    choices = [BASELINE, *(name for name in dict.fromkeys(names) if not name.endswith(BASELINE))]
    col = column(metric, study.trials)
    answer = []
    for name in choices if len(choices) <= MOST_BASES else choices[:1]:
        mask = study.is_baseline if name == BASELINE else names == name
        base = baseline.copy()
        for variant in np.flatnonzero(mask):
            base[study.group == study.group[variant]] = variant
        new_study = dataclasses.replace(study, baseline=base)
        estimate = computed.differences(new_study, metric)
        if not np.isfinite(estimate.mean[~new_study.is_baseline]).any():  # no finished trials
            continue
        texts = [
            "" if is_base else interval_text(value, half, col.decimals, signed=True)
            for is_base, value, half in zip(new_study.is_baseline, estimate.mean, estimate.half_width, strict=True)
        ]
        unit = "points" if col.unit == "%" else col.unit
        answer.append(
            {"study": new_study, "name": name, "variants": [int(v) for v in np.flatnonzero(mask)], "cells": texts,
             "by": [number(value) for value in estimate.mean], "column": f"{metric}:difference",
             "heading": f"Δ {col.label} to {name}" + (f" ({unit})" if unit else "")}
        )  # fmt: skip
    return answer


def number(value: float) -> float | None:
    """Return a number for JSON, with None for NaN."""
    return float(value) if np.isfinite(value) else None
