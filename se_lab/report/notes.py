"""Notes under a table, on missing and mixed trials and on the meaning of the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report.columns import Column, column, is_missing, number_text, value_text
from se_lab.report.statistics import DRAWS, SignFlip
from se_lab.spec.text import counted
from se_lab.store import mixtures

if TYPE_CHECKING:
    from se_lab.report.variants import Study

_SPREAD_NOTES = {
    "std": "Means are given with standard deviations over seeds.",
    "interval": "Means are given with 95 % t intervals over seeds (for errors, on the logit scale, within 0 and "
    "100 %). The intervals are for other seeds with the same test images, settings and split. For other test images "
    "they are too narrow: their coverage is 59 to 90 %, not 95 %.",
}
_LISTED = 8  # maximum number of names in a note


def missing_notes(
    trials: pd.DataFrame, variants: pd.DataFrame, group: NDArray[np.intp], baseline: NDArray[np.intp]
) -> list[str]:
    """Return notes on unfinished trials, missing seeds and baselines, and mixed conditions."""
    notes = []
    is_finished = trials["status"] == "finished"
    for status, rows in trials[~is_finished].groupby("status", sort=False):
        errors = rows["error"] if "error" in rows else [None] * len(rows)
        texts = [
            name if is_missing(error) else f"{name} ({error})"
            for name, error in zip(trial_names(rows, variants), errors, strict=True)
        ]
        notes.append(f"{counted(len(rows), 'trial')} {status}: {name_list(texts)}.")
    notes += _unequal_seeds(trials, variants, group)
    if "chosen" in trials and (is_chosen := trials["chosen"].eq(True)).any():
        names = variants["variant"].loc[list(dict.fromkeys(trials.loc[is_chosen, "variant"]))]
        remark = "selected by validation errors of these trials, so their results are biased"
        notes.append(f"{name_list(names)}: {remark}; RUNS confirm:FILE has fresh seeds.")
    orphans = variants["variant"][baseline < 0]
    if len(orphans) == len(variants):
        notes.append("No differences, as there is no baseline (insertion none).")
    elif len(orphans):
        notes.append(f"No differences, as their groups have no baseline: {name_list(orphans)}.")
    if "code_version" in trials:
        versions = trials.loc[is_finished, "code_version"].dropna().value_counts(sort=False)
        if len(versions) > 1:
            version_text = ", ".join(f"{version} ({count})" for version, count in versions.items())
            notes.append(f"Warning: the trials have {len(versions)} code versions: {version_text}.")
    notes += [f"Warning: the trials ran under different conditions: {text}." for text in mixed_conditions(trials)]
    return notes


def mixed_conditions(records: pd.DataFrame) -> list[str]:
    """Return the conditions (versions, device, git and so on) that vary among finished trials."""
    if "provenance" not in records:
        return []
    texts = records.loc[records["status"] == "finished", "provenance"].dropna()
    conditions = mixtures(json.loads(text) for text in texts)
    # Other checks report different images and code versions.
    return [condition for condition in conditions if not condition.startswith(("images:", "se-lab:"))]


def _unequal_seeds(trials: pd.DataFrame, variants: pd.DataFrame, group: NDArray[np.intp]) -> list[str]:
    """Return a note on seeds that only some variants of a group have."""
    codes, seeds = pd.factorize(trials["seed"], sort=True)
    has_seed = np.zeros((len(variants), len(seeds)), dtype=bool)
    has_seed[trials["variant"], codes] = True
    group_has_seed = np.zeros((group.max() + 1, len(seeds)), dtype=bool)
    np.logical_or.at(group_has_seed, group, has_seed)
    is_absent = group_has_seed[group] & ~has_seed
    rows = np.flatnonzero(is_absent.any(axis=1))
    if not len(rows):
        return []
    names = variants["variant"].iloc[rows]
    texts = [f"{name} ({', '.join(map(value_text, seeds[is_absent[i]]))})" for name, i in zip(names, rows, strict=True)]
    return [f"Missing seeds: {name_list(texts)}."]


def trial_names(trials: pd.DataFrame, variants: pd.DataFrame) -> list[str]:
    """Return the name of each trial in a note: `r=16, seed 2`."""
    names = variants["variant"].reindex(trials["variant"])
    return [f"{name}, seed {value_text(seed)}" for name, seed in zip(names, trials["seed"], strict=True)]


def not_measured(study: Study, key: str) -> list[str]:
    """Return a note on finished trials without a finite value of a metric."""
    is_finished = (study.trials["status"] == "finished").to_numpy()
    trials = study.trials[is_finished & ~np.isfinite(pd.to_numeric(study.trials[key], "coerce").to_numpy(dtype=float))]
    if trials.empty:
        return []
    return [f"Finished without a finite {key}: {name_list(trial_names(trials, study.variants))}."]


def unequal_costs(study: Study, key: str) -> list[str]:
    """Return warnings about costs or times that differ between the seeds of a variant."""
    if column(key, study.trials).kind == "timing":
        return uneven_times(study, key)
    if column(key, study.trials).kind != "cost":
        return []
    is_unequal = study.trials.groupby("variant")[key].nunique() > 1
    names = study.variants["variant"][is_unequal[is_unequal].index]
    return [f"Warning: {key} differs between the seeds of {name_list(names)}; using the first."] if len(names) else []


def uneven_times(study: Study, key: str) -> list[str]:
    """Return a warning if a time differs by more than 10 % between trials of one variant."""
    values = pd.to_numeric(study.trials[key], errors="coerce")
    trials = study.trials.assign(**{key: values})[(study.trials["status"] == "finished") & (values > 0)]
    times = trials.groupby("variant")[key].agg(["min", "max"])
    excess = float((times["max"] / times["min"] - 1).max()) if len(times) else 0.0
    if not excess > 0.1:
        return []
    label = "the time of a step" if key == "step_ms" else column(key, study.trials).label
    return [
        f"Warning: trials of one variant differ by up to {100 * excess:.0f} % in {label}, for example because of other "
        "work on the machine; ignore smaller differences between variants."
    ]


def sign_flip_note(test: SignFlip, pairs: int) -> str:
    """Return a note on sign-flip p values and their minimum for the number of seeds."""
    if not pairs:
        return "p: no test, as no variant shares a seed with its baseline."
    smallest = float(np.nanmin(test.smallest))
    return (
        f"p: two-sided sign-flip test of the paired differences "
        f"({'exact' if test.exact else f'{DRAWS:,} random patterns'}). With "
        f"{counted(pairs, 'seed')} p is at least {smallest:.4g}"
        f"{', so no difference can reach 0.05' if smallest > 0.05 else ''}."
    )


def unfinished_notes(data: pd.DataFrame, of: Column) -> list[str]:
    """Return a note on worst-rank bounds of variants with failed or stopped trials."""
    rows = data[(data["over"] > data["n"]) & (data["n"] > 0)]
    texts = [
        f"{name} ({n}/{total} finished): {number_text(mean, of.decimals)}, bound {number_text(bound, of.decimals)}"
        for name, n, total, mean, bound in rows[["variant", "n", "over", of.key, f"{of.key}:bound"]].itertuples(
            index=False
        )
    ]
    explanation = "Means are over finished seeds; bounds use the worst trial of the group for the others"
    return [f"{explanation}: {name_list(texts)}."] if texts else []


def reading_notes(data: pd.DataFrame, metric: str, metrics: Sequence[str], spread: str = "interval") -> list[str]:
    """Return notes on the meaning of ± and bold, and on variants without an interval."""
    notes = []
    singles = data["variant"][data["n"] == 1]
    if (data["n"] <= 1).all():
        notes.append("One seed per variant: no intervals, so differences may be due to chance.")
    else:
        notes.append(_SPREAD_NOTES[spread])
        if len(doubles := data["variant"][data["n"] == 2]):
            notes.append(f"Warning: intervals over two seeds are very wide: {name_list(doubles)}.")
        if spread == "interval" and (remark := _equal_values(data, metrics)):
            notes.append(remark)
        if len(singles):
            notes.append(f"One seed only, so no interval: {name_list(singles)}.")
    partial_names = data["variant"][(data["n"] > 0) & (data[f"{metric}:pairs"] < data["n"]) & ~data["is_baseline"]]
    paired_names = data["variant"][(data["n"] > 0) & (data[f"{metric}:pairs"] > 0)]
    if len(partial_names) and len(paired_names):
        counts = data.loc[partial_names.index, [f"{metric}:pairs", "n"]].to_numpy()
        texts = [f"{name} ({pairs} of {n})" for name, (pairs, n) in zip(partial_names, counts, strict=True)]
        notes.append(f"Fewer pairs than seeds, as variant and baseline have different seeds: {name_list(texts)}.")
    if any(data[f"{key}:best"].any() for key in metrics):
        notes.append("Bold: best of its group, if the simultaneous interval of its difference excludes zero.")
    return notes


def _equal_values(data: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Return a note on variants whose seeds all have the same value, or an empty string."""
    names = []
    for key in metrics:
        rows = (data["n"] > 1) & (data[f"{key}:std"] <= 1e-9 * data[key].abs())
        names += [f"{name} ({column(key, metrics).label})" for name in data["variant"][rows]]
    if not names:
        return ""
    return (
        "Equal for all seeds, so the spread over seeds is unknown; the interval is binomial, over test images "
        f"(Clopper and Pearson), if their number is known: {name_list(names)}."
    )


def name_list(names: Iterable[str]) -> str:
    """Join up to eight names, followed by the number of the others."""
    items = list(names)
    suffix = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return "; ".join(items[:_LISTED] + suffix)
