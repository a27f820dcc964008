"""Every figure that some trials can give, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from se_lab.report.columns import ReportError
from se_lab.report.figures.curves import training_figure
from se_lab.report.figures.differences import difference_figure, reduction_figure
from se_lab.report.figures.heatmap import heatmap_figure, parallel_figure
from se_lab.report.figures.tradeoff import tradeoff_figure
from se_lab.report.tables import refuse_absent_metric
from se_lab.report.variants import group_variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("tradeoff", "curves", "differences", "reduction", "heatmap", "parallel")
COSTS = ("params", "macs", "step_ms")


def draw_figures(
    records: pd.DataFrame,
    kinds: Sequence[str] = KINDS,
    costs: Sequence[str] = COSTS,
    metric: str = "test/top1_error",
    *,
    where: Mapping[str, object] | None = None,
) -> Iterator[tuple[str, Figure | str]]:
    """Draw figures one by one: the name of each, and the figure or why these trials cannot give it.

    A trade-off is drawn for each cost; the training curves are those of the metric's kind (`test/loss`: `loss`).
    Raises ReportError for trials that no figure can be made of, as `ablation_table` does for its table.
    """
    refuse_absent_metric(group_variants(records, where=where), metric)
    for name, draw in _figures(kinds, costs, metric):
        try:
            yield name, draw(records, where=where)
        except (ReportError, FileNotFoundError) as error:
            yield name, str(error)


def _figures(kinds: Sequence[str], costs: Sequence[str], metric: str) -> Iterator[tuple[str, Callable[..., Figure]]]:
    draw: dict[str, Callable[..., Figure]] = {
        "curves": partial(training_figure, metric=metric.split("/", 1)[-1]),
        "differences": partial(difference_figure, metric=metric),
        "reduction": partial(reduction_figure, metric=metric),
        "heatmap": partial(_heatmap, metric=metric),
        "parallel": partial(parallel_figure, metric=metric),
    }
    for kind in kinds:
        if kind == "tradeoff":
            yield from ((f"tradeoff_{cost}", partial(tradeoff_figure, cost=cost, metric=metric)) for cost in costs)
        else:
            yield kind, draw[kind]


def _heatmap(records: pd.DataFrame, metric: str, where: Mapping[str, object] | None) -> Figure:
    """Draw the two varied keys, the SE units' upwards and the backbone or data set across."""
    keys = group_variants(records, where=where).keys
    if len(keys) != 2:
        raise ReportError(f"A heat map takes two varied keys, and these trials vary {', '.join(keys) or 'none'}.")
    return heatmap_figure(records, keys[1], keys[0], metric, where=where)
