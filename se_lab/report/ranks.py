"""Bootstrap ranks of variants, and probabilities to be best or better than the baseline.

Names follow rliable (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice").
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from se_lab.report.columns import ReportError, column
from se_lab.report.predictions import has_predictions, image_errors
from se_lab.report.statistics import Floats
from se_lab.report.variants import Study

DRAWS = 4_000
_CELLS = 4_000_000  # float64 values in memory at a time: 32 MB
_FEWEST = 2  # minimum number of seeds of a variant for resampling


class Ranks(NamedTuple):
    """Ranks within groups (V,), where 1 is best; NaN for variants without a rank."""

    rank: Floats
    """Rank of the mean; equal means share the best rank."""
    low: Floats
    high: Floats
    """Bounds of the 95 % percentile interval."""
    best: Floats
    """Probability of the best mean in the group, shared between equal means."""
    better: Floats
    """Probability of a better mean than the baseline; equal means count half."""
    images: bool
    """Whether images are resampled as well as seeds."""


def can_rank(study: Study, metric: str) -> bool:
    """Return whether any group has two variants with two or more seeds to rank."""
    has_seeds = (study.by_seed(metric).notna().sum(axis=1) >= _FEWEST).to_numpy()
    direction = column(metric, study.trials).better
    return direction is not None and bool((np.bincount(study.group[has_seeds], minlength=1) > 1).any())


def rank_study(study: Study, metric: str, sign: float, rng: np.random.Generator) -> Ranks:
    """Rank the variants of each group by a metric; `sign` is 1 if lower is better, else −1.

    Seeds are resampled for each variant separately. For top-1 and top-5 test errors, if all trials have predictions of
    the same images, the images are resampled too, jointly for all variants.
    """
    values = study.by_seed(metric).to_numpy()
    parts = np.full((5, len(values)), np.nan)
    images = []
    for group in np.unique(study.group):
        rows = np.flatnonzero((study.group == group) & ((~np.isnan(values)).sum(axis=1) >= _FEWEST))
        if len(rows) < 2:
            continue
        errors = _errors_by_image(study, metric, rows)
        images.append(errors is not None)
        trials = errors or [values[row][~np.isnan(values[row])][:, None] for row in rows]
        base = int(study.baseline[rows[0]])
        base_index = int(np.flatnonzero(rows == base)[0]) if base in rows else None
        means = sign * np.array([sample.mean() for sample in trials])
        parts[0, rows] = stats.rankdata(means.round(9), method="min")
        parts[1:, rows] = summarize(sign * bootstrap_means(trials, rng), base_index)
    rank, low, high, p_best, p_better = parts
    return Ranks(rank, low, high, p_best, p_better, bool(images) and all(images))


def bootstrap_means(trials: Sequence[Floats], rng: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Return means of variants (D, V) over images and seeds drawn with replacement.

    `trials` has an array (seeds, images) for each variant, with the same images. Images are drawn jointly for all
    variants, seeds separately. The deviations of seeds are scaled by √(S / (S − 1)), since means of S draws from S
    seeds vary too little, by a third of the variance for S = 3.
    """
    images, size = trials[0].shape[1], sum(len(sample) for sample in trials)
    edges = np.cumsum([0, *map(len, trials)])
    step = max(1, _CELLS // max(images, size))
    matrix, parts = np.concatenate(trials), []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        shares = rng.multinomial(images, np.full(images, 1 / images), size=count) / images
        trial_means = shares @ matrix.T  # (count, trials)
        means = np.empty((count, len(trials)))
        for variant, (low, high) in enumerate(itertools.pairwise(edges)):
            sample, seeds = trial_means[:, low:high], high - low
            weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
            mean = sample.mean(axis=1)
            means[:, variant] = mean + ((weights * sample).sum(axis=1) - mean) * np.sqrt(seeds / max(seeds - 1, 1))
        parts.append(means)
    return np.concatenate(parts)


def summarize(means: Floats, baseline: int | None) -> Floats:
    """Return low and high ranks, P(best) and P(better), (4, V), for drawn means (D, V)."""
    means = means.round(9)  # ignores rounding errors
    ranks = stats.rankdata(means, method="min", axis=1)
    low, high = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest")
    is_first = ranks == 1
    p_best = (is_first / is_first.sum(axis=1, keepdims=True)).mean(axis=0)
    p_better = np.full(means.shape[1], np.nan)
    if baseline is not None:
        mask = np.arange(means.shape[1]) != baseline
        base = means[:, [baseline]]
        p_better[mask] = ((means < base) + 0.5 * (means == base)).mean(axis=0)[mask]
    return np.stack([low, high, p_best, p_better])


def probability_of_improvement(values: ArrayLike, baseline: ArrayLike) -> float:
    """Return the probability that a trial of `values` (S,) is below one of `baseline` (T,).

    This is rliable's probability of improvement on one task: Mann-Whitney U over S · T. Ties count half. NaN without
    values.
    """
    variant_values, base_values = (
        array[~np.isnan(array)] for array in (np.asarray(values, float), np.asarray(baseline, float))
    )
    if not len(variant_values) or not len(base_values):
        return float("nan")
    return float(stats.mannwhitneyu(base_values, variant_values).statistic / (len(variant_values) * len(base_values)))


def interquartile_mean(values: ArrayLike) -> float:
    """Return the interquartile mean of `values` (S,), as rliable; NaN for fewer than four."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(stats.trim_mean(array, 0.25)) if len(array) >= 4 else float("nan")


def _errors_by_image(study: Study, metric: str, rows: NDArray[np.intp]) -> list[Floats] | None:
    """Return the errors (seeds, images) of each row in %; None if images differ."""
    if metric not in ("test/top1_error", "test/top5_error") or "folder" not in study.trials:
        return None
    trials = study.trials[(study.trials["status"] == "finished") & study.trials[metric].notna()]
    keys, errors = None, []
    for row in rows:
        misses = []
        for folder in trials.loc[trials["variant"] == row, "folder"]:
            if not has_predictions(folder):
                return None
            try:
                names, is_missed = image_errors(folder, 5 if "top5" in metric else 1)
            except ReportError:
                return None
            keys = names if keys is None else keys
            if not np.array_equal(keys, names):
                return None
            misses.append(100.0 * is_missed)
        errors.append(np.stack(misses))
    return errors
