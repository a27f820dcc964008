"""All figures of a study, as Matplotlib figures and for the page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from se_lab.report.columns import ReportError, unknown_name
from se_lab.report.figures.chart import Chart
from se_lab.report.figures.classes import classes
from se_lab.report.figures.curves import curves
from se_lab.report.figures.differences import differences
from se_lab.report.figures.heatmap import heatmap
from se_lab.report.figures.image import draw
from se_lab.report.figures.look import Look
from se_lab.report.figures.page import section
from se_lab.report.figures.parallel import parallel
from se_lab.report.figures.reduction import reduction
from se_lab.report.figures.tradeoff import tradeoff
from se_lab.report.tables import refuse_absent_metric
from se_lab.report.variants import Study, group_variants
from se_lab.spec import SpecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARTS: dict[str, Callable[[Study, str], Chart]] = {
    "curves": curves,
    "differences": differences,
    "reduction": reduction,
    "heatmap": heatmap,
    "parallel": parallel,
    "classes": classes,
}
"""Charts of a study and a metric by kind, except the trade-off, which needs a cost as well."""
KINDS = ("tradeoff", *CHARTS)
MOST_CONTRASTS = 12
"""Maximum number of variants whose errors by class a page shows."""
COSTS = ("params", "macs", "step_ms")


def draw_figure(
    records: pd.DataFrame,
    kind: str,
    metric: str = "test/top1_error",
    *,
    cost: str = "params",
    contrast: tuple[str, str] | None = None,
    look: Look | None = None,
) -> Figure:
    """Draw a figure of one of KINDS: tradeoff uses `cost`, classes uses `contrast`.

    Raises ReportError for an unknown kind, and if the figure cannot be drawn for these trials.
    """
    if kind not in KINDS:
        raise unknown_name("kind of figure", kind, KINDS)
    study = group_variants(records)
    refuse_absent_metric(study, metric)
    _, make = next(_charts([kind], [cost], contrast))
    return draw(make(study, metric), look)


def draw_figures(
    records: pd.DataFrame,
    kinds: Sequence[str] = KINDS,
    costs: Sequence[str] = COSTS,
    metric: str = "test/top1_error",
    *,
    contrast: tuple[str, str] | None = None,
    look: Look | None = None,
) -> Iterator[tuple[str, Figure | str]]:
    """Draw figures; yield the name of each with the figure or the reason for an error.

    There is a trade-off for each cost. Training curves are validation and training curves of the metric. `contrast`
    names the two variants for errors by class. Raises ReportError as `ablation_table`.
    """
    study = group_variants(records)
    refuse_absent_metric(study, metric)
    for name, make in _charts(kinds, costs, contrast):
        try:
            yield name, draw(make(study, metric), look)
        except SpecError as error:  # a ReportError, or a corrupt file
            yield name, str(error)


def page_sections(study: Study, metric: str, by_base: Sequence[Study]) -> list[dict[str, Any]]:
    """Return the available figures of a study for its page, in the format of `page.section`.

    by_base: The same study with each choice of baseline, for the differences.
    """
    kinds: dict[str, tuple[str, list[Callable[[], Chart]]]] = {
        "tradeoff": ("Error against cost", [partial(tradeoff, study, metric, cost) for cost in COSTS]),
        "differences": ("Difference from the baseline", [partial(differences, s, metric) for s in by_base]),
        "reduction": ("Reduction ratio", [partial(reduction, study, metric)]),
        "heatmap": ("By both settings", [partial(heatmap, study, metric)]),
        "class_differences": ("Errors by class, against the baseline", _class_charts(study, metric)),
        "parallel": ("All variants at a glance", [partial(parallel, study, metric)]),
    }
    sections = []
    for key, (title, makers) in kinds.items():
        charts = []
        for make in makers:
            with contextlib.suppress(ReportError):
                charts.append(make())
        if entry := section(key, title, charts):
            sections.append(entry)
    return sections


def _class_charts(study: Study, metric: str) -> list[Callable[[], Chart]]:
    """Return functions that chart errors by class, for variants with a baseline."""
    names = study.variants["variant"]
    rows = [row for row, base in enumerate(study.baseline) if base not in (-1, row)][:MOST_CONTRASTS]
    return [
        partial(classes, study, metric, (str(names.iloc[row]), str(names.iloc[study.baseline[row]]))) for row in rows
    ]


def _charts(
    kinds: Sequence[str], costs: Sequence[str], contrast: tuple[str, str] | None
) -> Iterator[tuple[str, Callable[[Study, str], Chart]]]:
    for kind in kinds:
        if kind == "tradeoff":
            yield from ((f"tradeoff_{cost}", partial(tradeoff, cost=cost)) for cost in costs)
        elif kind == "classes":
            yield kind, partial(classes, contrast=contrast)
        else:
            yield kind, CHARTS[kind]
