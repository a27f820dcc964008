"""Compare all variants of a table with their baselines, with simultaneous intervals.

In these functions, `values` (V, S) has a row per variant and a column per seed, NaN for missing trials; `group` (V,) is
the number of each variant's group, and `baseline` (V,) the row of its baseline, −1 without one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from se_lab.report.columns import unknown_name
from se_lab.report.fits import Fit, adjusted_p, fit_group, groups, two_way, widths
from se_lab.report.statistics import Floats, paired_difference

Model = Literal["joint", "pooled", "paired", "welch"]
MODELS: tuple[str, ...] = get_args(Model)


class Comparison(NamedTuple):
    """Differences from the baseline (V,) with intervals; NaN without a comparison."""

    mean: Floats
    half_width: Floats
    """Half-widths of the simultaneous intervals."""
    error: Floats
    """Standard errors of the differences."""
    df: Floats
    """Degrees of freedom of the standard errors."""
    n: NDArray[np.int64]
    """Number of seeds shared by variant and baseline."""
    blocked: NDArray[np.bool_]
    """Whether seeds are blocks in the variant's group, (V,)."""
    variance: NDArray[np.str_]
    """Variance model (V,): `shared`, `baseline` (the baseline has its own) or `row` (the variant has its own)."""
    correlation: float
    """Correlation of two variants with the same seed, over all groups; NaN if it cannot be estimated."""

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """Whether the simultaneous interval excludes zero, (V,); False without an interval."""
        return np.asarray(np.abs(self.mean) > self.half_width)


def compare(
    values: ArrayLike,
    group: NDArray[np.intp],
    baseline: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return each variant's difference from its baseline, with simultaneous intervals.

    `joint` fits error ~ variant + seed in each group, without the seed unless an F test at 0.01 shows that seeds
    differ. All rows share one variance (Dunnett 1955). A row with a significantly larger variance (F test at 0.05) gets
    Welch's interval, or the paired one if seeds are blocks. A baseline with a significantly larger variance (at 0.2,
    since all rows depend on it) gets a separate variance (Hasler and Hothorn 2008). Both apply only if the interval is
    wider. `pooled` has one variance and no blocks, `welch` one variance per row; `paired` uses differences by seed,
    with one variance per row. Rows with separate variances, and groups, share 1 − level by Šidák's correction.

    Assumes independent seeds and roughly normal errors (t with 3 degrees of freedom is close enough). The critical
    assumption is equal variances: if a variant is three times as variable, `pooled` has 14 % false positives per table,
    if the baseline is, 33 %; `joint` has at most 6 and 8 % (benchmarks/evidence.py). Raises ReportError for an unknown
    model.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    mean, half, error, df = np.full((4, count), np.nan)
    blocked, variance = np.zeros(count, dtype=bool), np.full(count, "shared", dtype="<U8")
    fits = _fits(array, group, baseline, model)
    group_count = _count_tested(fits)
    for rows, fit in fits:
        mean[rows], blocked[rows] = fit.mean, fit.blocked
        half[rows], error[rows], df[rows], variance[rows] = widths(fit, level ** (1 / group_count))
    pairs = paired_difference(array, np.where(np.isfinite(mean)[:, None], array[baseline], np.nan)).n
    half = np.where(half > 1e-9 * np.maximum(np.abs(mean), 1e-3), half, np.nan)  # equal values show no spread
    return Comparison(mean, half, error, df, pairs, blocked, variance, seed_correlation(array, group))


def table_p_values(
    values: ArrayLike, group: NDArray[np.intp], baseline: NDArray[np.intp], model: str = "joint"
) -> Floats:
    """Return two-sided p values (V,) of differences, adjusted for all comparisons of a table.

    Raises ReportError for an unknown model.
    """
    array = np.asarray(values, dtype=np.float64)
    p, fits = np.full(len(array), np.nan), _fits(array, group, baseline, model)
    for rows, fit in fits:
        p[rows] = 1 - (1 - adjusted_p(fit)) ** _count_tested(fits)
    return p


def _fits(
    array: Floats, group: NDArray[np.intp], baseline: NDArray[np.intp], model: str
) -> list[tuple[NDArray[np.intp], Fit]]:
    """Return the rows of each group that can be compared with the baseline, and their fit."""
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    mask = (baseline >= 0) & (baseline != np.arange(len(array))) & ~np.isnan(array).all(axis=1)
    mask &= ~np.isnan(array[baseline]).all(axis=1)
    return [(rows, fit_group(array[[baseline[rows[0]], *rows]], model)) for rows in groups(group, mask)]


