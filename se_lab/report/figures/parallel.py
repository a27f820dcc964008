"""Parallel coordinates: each variant as a line across varied keys, costs and the metric."""

from __future__ import annotations

import numpy as np
import pandas as pd

from se_lab.report import computed
from se_lab.report.columns import ReportError, column, value_texts, with_prefix
from se_lab.report.figures.chart import Axis, Cells, Chart, Floats, Panel, Series, Text, Tick, log_ticks, round_ticks
from se_lab.report.figures.points import variant_hover
from se_lab.report.variants import BASELINE, Study

MOST_LINES = 400
_TICKS = 20  # maximum number of ticks for the values of a key
_IN_ORDER = 8  # with more distinct numbers, as in a random search, the axis of a group key is to scale


def parallel(study: Study, metric: str) -> Chart:
    """Chart a line per variant across the varied keys, parameters, MACs and the metric.

    Better variants are darker and on top. Values of a key are sorted and evenly spaced; parameters, MACs, the metric
    and group keys with many numbers are to scale. Raises ReportError if fewer than two variants have finished.
    """
    col, estimate = column(metric, study.trials), computed.interval(study, metric)
    variants = np.flatnonzero(np.isfinite(estimate.mean))
    if len(variants) < 2 or not study.keys:
        raise ReportError("Parallel coordinates need at least two finished variants.")
    worst_first = np.argsort(estimate.mean[variants] * (1 if col.better == "higher" else -1), kind="stable")
    order = variants[worst_first][-MOST_LINES:]
    scales = _scales(study, metric, estimate.mean)
    heights = np.column_stack([height for _, height, _ in scales])
    means = Cells(estimate.mean[order][:, None], col.heading, dark_high=col.better == "higher", part=0.8)
    places = np.arange(len(scales), dtype=float)
    series = [
        Series(np.full(2, place), np.array([0.0, 1.0]), color="#404040", dash="solid", width=0.8) for place in places
    ]
    width = float(np.clip(40 / len(order), 0.4, 1.6))
    for variant, color in zip(order, means.color_of(estimate.mean[order]), strict=True):
        line = np.isfinite(heights[variant])
        hover = variant_hover(study, np.array([variant]), estimate, col)
        series.append(
            Series(
                places[line],
                heights[variant][line],
                color=color,
                dash="solid",
                width=width,
                hover=hover,
                keys=[(int(variant), -1)],
                front=1,
            )
        )
    panel = Panel(
        Axis(
            limits=(-0.15, len(scales) - 0.45), ticks=[(i, name) for i, (name, _, _) in enumerate(scales)], names=True
        ),
        Axis(limits=(-0.03, 1.03), visible=False),
        series,
        texts=[Text(place, y, text) for place, (_, _, ticks) in enumerate(scales) for y, text in ticks],
    )
    note = f"One line per variant; darker means better {col.label}."
    if len(variants) > len(order):
        note += f" {len(variants) - len(order)} worse variants are omitted."
    return Chart("parallel", f"{len(order)} variants at a glance", note, [panel], color_key=means)


def _scales(study: Study, metric: str, mean: Floats) -> list[tuple[str, Floats, list[Tick]]]:
    """Return heading, heights (V,) from 0 to 1 and ticks of each axis."""
    costs = [key for key in ("params", "macs") if key in study.trials and study.trials[key].nunique() > 1]
    return [
        *(_key_scale(study, key) for key in study.keys),
        *(_number_scale(study, key, study.per_variant(key, "first").to_numpy()) for key in costs),
        _number_scale(study, metric, mean),
    ]


def _key_scale(study: Study, key: str) -> tuple[str, Floats, list[Tick]]:
    """Return heading, heights (V,) and ticks of a varied key, the baseline lowest."""
    values = study.variants[key]
    numbers = pd.to_numeric(values, errors="coerce")
    if key in study.group_keys and numbers.notna().all() and numbers.nunique() > _IN_ORDER:
        return _number_scale(study, key, numbers.to_numpy(dtype=float))
    texts = value_texts(values).mask(study.is_baseline & key.startswith("model.se."), BASELINE)
    firsts = pd.DataFrame({"text": texts, "value": numbers}).drop_duplicates("text")
    firsts["above"] = firsts["text"] != BASELINE
    sort_keys = ["above", "value"] if firsts.loc[firsts["above"], "value"].notna().all() else ["above"]
    order = firsts.sort_values(sort_keys, kind="stable")["text"].tolist()
    heights = {text: (i / (len(order) - 1) if len(order) > 1 else 0.5) for i, text in enumerate(order)}
    step = -(-len(order) // _TICKS)
    ticks = [(height, text) for i, (text, height) in enumerate(heights.items()) if i % step == 0]
    return column(key, study.trials).label, texts.map(heights).to_numpy(dtype=float), ticks


def _number_scale(study: Study, key: str, values: Floats) -> tuple[str, Floats, list[Tick]]:
    """Return heading, heights (V,) and ticks of numbers, on a log scale over a decade."""
    col, divisor = column(key, study.trials), 1.0
    if col.kind != "spec":  # settings have no SI prefix
        col, divisor = with_prefix(col, float(np.nanmax(values)))
    values = values / divisor
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    is_log = col.kind != "metric" and low > 0 and high > 10 * low
    scale = np.log10 if is_log else np.positive
    bottom, extent = scale(low), (scale(high) - scale(low)) or 1.0
    ticks = log_ticks(low, high) if is_log else round_ticks(low, high)
    return col.heading, (scale(values) - bottom) / extent, [((scale(v) - bottom) / extent, text) for v, text in ticks]
