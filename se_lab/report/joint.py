"""Compare all variants of a table with their baselines at once: one model, simultaneous intervals.

Pure functions on arrays. `values` is (V, S), a row a variant and a column a seed, NaN where a trial is missing; `group`
(V,) numbers the groups, `baseline` (V,) names each variant's baseline, −1 where there is none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from se_lab.report.columns import unknown
from se_lab.report.fits import Fit, adjusted_p, fit_group, groups, two_way, widths
from se_lab.report.statistics import Floats, paired_difference

Model = Literal["joint", "pooled", "paired", "welch"]
MODELS: tuple[str, ...] = get_args(Model)


class Comparison(NamedTuple):
    """Differences to the baseline (V,) with their intervals and errors; NaN where there is no comparison."""

    mean: Floats
    half_width: Floats
    """Half-widths of the intervals, which hold together over the table."""
    error: Floats
    """Standard errors of the differences."""
    df: Floats
    """Degrees of freedom of the standard errors."""
    n: NDArray[np.int64]
    """Seeds that the variant and its baseline share."""
    blocked: NDArray[np.bool_]
    """(V,) whether the variant's group was compared within seeds."""
    variance: NDArray[np.str_]
    """(V,) the variance of the interval: `shared` by all, the `baseline`'s own beside that, or the `row`'s own."""
    correlation: float
    """Between two variants of one seed, estimated over all groups; NaN where it cannot be."""

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """Where the simultaneous interval does not hold zero; False where there is none."""
        return np.asarray(np.abs(self.mean) > self.half_width)


def compare(
    values: ArrayLike,
    group: NDArray[np.intp],
    baseline: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return each variant's difference to its baseline, with simultaneous intervals over the whole table.

    `joint` fits error ~ variant + seed in each group. The seed is a block where an F test finds that seeds differ
    (at 0.01), else it is dropped. All rows share one variance (Dunnett 1955), except where an F test finds that a
    variance stands out above the rest. A row whose own does (at 0.05) takes Welch's interval, or the paired one among
    blocks. Where the baseline's does (at 0.2, as all rows share it), it has a variance of its own beside that of the
    variants (Hasler & Hothorn 2008). Either is used only where wider. `pooled` has no block and always one
    variance, `welch` never; `paired` takes the differences seed by seed, each row with a variance of its own. Rows with
    a variance of their own share 1 − level by Šidák, and so do groups.

    Assumes seeds that are independent and errors that are roughly normal (t with 3 degrees of freedom still does).
    The critical assumption is one variance: with `pooled`, a variant three times as variable raises the false alarms
    of a table to 14 %, a baseline to 33 %; with `joint` they are at most 6 and 8 % (benchmarks/evidence.py). Raises
    ReportError for an unknown model.
    """
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    mean, half, error, df = np.full((4, count), np.nan)
    blocked, variance = np.zeros(count, dtype=bool), np.full(count, "shared", dtype="<U8")
    fits = _fits(array, group, baseline, model)
    group_count = _tested(fits)
    for rows, fit in fits:
        mean[rows], blocked[rows] = fit.mean, fit.blocked
        half[rows], error[rows], df[rows], variance[rows] = widths(fit, level ** (1 / group_count))
    pairs = paired_difference(array, np.where(np.isfinite(mean)[:, None], array[baseline], np.nan)).n
    half = np.where(half > 1e-9 * np.maximum(np.abs(mean), 1e-3), half, np.nan)  # equal values: unknown spread
    return Comparison(mean, half, error, df, pairs, blocked, variance, seed_correlation(array, group))


def adjusted(values: ArrayLike, group: NDArray[np.intp], baseline: NDArray[np.intp], model: str = "joint") -> Floats:
    """Return (V,) two-sided p values of the differences to the baseline, adjusted for all comparisons of the table.

    Raises ReportError for an unknown model.
    """
    array = np.asarray(values, dtype=np.float64)
    p, fits = np.full(len(array), np.nan), _fits(array, group, baseline, model)
    for rows, fit in fits:
        p[rows] = 1 - (1 - adjusted_p(fit)) ** _tested(fits)
    return p


def _fits(
    array: Floats, group: NDArray[np.intp], baseline: NDArray[np.intp], model: str
) -> list[tuple[NDArray[np.intp], Fit]]:
    """Return the rows of each group that can be compared with its baseline, and their fit."""
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    mask = (baseline >= 0) & (baseline != np.arange(len(array))) & ~np.isnan(array).all(axis=1)
    mask &= ~np.isnan(array[baseline]).all(axis=1)
    return [(rows, fit_group(array[[baseline[rows[0]], *rows]], model)) for rows in groups(group, mask)]


def _tested(fits: list[tuple[NDArray[np.intp], Fit]]) -> int:
    """Count the groups that share the error rate of a table."""
    return max(1, sum(bool(np.any(fit.df > 0)) for _, fit in fits))


def contrast(
    values: ArrayLike,
    pair: tuple[int, int],
    group: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return the difference of a pair of variants, first − second, with an interval of its own, in one row.

    The variance is from all variants of their group. Raises ReportError for an unknown model.
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


def verdicts(compared: Comparison, narrower: Comparison, sign: float, margin: float | None = None) -> list[str]:
    """Return better, worse, equivalent or undecided for each variant; nothing where there is no interval.

    compared, narrower: the same comparison with simultaneous 95 % and 90 % intervals. sign: 1 where lower is better, −1
    where higher is. Equivalence is two one-sided tests at 0.05 against ±margin, that is, the 90 % interval inside the
    margin (Schuirmann 1987); without a margin there is none.
    """
    is_equivalent = np.abs(narrower.mean) + narrower.half_width < (0.0 if margin is None else margin)
    directions = np.where(sign * compared.mean < 0, "better", "worse")
    words = np.where(compared.excludes_zero, directions, np.where(is_equivalent, "equivalent", "undecided"))
    return [str(word) for word in np.where(np.isfinite(compared.half_width), words, "")]


def seed_correlation(values: Floats, group: NDArray[np.intp]) -> float:
    """Return the correlation of two variants with one seed, from the mean squares of seed and rest in each group."""
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
    """Return the mean effect over nets, the half-width of its 95 % interval, and the spread between nets.

    differences, errors: (G,), one a net. A mixed model with a random effect of the net (statsmodels' combine_effects):
    the variance between nets by Paule & Mandel (1982), the interval by Hartung & Knapp with t(G − 1), which holds for
    few nets. The spread is a standard deviation. NaN below two nets.
    """
    from statsmodels.stats.meta_analysis import combine_effects

    y, v = np.asarray(differences, dtype=np.float64), np.square(np.asarray(errors, dtype=np.float64))
    mask = np.isfinite(y) & (v > 0)
    if mask.sum() < 2:
        return float("nan"), float("nan"), float("nan")
    result = combine_effects(y[mask], v[mask], method_re="iterated", use_t=True, atol=1e-10, maxiter=200)
    half = float(stats.t.ppf(0.975, mask.sum() - 1)) * result.sd_eff_w_re_hksj
    return float(result.mean_effect_re), float(half), float(np.sqrt(max(result.tau2, 0.0)))