def _count_tested(fits: list[tuple[NDArray[np.intp], Fit]]) -> int:
    """Return the number of groups that share the error rate of a table."""
    return max(1, sum(bool(np.any(fit.df > 0)) for _, fit in fits))


def contrast(
    values: ArrayLike,
    pair: tuple[int, int],
    group: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return the difference first − second of a pair of variants, with a separate interval.

    The variance is estimated from all variants of the group. Raises ReportError for an unknown model.
    """
    array, (first, second) = np.asarray(values, dtype=np.float64), pair
    has_values = np.isfinite(array).any(axis=1) | np.isin(np.arange(len(array)), pair)  # an empty row has no variance
    rows = np.flatnonzero((group == group[first]) & has_values)
    rows = rows if second in rows else np.array([second, first])
    variants = rows[rows != second]
    fit = fit_group(array[[second, *variants]], model).only(int(np.flatnonzero(variants == first)[0]))
    half, error, df, variance = widths(fit, level)
    pairs = np.atleast_1d(paired_difference(array[first], array[second]).n)
    blocked = np.array([fit.blocked])
    return Comparison(fit.mean, half, error, df, pairs, blocked, variance, np.nan)


def verdicts(comparison: Comparison, narrower: Comparison, sign: float, margin: float | None = None) -> list[str]:
    """Return better, worse, equivalent, undecided, or "" without an interval, for each variant.

    `comparison` and `narrower` are the same comparison with 95 % and 90 % intervals; `sign` is 1 if lower values are
    better, else −1. Equivalence requires a margin: two one-sided tests at 0.05 against ±margin, that is, a 90 %
    interval within the margin (Schuirmann 1987).
    """
    is_equivalent = np.abs(narrower.mean) + narrower.half_width < (0.0 if margin is None else margin)
    directions = np.where(sign * comparison.mean < 0, "better", "worse")
    words = np.where(comparison.excludes_zero, directions, np.where(is_equivalent, "equivalent", "undecided"))
    return [str(word) for word in np.where(np.isfinite(comparison.half_width), words, "")]


def seed_correlation(values: Floats, group: NDArray[np.intp]) -> float:
    """Return the correlation of variants with the same seed, from mean squares of all groups."""
    seed_ms, rest_ms, sizes = [], [], []
    for rows in groups(group, np.asarray(~np.isnan(values).all(axis=1))):
        fit = two_way(values[rows])
        if fit is not None and fit.df > 0 and fit.seed_df > 0:
            seed_ms.append(fit.seed_square / fit.seed_df)
            rest_ms.append(fit.square / fit.df)
            sizes.append((~np.isnan(values[rows])).sum() / (fit.seed_df + 1))
    if not rest_ms or not (total := np.mean(rest_ms)) > 0:
        return float("nan")
    component = float(np.mean((np.array(seed_ms) - rest_ms) / sizes))
    return float(np.clip(component / max(component + total, 1e-12), -1.0, 1.0))


def pooled_effect(differences: ArrayLike, errors: ArrayLike) -> tuple[float, float, float]:
    """Return mean effect over nets, half-width of its 95 % interval, and standard deviation.

    `differences` and `errors` are (G,), one per net. A random-effects model (statsmodels' combine_effects): variance
    between nets by Paule and Mandel (1982), interval by Hartung and Knapp with t(G − 1), which is valid for few nets.
    The standard deviation is that between nets. NaN for fewer than two nets.
    """
    from statsmodels.stats.meta_analysis import combine_effects

    y, v = np.asarray(differences, dtype=np.float64), np.square(np.asarray(errors, dtype=np.float64))
    mask = np.isfinite(y) & (v > 0)
    if mask.sum() < 2:
        return float("nan"), float("nan"), float("nan")
    result = combine_effects(y[mask], v[mask], method_re="iterated", use_t=True, atol=1e-10, maxiter=200)
    half = float(stats.t.ppf(0.975, mask.sum() - 1)) * result.sd_eff_w_re_hksj
    return float(result.mean_effect_re), float(half), float(np.sqrt(max(result.tau2, 0.0)))
