"""The report's figures as Plotly has them: dictionaries of traces, each point with the trial behind it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from se_lab.report import computed, statistics
from se_lab.report.columns import Column, column, interval_text, number_text, with_prefix
from se_lab.report.figures.canvas import means
from se_lab.report.figures.differences import REDUCTION, curve_names
from se_lab.report.figures.tradeoff import families, pareto_front, short_names
from se_lab.report.notes import trial_names
from se_lab.report.statistics import Floats
from se_lab.report.variants import BASELINE, Study

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "x", "star")
LINES = 400
"""Lines of parallel coordinates on a page; of more, the variants that end best."""

Figure = dict[str, Any]


def tradeoff(study: Study, metric: str, costs: Sequence[str]) -> Figure | None:
    """Plot a metric against each cost there is: a variant's mean with its interval, and a small point a trial."""
    trials, of = _finished(study, metric), column(metric, study.trials)
    estimate = statistics.t_interval(study.by_seed(metric).to_numpy())
    family, names = families(study)
    choices = []
    for key in costs:
        if key not in trials or not trials[key].notna().any():
            continue
        cost = column(key)
        x = study.per_variant(key, "median" if cost.kind == "timing" else "first").to_numpy()
        cost, divisor = with_prefix(cost, float(np.nanmax(x)))
        x = x / divisor
        there = np.flatnonzero(np.isfinite(x) & np.isfinite(estimate.mean))
        front = there[pareto_front(x[there], estimate.mean[there], higher_is_better=of.better == "higher")]
        stairs = np.column_stack([np.repeat(x[front], 2)[1:], np.repeat(estimate.mean[front], 2)[:-1]])
        traces = [_line(stairs[:, 0], stairs[:, 1], "#888", name="Pareto front", hoverinfo="skip")]
        traces[0]["meta"] = {"front": -1 if of.better == "higher" else 1}
        for number in np.unique(family[there]):
            color, symbol = _look(int(number))
            mine = there[family[there] == number]
            own = trials[trials["variant"].isin(mine)]
            at = x[own["variant"]] if cost.kind != "timing" else own[key].to_numpy(dtype=float) / divisor
            traces.append(_trial_points(study, own, at, own[metric], of, color=color))
            hover = [_mean_text(study, i, estimate, of) for i in mine]
            name = names.get(int(number), "")
            face = [("white" if study.is_baseline[i] else color) for i in mine]
            traces.append(
                _points(x[mine], estimate.mean[mine], hover, _data(mine), size=10)
                | {"name": escaped(name), "showlegend": bool(name), "error_y": _bars(estimate.half_width[mine], color)}
            )
            traces[-1]["marker"] |= {"color": face, "symbol": symbol, "line": {"color": color, "width": 2}}
        told = there if len(there) <= 20 else front
        labels = short_names(study.variants) if names else list(study.variants["variant"])
        middle = (float(x[there].min()) + float(x[there].max())) / 2  # beyond it, a label has more room to the left
        traces.append(
            {"type": "scatter", "mode": "text", "x": as_list(x[told]), "y": as_list(estimate.mean[told]),
             "text": [f"&nbsp; {escaped(labels[i])} &nbsp;" for i in told], "hoverinfo": "skip", "showlegend": False,
             "customdata": _data(told),
             "textposition": [f"top {'left' if at > middle else 'right'}" for at in x[told]]}
        )  # fmt: skip
        choices.append(as_choice(cost.label, traces, cost.heading, of.heading))
        choices[-1]["layout"]["yaxis"] |= {"rangemode": "nonnegative"}
    note = f"{means(estimate.n)}; small points are trials. Hollow: the baseline."
    return as_figure("tradeoff", f"{of.label} against cost", choices, note)


