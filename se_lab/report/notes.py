"""What stands under a table: what is missing or mixed, and how to read the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report.columns import Column, column, is_missing, number_text, value_text
from se_lab.report.statistics import DRAWS, SignFlip
from se_lab.store import mixtures

if TYPE_CHECKING:
    from se_lab.report.variants import Study

_SPREAD_NOTES = {
    "std": "Beside a mean stands the standard deviation over seeds.",
    "interval": "Beside a mean stands its 95 % t interval over seeds (of an error on the logit scale, which stays "
    "within 0 and 100 %). It says what other seeds would give on these test images, with these settings and this "
    "split. For other test images it is too narrow: there it covers 59 to 90 %, not 95.",
}
_LISTED = 8  # names that a note gives; the rest are counted


def missing_notes(
    trials: pd.DataFrame, variants: pd.DataFrame, group: NDArray[np.intp], baseline: NDArray[np.intp]
) -> list[str]:
    """Say which trials did not finish, which seeds and baselines are absent, and which code versions are mixed."""
    notes = []
    finished = trials["status"] == "finished"
    for status, lost in trials[~finished].groupby("status", sort=False):
        errors = lost["error"] if "error" in lost else [None] * len(lost)
        texts = [
            name if is_missing(error) else f"{name} ({error})"
            for name, error in zip(trial_names(lost, variants), errors, strict=True)
        ]
        notes.append(f"{len(lost)} {'trial' if len(lost) == 1 else 'trials'} {status}: {some(texts)}.")
    notes += _unequal_seeds(trials, variants, group)
    if "chosen" in trials and (chosen := trials["chosen"].eq(True)).any():
        names = variants["variant"].loc[list(dict.fromkeys(trials.loc[chosen, "variant"]))]
        what = "chosen by the validation errors of these trials, which flatters them"
        notes.append(f"{some(names)}: {what}; RUNS confirm:FILE has fresh seeds.")
    without = variants["variant"][baseline < 0]
    if len(without) == len(variants):
        notes.append("No baseline (insertion none) among the records: no differences.")
    elif len(without):
        notes.append(f"No baseline of their own, so no differences: {some(without)}.")
    if "code_version" in trials:
        versions = trials.loc[finished, "code_version"].dropna().value_counts(sort=False)
        if len(versions) > 1:
            listed = ", ".join(f"{version} ({count})" for version, count in versions.items())
            notes.append(f"Warning: trials of {len(versions)} code versions in one table: {listed}.")
    notes += [
        f"Warning: trials under different conditions in one table: {mixed}." for mixed in mixed_conditions(trials)
    ]
    return notes


def mixed_conditions(records: pd.DataFrame) -> list[str]:
    """Return in which conditions (versions, device, threads, git, plugins) finished trials differ, each with counts."""
    if "provenance" not in records:
        return []
    known = records.loc[records["status"] == "finished", "provenance"].dropna()
    mixed = mixtures(json.loads(text) for text in known)
    return [one for one in mixed if not one.startswith(("images:", "se-lab:"))]  # told apart by other means


def _unequal_seeds(trials: pd.DataFrame, variants: pd.DataFrame, group: NDArray[np.intp]) -> list[str]:
    """Seeds that some variants of a group have and others were never asked for."""
    codes, seeds = pd.factorize(trials["seed"], sort=True)
    asked = np.zeros((len(variants), len(seeds)), dtype=bool)
    asked[trials["variant"], codes] = True
    in_group = np.zeros((group.max() + 1, len(seeds)), dtype=bool)
    np.logical_or.at(in_group, group, asked)
    unasked = in_group[group] & ~asked
    lacking = np.flatnonzero(unasked.any(axis=1))
    if not len(lacking):
        return []
    names = variants["variant"].iloc[lacking]
    texts = [
        f"{name} ({', '.join(map(value_text, seeds[unasked[i]]))})" for name, i in zip(names, lacking, strict=True)
    ]
    return [f"Seeds that are not among the records: {some(texts)}."]


def trial_names(trials: pd.DataFrame, variants: pd.DataFrame) -> list[str]:
    """Say what each trial is called in a note: `r=16, seed 2`."""
    names = variants["variant"].reindex(trials["variant"])
    return [f"{name}, seed {value_text(seed)}" for name, seed in zip(names, trials["seed"], strict=True)]


def not_measured(study: Study, key: str) -> list[str]:
    """Name the finished trials without a finite value of a metric."""
    finished = (study.trials["status"] == "finished").to_numpy()
    lost = study.trials[finished & ~np.isfinite(pd.to_numeric(study.trials[key], "coerce").to_numpy(dtype=float))]
    if lost.empty:
        return []
    return [f"Finished without a finite {key}, so left out of it: {some(trial_names(lost, study.variants))}."]


def unequal_costs(study: Study, key: str) -> list[str]:
    """Warn of variants whose seeds do not agree in a cost."""
    if column(key, study.trials).kind != "cost":
        return []
    unequal = study.trials.groupby("variant")[key].nunique() > 1
    names = study.variants["variant"][unequal[unequal].index]
    return [f"Warning: {key} differs between the seeds of {some(names)}; the first is shown."] if len(names) else []


def sign_flip_note(test: SignFlip, pairs: int) -> str:
    """Say what the p values are, and the smallest that the seeds allow."""
    if not pairs:
        return "p: nothing pairs with the baseline, so there is no test."
    smallest = float(np.nanmin(test.smallest))
    return (
        f"p: two-sided sign-flip test of the paired differences "
        f"({'exact' if test.exact else f'{DRAWS:,} patterns drawn'}). With {pairs} "
        f"{'seed' if pairs == 1 else 'seeds'} it cannot be below {smallest:.4g}"
        f"{', so no difference can reach 0.05' if smallest > 0.05 else ''}."
    )


def unfinished_notes(data: pd.DataFrame, of: Column) -> list[str]:
    """Set the mean of the finished seeds beside its bound by worst rank, where seeds failed or were stopped."""
    lost = data[(data["over"] > data["n"]) & (data["n"] > 0)]
    texts = [
        f"{name} ({n}/{over} finished): {number_text(mean, of.decimals)}, bound {number_text(bound, of.decimals)}"
        for name, n, over, mean, bound in lost[["variant", "n", "over", of.key, f"{of.key}:bound"]].itertuples(
            index=False
        )
    ]
    what = "Means are of the seeds that finished; bounds count the others as the worst trial of the group"
    return [f"{what}: {some(texts)}."] if texts else []


def reading_notes(data: pd.DataFrame, metric: str, metrics: Sequence[str], spread: str = "interval") -> list[str]:
    """How to read the numbers: what ± and bold mean, and where there is no interval."""
    notes = []
    single = data["variant"][data["n"] == 1]
    if (data["n"] <= 1).all():
        notes.append("One seed a variant: no interval, so no difference here can be told from the luck of a seed.")
    else:
        notes.append(_SPREAD_NOTES[spread])
        if len(two := data["variant"][data["n"] == 2]):
            notes.append(f"Warning: two seeds hardly show their spread, so intervals are very wide: {some(two)}.")
        if spread == "interval" and (counted := _equal_values(data, metrics)):
            notes.append(counted)
        if len(single):
            notes.append(f"One seed only, so no interval: {some(single)}.")
    unpaired = data["variant"][(data["n"] > 0) & (data[f"{metric}:pairs"] < data["n"]) & ~data["is_baseline"]]
    paired = data["variant"][(data["n"] > 0) & (data[f"{metric}:pairs"] > 0)]
    if len(unpaired) and len(paired):
        counts = data.loc[unpaired.index, [f"{metric}:pairs", "n"]].to_numpy()
        texts = [f"{name} ({pairs} of {n})" for name, (pairs, n) in zip(unpaired, counts, strict=True)]
        notes.append(f"Fewer pairs than seeds, as the baseline or the variant lacks some: {some(texts)}.")
    if any(data[f"{key}:best"].any() for key in metrics):
        notes.append("Bold: best of its group, where the simultaneous interval of its difference excludes zero.")
    return notes


def _equal_values(data: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Say of which variants all seeds have one value, so that the interval is over images or there is none."""
    names = []
    for key in metrics:
        rows = (data["n"] > 1) & (data[f"{key}:std"] <= 1e-9 * data[key].abs())
        names += [f"{name} ({column(key, metrics).label})" for name in data["variant"][rows]]
    if not names:
        return ""
    return (
        "Equal for all seeds, which shows nothing of their spread: the interval is that of an error counted on the "
        f"test images (Clopper & Pearson), none where their number is not known: {some(names)}."
    )


def some(names: Iterable[str]) -> str:
    """Join the first eight of the names, and how many more there are."""
    every = list(names)
    more = [f"and {len(every) - _LISTED} more"] if len(every) > _LISTED else []
    return "; ".join(every[:_LISTED] + more)
