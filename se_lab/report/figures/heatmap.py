"""A metric by the two keys that a study varies: a cell for each pair of values."""

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
    """Chart the mean of a metric over two varied keys, dark where it is better; an empty cell has no finished trial.

    The SE units' key goes down, the net's or data's across; a baseline without a value of either is named in the note.
    Raises ReportError unless two keys vary.
    """
    if len(study.keys) != 2:
        raise ReportError(f"A heat map takes two varied keys, and these trials vary {', '.join(study.keys) or 'none'}.")
    across, down = study.keys
    of, estimate = column(metric, study.trials), computed.interval(study, metric)
    apart = study.is_baseline & across.startswith("model.se.")  # has no value of either key
    placed = np.flatnonzero(~apart)
    values_down = value_texts(study.variants[down]).mask(study.is_baseline & down.startswith("model.se."), BASELINE)
    row, rows = _numbered(values_down.iloc[placed], study.variants[down].iloc[placed])
    place, columns = _numbered(value_texts(study.variants[across]).iloc[placed], study.variants[across].iloc[placed])
    variant = np.full((len(rows), len(columns)), -1)
    variant[row, place] = placed
    values = np.where(variant >= 0, estimate.mean[variant], np.nan)
    hover = variant_hover(study, np.arange(len(study.variants)), estimate, of)
    cells = Cells(
        values,
        of.heading,
        [[number_text(value, of.decimals) for value in line] for line in values],
        dark_high=of.better == "higher",
        hover=[[hover[v] if v >= 0 else "" for v in line] for line in variant],
        keys=[[(int(v), -1) for v in line] for line in variant],
    )
    labels = [column(key, study.trials).label for key in (across, down)]
    panel = Panel(
        Axis(labels[0], (-0.5, len(columns) - 0.5), ticks=list(enumerate(columns)), names=True),
        Axis(labels[1], (len(rows) - 0.5, -0.5), ticks=list(enumerate(rows)), names=True),
        cells=cells,
    )
    names = study.variants["variant"]
    aside = np.flatnonzero(apart)
    texts = range_texts(estimate.mean[aside], estimate.low[aside], estimate.high[aside], decimals=of.decimals)
    apart_texts = [f" {names.iloc[v]}: {text} {of.unit}." for v, text in zip(aside, texts, strict=True)]
    note = f"{means_note(estimate.n)}.{''.join(apart_texts)}"
    return Chart("heatmap", f"{of.label} by {labels[1]} and {labels[0]}", note, [panel], rows=1.3 * len(rows) + 1)


def _numbered(names: pd.Series, values: pd.Series) -> tuple[NDArray[np.intp], list[str]]:
    """Return (V,) places of the names among the distinct ones, and those, in the order of their values."""
    distinct = pd.Index(names.iloc[number_order(values)].unique())
    return distinct.get_indexer(names), list(distinct)