def differences(study: Study, metric: str) -> Figure | None:
    """Plot each variant's difference to its baseline with its simultaneous interval, and a point a seed."""
    pairs, of = computed.paired_matrix(study, metric), column(metric, study.trials)
    estimate = computed.differences(study, metric)
    rows = np.flatnonzero(estimate.n > 0)
    trials = _finished(study, metric)
    seeds = study.by_seed(metric).columns.get_indexer(pd.Index(trials["seed"]))
    delta = pairs[trials["variant"].to_numpy(dtype=int), seeds]
    trials, delta = trials[np.isfinite(delta)], delta[np.isfinite(delta)]
    place = np.full(len(estimate.n), -1.0)
    place[rows] = np.arange(len(rows))[::-1]
    unit = "points" if of.unit == "%" else of.unit
    hover = [
        f"<b>{_name(study, int(i))}</b><br>{interval_text(mean, half, of.decimals, signed=True)} {unit}, {n} pairs"
        for i, mean, half, n in zip(rows, estimate.mean[rows], estimate.half_width[rows], estimate.n[rows], strict=True)
    ]
    dots = _points(estimate.mean[rows], place[rows], hover, _data(rows), size=10)
    dots |= {"error_x": _bars(estimate.half_width[rows], COLORS[0])}
    filled = [COLORS[0] if told else "white" for told in estimate.excludes_zero[rows]]
    dots["marker"] |= {"symbol": "square", "color": filled, "line": {"color": COLORS[0], "width": 2}}
    traces = [_trial_points(study, trials, delta, delta, of, color="#888", signed=True), dots]
    traces[0]["y"] = as_list(place[trials["variant"]])
    choice = as_choice("", traces, f"Δ {of.label} to {BASELINE}" + (f" ({unit})" if unit else ""), "")
    names = [escaped(study.variants["variant"].iloc[i]) for i in rows]
    choice["layout"] |= {"height": 140 + 26 * len(rows)}
    choice["layout"]["yaxis"] |= {"tickvals": as_list(place[rows]), "ticktext": names, "range": [-0.7, len(rows) - 0.3]}
    choice["layout"]["xaxis"] |= {"zerolinecolor": "#444", "zerolinewidth": 1.5}
    several = len(rows) > 0 and estimate.n.max() > 1
    note = f"Paired {means(estimate.n[rows]).lower()}; small points are seeds." if several else "One seed, no interval."
    note += " A filled square has an interval that excludes zero." if several else ""
    return as_figure("differences", "What each variant changes", [choice] if len(rows) else [], note)


