"""The report's figures of a whole sweep, as Plotly has them: a heat map of two keys, and parallel coordinates."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report import statistics
from se_lab.report.columns import column, interval_text, number_order, number_text, value_texts
from se_lab.report.figures.canvas import means as means_of
from se_lab.report.figures.heatmap import MOST_NUMBERS, parallel_scales, shades
from se_lab.report.page_figures import LINES, Figure, as_choice, as_figure, as_list, escaped
from se_lab.report.variants import BASELINE, Study


def heatmap(study: Study, metric: str) -> Figure | None:
    """Plot the mean of a metric over the two varied keys, dark where it is better. None where they are not two."""
    if len(study.keys) != 2:
        return None
    across, index = study.keys
    of = column(metric, study.trials)
    estimate = statistics.t_interval(study.by_seed(metric).to_numpy())
    texts = [
        interval_text(mean, half, of.decimals) for mean, half in zip(estimate.mean, estimate.half_width, strict=True)
    ]
    aside = study.is_baseline & across.startswith("model.se.")  # has no value of either key
    placed = np.flatnonzero(~aside)
    names = value_texts(study.variants[index]).mask(study.is_baseline & index.startswith("model.se."), BASELINE)
    row, rows = _numbered(names.iloc[placed], study.variants[index].iloc[placed])
    cell, columns = _numbered(value_texts(study.variants[across]).iloc[placed], study.variants[across].iloc[placed])
    variant = np.full((len(rows), len(columns)), -1)
    variant[row, cell] = placed
    means = np.where(variant >= 0, estimate.mean[variant], np.nan)
    hover = [
        [f"<b>{escaped(study.variants['variant'].iloc[v])}</b><br>{texts[v]} {of.unit}" if v >= 0 else "" for v in line]
        for line in variant
    ]
    trace: Figure = {
        "type": "heatmap", "x": [escaped(name) for name in columns], "y": [escaped(name) for name in rows],
        "z": [as_list(line) for line in means], "customdata": [[[int(v), -1] for v in line] for line in variant],
        "hovertext": hover, "hoverinfo": "text", "colorscale": "Cividis", "reversescale": of.better == "higher",
        "xgap": 1, "ygap": 1, "colorbar": {"title": {"text": of.heading}},
    }  # fmt: skip
    if means.size <= MOST_NUMBERS:
        trace |= {"text": [[number_text(v, of.decimals) for v in line] for line in means], "texttemplate": "%{text}"}
    across_label, label = column(across, study.trials).label, column(index, study.trials).label
    choice = as_choice("", [trace], across_label, label)
    choice["layout"] |= {"height": 150 + 30 * len(rows)}
    choice["layout"]["xaxis"] |= {"type": "category", "showgrid": False}
    choice["layout"]["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    bare = "".join(f" {BASELINE}: {texts[v]} {of.unit}." for v in np.flatnonzero(aside))
    return as_figure("heatmap", f"{of.label} by {label} and {across_label}", [choice], f"{means_of(estimate.n)}.{bare}")


def _numbered(names: pd.Series, values: pd.Series) -> tuple[NDArray[np.intp], pd.Index]:
    """(V,) places of the names among the distinct ones, and those, in the order of their values."""
    distinct = pd.Index(names.iloc[number_order(values)].unique())
    return distinct.get_indexer(names), distinct


def parallel(study: Study, metric: str) -> Figure | None:
    """Plot a line a variant across the varied keys, costs and the metric, dark where it is better."""
    from plotly.colors import sample_colorscale

    of = column(metric, study.trials)
    estimate = statistics.t_interval(study.by_seed(metric).to_numpy())
    drawn = np.flatnonzero(np.isfinite(estimate.mean))
    if len(drawn) < 2 or not study.keys:
        return None
    sign = -1 if of.better == "higher" else 1
    order = drawn[np.argsort(sign * estimate.mean[drawn], kind="stable")[:LINES][::-1]]  # the best on top
    scales = parallel_scales(study, metric, estimate.mean)
    heights = np.column_stack([height for _, height, _ in scales])
    colors = sample_colorscale("Cividis", shades(estimate.mean[order], of).tolist())
    width = float(np.clip(60 / len(order), 0.8, 2.2))
    traces: list[Figure] = []
    for variant, color in zip(order, colors, strict=True):
        value = interval_text(estimate.mean[variant], estimate.half_width[variant], of.decimals)
        name = escaped(study.variants["variant"].iloc[variant])
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "x": list(range(len(scales))), "y": as_list(heights[variant]),
             "hovertext": f"<b>{name}</b><br>{value} {of.unit}", "hoverinfo": "text", "meta": [int(variant), -1],
             "line": {"color": color, "width": width}, "marker": {"size": 4, "color": color}, "showlegend": False}
        )  # fmt: skip
    choice = as_choice("", traces, "", "")
    ticks = [
        {"x": place, "y": height, "text": escaped(text), "xanchor": "left", "xshift": 5, "showarrow": False,
         "bgcolor": "rgba(255,255,255,0.85)", "borderpad": 0, "font": {"size": 11}}
        for place, (_, _, marks) in enumerate(scales) for height, text in marks
    ]  # fmt: skip
    choice["layout"] |= {"annotations": ticks}
    names = [escaped(name) for name, _, _ in scales]
    choice["layout"]["xaxis"] |= {
        "tickvals": list(range(len(scales))), "ticktext": names, "side": "top", "range": [-0.2, len(scales) - 0.4],
        "showgrid": True, "gridcolor": "#444", "showline": False, "ticks": "",
    }  # fmt: skip
    choice["layout"]["yaxis"] |= {"visible": False, "range": [-0.04, 1.04]}
    left_out = f" {len(drawn) - len(order)} variants that end worse are left out." if len(drawn) > len(order) else ""
    note = f"A line a variant, dark where {of.label} is better; the filter above chooses among them.{left_out}"
    return as_figure("parallel", "All variants at a glance", [choice], note)
