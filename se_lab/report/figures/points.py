"""Points shared by several figures: means and trials, with colours and hover texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report.columns import Column, column, number_text, range_texts, value_texts
from se_lab.report.figures.chart import MARKERS, Floats, Series
from se_lab.report.notes import trial_names
from se_lab.report.statistics import Bounds
from se_lab.report.variants import Study


def means_note(n: NDArray[np.int64]) -> str:
    """Return a note such as `Mean of 3 seeds with 95 % interval; 1 variant has no result`."""
    low, high = (int(n[n > 0].min()), int(n.max())) if n.any() else (1, 1)
    note = f"Mean of {high if low == high else f'{low} to {high}'} seeds with 95 % interval"
    unfinished = int((n == 0).sum())
    return (note if high > 1 else "One seed, no interval") + (
        f"; {unfinished} {'variant has' if unfinished == 1 else 'variants have'} no result" if unfinished else ""
    )


def finished_trials(study: Study, metric: str) -> pd.DataFrame:
    """Return the finished trials with a finite metric, with their `number` in the study."""
    values = pd.to_numeric(study.trials[metric], errors="coerce")
    trials = study.trials.assign(number=np.arange(len(study.trials)))
    result: pd.DataFrame = trials[(trials["status"] == "finished") & np.isfinite(values)]
    return result


def trial_points(study: Study, trials: pd.DataFrame, x: Floats, y: Floats, of: Column, color: str) -> Series:
    """Return small points for trials (rows of `finished_trials`), with hover text."""
    names = np.array(trial_names(study.trials, study.variants), dtype=object)[trials["number"]]
    values = [number_text(value, of.decimals) for value in trials[of.key]]
    lines = zip(names, trials["trial_id"], values, strict=True)
    hover = [f"{name}\ntrial {trial}\n{value} {of.unit}" for name, trial, value in lines]
    keys = list(zip(trials["variant"].astype(int).tolist(), trials["number"].tolist(), strict=True))
    return Series(x, y, color=color, marker="circle", size=2.5, alpha=0.45, hover=hover, keys=keys, front=-1)


def variant_points(study: Study, variants: NDArray[np.intp], x: Floats, estimate: Bounds, of: Column) -> Series:
    """Return points for the means of variants at x, with hover text."""
    return Series(
        x, estimate.mean[variants], hover=variant_hover(study, variants, estimate, of), keys=keys_of(variants)
    )


def variant_hover(study: Study, variants: NDArray[np.intp], estimate: Bounds, of: Column) -> list[str]:
    """Return hover texts of variants with name, mean, interval and number of seeds."""
    texts = range_texts(estimate.mean[variants], estimate.low[variants], estimate.high[variants], decimals=of.decimals)
    return [
        f"{study.variants['variant'].iloc[i]}\n{text} {of.unit}, {estimate.n[i]} seeds"
        for i, text in zip(variants, texts, strict=True)
    ]


def keys_of(variants: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Return the keys of points that stand for variants, not trials."""
    return [(int(variant), -1) for variant in variants]


def families(study: Study) -> tuple[NDArray[np.intp], dict[int, str]]:
    """Return the family of each variant (V,), for colours and markers, and family names.

    A family is a group, or, without groups, a value of the first of several SE keys. If there are more groups than
    markers, families have no names; if moreover each group has one variant, as in a random search, there is one family.
    """
    if study.group_keys or len(study.se_keys) < 2:
        names = dict(zip(study.group.tolist(), study.variants["group"], strict=True))
        if len(names) <= len(MARKERS):
            return study.group, names if study.group_keys else {}
        return study.group if len(names) < len(study.group) else np.zeros_like(study.group), {}
    key = study.se_keys[0]
    codes, values = pd.factorize(value_texts(study.variants[key]).mask(study.is_baseline))
    return codes, dict(enumerate(map(column(key, study.trials).short.format, values)))


def short_names(variants: pd.DataFrame) -> list[str]:
    """Return the names of variants without the group, which marker and legend show."""
    return [
        name.removeprefix(f"{group}, ") if group else name
        for name, group in zip(variants["variant"], variants["group"], strict=True)
    ]