def reduction(study: Study, metric: str) -> Figure | None:
    """Plot a metric over the reduction ratio, a curve for each setting of the other varied keys."""
    if REDUCTION not in study.se_keys:
        return None
    of = column(metric, study.trials)
    ratio = pd.to_numeric(study.variants[REDUCTION]).to_numpy(dtype=float)
    estimate = statistics.t_interval(study.by_seed(metric).to_numpy())
    curve = curve_names(study, [key for key in study.keys if key != REDUCTION])
    traces = []
    for number, name in enumerate(dict.fromkeys(curve[~study.is_baseline])):
        mine = np.flatnonzero((curve == name) & ~study.is_baseline & np.isfinite(estimate.mean))
        mine = mine[np.argsort(ratio[mine])]
        hover = [_mean_text(study, i, estimate, of) for i in mine]
        color, symbol = _look(number)
        nudge = 2 ** (0.04 * number)  # curves over the same ratios would hide each other's intervals
        points = _points(ratio[mine] * nudge, estimate.mean[mine], hover, _data(mine), size=9)
        points |= {
            "mode": "lines+markers",
            "line": {"color": color},
            "error_y": _bars(estimate.half_width[mine], color),
        }
        points |= {"name": escaped(name), "showlegend": bool(name)}
        points["marker"] |= {"color": color, "symbol": symbol}
        traces.append(points)
    ends = [float(np.nanmin(ratio)), float(np.nanmax(ratio))]
    for i in np.flatnonzero(study.is_baseline & np.isfinite(estimate.mean)):
        traces.append(
            _line(ends, [estimate.mean[i]] * 2, "#555", name=escaped(study.variants["variant"].iloc[i]), dash="dash")
            | {"hoverinfo": "name", "meta": [int(i), -1]}
        )
    ticks = sorted({float(value) for value in ratio[~np.isnan(ratio)]})
    choice = as_choice("", traces, "reduction ratio r", of.heading)
    choice["layout"]["yaxis"] |= {"rangemode": "nonnegative"}
    choice["layout"]["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return as_figure("reduction", "The reduction ratio", [choice], f"{means(estimate.n)}. Dashed: the baseline.")


def _finished(study: Study, metric: str) -> pd.DataFrame:
    values = pd.to_numeric(study.trials[metric], errors="coerce")
    finished: pd.DataFrame = study.trials[(study.trials["status"] == "finished") & np.isfinite(values)]
    return finished


def _numbers(study: Study) -> Mapping[Any, tuple[int, str]]:
    """Each trial's number and what it is called, by variant and seed."""
    trials = study.trials
    names = trial_names(trials, study.variants)
    texts = [
        f"<b>{escaped(name)}</b><br>trial {escaped(trial)}"
        for name, trial in zip(names, trials["trial_id"], strict=True)
    ]
    keys = zip(trials["variant"], trials["seed"], strict=True)
    return dict(zip(keys, enumerate(texts), strict=True))


def _trial_points(
    study: Study, trials: pd.DataFrame, x: Any, y: Any, of: Column, *, color: str, signed: bool = False
) -> Figure:
    numbers = _numbers(study)
    found = [numbers[key] for key in zip(trials["variant"], trials["seed"], strict=True)]
    values = [number_text(value, of.decimals, signed=signed) for value in y]
    hover = [f"{text}<br>{value} {of.unit}" for (_, text), value in zip(found, values, strict=True)]
    data = [[int(variant), number] for variant, (number, _) in zip(trials["variant"], found, strict=True)]
    points = _points(x, y, hover, data, size=6)
    points["marker"] |= {"color": color, "opacity": 0.55}
    return points | {"showlegend": False}


def _points(x: Any, y: Any, hover: list[str], data: list[list[int]], *, size: int) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "x": as_list(x), "y": as_list(y), "hovertext": hover, "hoverinfo": "text",
        "customdata": data, "marker": {"size": size}, "showlegend": False,
    }  # fmt: skip


def _line(x: Any, y: Any, color: str, *, name: str, hoverinfo: str = "text", dash: str = "solid") -> Figure:
    line = {"type": "scatter", "mode": "lines", "y": as_list(y), "name": name, "hoverinfo": hoverinfo}
    return line | ({} if x is None else {"x": as_list(x)}) | {"line": {"color": color, "dash": dash, "width": 1.5}}


def as_figure(key: str, title: str, choices: list[Figure], note: str) -> Figure | None:
    """Return a section of the page: a title, one plot or several to choose from, a note; None without a plot."""
    return {"id": key, "title": title, "choices": choices, "note": note} if choices else None


def as_choice(label: str, traces: list[Figure], x: str, y: str) -> Figure:
    """Return a plot with the titles of its axes; the label is what a reader chooses it by."""
    layout: Figure = {
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
    }
    return {"label": label, "traces": traces, "layout": layout}


def _look(number: int) -> tuple[str, str]:
    return (COLORS[number % len(COLORS)], SYMBOLS[number % len(SYMBOLS)]) if number >= 0 else ("#000", SYMBOLS[0])


def _bars(half: Floats, color: str) -> Figure:
    return {"type": "data", "color": color, "array": as_list(np.nan_to_num(half)), "thickness": 1.2, "width": 3}


def _mean_text(study: Study, variant: Any, estimate: statistics.Estimate, of: Column) -> str:
    value = interval_text(estimate.mean[variant], estimate.half_width[variant], of.decimals)
    return f"<b>{_name(study, variant)}</b><br>{value} {of.unit}, {estimate.n[variant]} seeds"


def _name(study: Study, variant: int) -> str:
    return escaped(study.variants["variant"].iloc[variant])


def _data(variants: Any) -> list[list[int]]:
    return [[int(variant), -1] for variant in variants]


def as_list(values: Any) -> list[float | None]:
    """Numbers with six digits, which no screen can tell from more; None where there is none."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=float)]


def escaped(text: object) -> str:
    """Escape what Plotly would read as markup."""
    return html.escape(str(text), quote=False)
