"""Heat map of a metric over the two varied keys of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report import computed
from se_lab.report.columns import ReportError, column, number_order, number_text, range_texts, value_texts
from se_lab.report.figures.chart import Axis, Cells, Chart, Panel
from se_lab.report.figures.points import means_note, variant_hover
from se_lab.report.variants import BASELINE, Study


def heatmap(study: Study, metric: str) -> Chart:
    """Chart the mean of a metric over two varied keys, where darker is better.

    Rows are values of the SE key, columns of the group key; cells without finished trials are empty. A baseline without
    values of the keys is in the note. Raises ReportError unless two keys vary.
    """
    if len(study.keys) != 2:
        raise ReportError(f"A heat map needs two varied keys; these trials vary {', '.join(study.keys) or 'none'}.")
    column_key, row_key = study.keys
    col, estimate = column(metric, study.trials), computed.interval(study, metric)
    is_extra = study.is_baseline & column_key.startswith("model.se.")  # baselines without values of the keys
    cell_variants = np.flatnonzero(~is_extra)
    values_down = value_texts(study.variants[row_key]).mask(
        study.is_baseline & row_key.startswith("model.se."), BASELINE
    )
    row, rows = _number_names(values_down.iloc[cell_variants], study.variants[row_key].iloc[cell_variants])
    place, columns = _number_names(
        value_texts(study.variants[column_key]).iloc[cell_variants], study.variants[column_key].iloc[cell_variants]
    )
    variant = np.full((len(rows), len(columns)), -1)
    variant[row, place] = cell_variants
    values = np.where(variant >= 0, estimate.mean[variant], np.nan)
    hover = variant_hover(study, np.arange(len(study.variants)), estimate, col)
    cells = Cells(
        values,
        col.heading,
        [[number_text(value, col.decimals) for value in line] for line in values],
        dark_high=col.better == "higher",
        hover=[[hover[v] if v >= 0 else "" for v in line] for line in variant],
        keys=[[(int(v), -1) for v in line] for line in variant],
    )
    labels = [column(key, study.trials).label for key in (column_key, row_key)]
    panel = Panel(
        Axis(labels[0], (-0.5, len(columns) - 0.5), ticks=list(enumerate(columns)), names=True),
        Axis(labels[1], (len(rows) - 0.5, -0.5), ticks=list(enumerate(rows)), names=True),
        cells=cells,
    )
    names = study.variants["variant"]
    extras = np.flatnonzero(is_extra)
    texts = range_texts(estimate.mean[extras], estimate.low[extras], estimate.high[extras], decimals=col.decimals)
    extra_texts = [f" {names.iloc[v]}: {text} {col.unit}." for v, text in zip(extras, texts, strict=True)]
    note = f"{means_note(estimate.n)}.{''.join(extra_texts)}"
    return Chart("heatmap", f"{col.label} by {labels[1]} and {labels[0]}", note, [panel], rows=1.3 * len(rows) + 1)


def _number_names(names: pd.Series, values: pd.Series) -> tuple[NDArray[np.intp], list[str]]:
    """Return the indices (V,) of names among the distinct names, and those, ordered by value."""
    unique_names = pd.Index(names.iloc[number_order(values)].unique())
    return unique_names.get_indexer(names), list(unique_names)
