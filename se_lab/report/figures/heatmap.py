"""Figures of a whole sweep at a glance: a heat map of two keys, and parallel coordinates of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from se_lab.report import statistics
from se_lab.report.columns import Column, ReportError, column, number_text, value_texts, with_prefix
from se_lab.report.figures.canvas import canvas
from se_lab.report.statistics import Floats
from se_lab.report.tables import pivot_table, refuse_absent_metric
from se_lab.report.variants import BASELINE, Study, group_variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 200
"""Cells of a heat map beyond which numbers would not be legible."""
Scale = tuple[str, Floats, list[tuple[float, str]]]


def heatmap_figure(
    records: pd.DataFrame,
    index: str,
    across: str,
    metric: str = "test/top1_error",
    *,
    where: Mapping[str, object] | None = None,
) -> Figure:
    """Draw the mean of a metric over two varied keys, dark where it is better; an empty cell has no finished trial.

    Raises ReportError as `pivot_table` does.
    """
    table = pivot_table(records, index, across, metric=metric, where=where)
    of, columns = column(metric, records), [shown for shown in table.shown if not shown.is_text]
    means = table.data[[shown.value for shown in columns]].to_numpy(dtype=float)
    with canvas(1.8 + 0.75 * means.shape[1], 1.2 + 0.36 * means.shape[0]) as (figure, (axes,)):
        name = "cividis" if of.better != "higher" else "cividis_r"
        image = axes.imshow(means, cmap=name, aspect="auto")
        axes.set_xticks(range(len(columns)), [shown.column.label for shown in columns])
        axes.set_yticks(range(len(means)), table.data["variant"])
        if max(len(shown.column.label) for shown in columns) > 9:
            axes.tick_params(axis="x", rotation=30)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if means.size <= MOST_NUMBERS:
            for (row, cell), value in np.ndenumerate(means):
                dark = np.isfinite(value) and sum(image.cmap(image.norm(value))[:3]) < 1.5
                text = number_text(value, of.decimals)
                axes.text(cell, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xlabel(column(across, records).label)
        axes.set_ylabel(column(index, records).label)
        figure.colorbar(image, label=of.heading)
    return figure


def parallel_figure(
    records: pd.DataFrame, metric: str = "test/top1_error", *, where: Mapping[str, object] | None = None
) -> Figure:
    """Draw a line a variant across the varied keys, parameters, MACs and the metric; dark and on top where better.

    Numbers stand in their order, evenly spaced, as the values of a sweep do; parameters, MACs and the metric to scale.
    Raises ReportError where there is a single variant.
    """
    study = group_variants(records, where=where)
    refuse_absent_metric(study, metric)
    mean = statistics.t_interval(study.by_seed(metric).to_numpy()).mean
    drawn = np.flatnonzero(np.isfinite(mean))
    if len(drawn) < 2:
        raise ReportError("Parallel coordinates compare variants, and only one has finished.")
    of = column(metric, study.trials)
    order = drawn[np.argsort(mean[drawn] if of.better == "higher" else -mean[drawn], kind="stable")]
    scales = parallel_scales(study, metric, mean)
    heights = np.column_stack([height for _, height, _ in scales])

    with canvas(1.5 + 1.25 * len(scales), 4.2) as (figure, (axes,)):
        from matplotlib import colormaps
        from matplotlib.collections import LineCollection

        x = np.arange(len(scales))
        lines = [np.column_stack([x, heights[i]])[np.isfinite(heights[i])] for i in order]
        width = float(np.clip(40 / len(order), 0.4, 1.6))
        axes.add_collection(
            LineCollection(lines, colors=colormaps["cividis"](shades(mean[order], of)), linewidths=width)
        )
        for place, (name, _, ticks) in enumerate(scales):
            axes.plot([place, place], [0, 1], color="0.25", linewidth=0.8)
            for height, text in ticks:
                axes.annotate(
                    text, (place, height), (3, 0), textcoords="offset points", fontsize=7, va="center",
                    bbox={"boxstyle": "square,pad=0.1", "color": "white", "linewidth": 0},
                )  # fmt: skip
            axes.annotate(name, (place, 1.06), ha="center", fontsize=8, annotation_clip=False)
        axes.set_xlim(-0.35, len(scales) - 0.45)
        axes.set_ylim(-0.04, 1.1)
        axes.set_axis_off()
    return figure


def shades(means: Floats, of: Column) -> Floats:
    """(L,) places in a colour map, 0 for the best; its lightest part, which white paper swallows, is left out."""
    rank = -means if of.better == "higher" else means
    return np.asarray(0.8 * (rank - rank.min()) / (np.ptp(rank) or 1.0))


def parallel_scales(study: Study, metric: str, mean: Floats) -> list[Scale]:
    """Heading, heights (V,) from 0 to 1 and ticks of each axis: varied keys, costs that differ, the metric."""
    costs = [key for key in ("params", "macs") if key in study.trials and study.trials[key].nunique() > 1]
    return [
        *(_key_scale(study, key) for key in study.keys),
        *(_number_scale(study.per_variant(key, "first").to_numpy(), key) for key in costs),
        _number_scale(mean, metric, study),
    ]


def _key_scale(study: Study, key: str) -> Scale:
    """Heading, heights (V,) and ticks of a varied key: its values in order, evenly spaced, the baseline lowest."""
    values = study.variants[key]
    texts = value_texts(values).mask(study.is_baseline & key.startswith("model.se."), BASELINE)
    numeric = pd.to_numeric(values, errors="coerce")
    firsts = pd.DataFrame({"text": texts, "value": numeric}).drop_duplicates("text")
    bottom = firsts["text"] == BASELINE
    by = ["bottom", "value"] if firsts.loc[~bottom, "value"].notna().all() else ["bottom"]
    ranked = firsts.assign(bottom=~bottom).sort_values(by, kind="stable")["text"].tolist()
    heights = {text: (i / (len(ranked) - 1) if len(ranked) > 1 else 0.5) for i, text in enumerate(ranked)}
    step = max(1, len(ranked) // 20)
    ticks = [(height, text) for i, (text, height) in enumerate(heights.items()) if i % step == 0]
    return column(key, study.trials).label, texts.map(heights).to_numpy(dtype=float), ticks


def _number_scale(values: Floats, key: str, study: Study | None = None) -> Scale:
    """Heading, heights (V,) and five ticks of a number, to scale."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    of = column(key, study.trials if study else ())
    scaled, divisor = with_prefix(of, high)
    span = (high - low) or 1.0
    at = [(part, (low + part * span) / divisor) for part in np.linspace(0, 1, 5)]
    ticks = [(part, f"{value:.4g}" if of.decimals is None else number_text(value, of.decimals)) for part, value in at]
    return scaled.heading, (values - low) / span, ticks
