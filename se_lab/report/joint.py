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
from se_lab.report.dunnett import dunnett_cdf, dunnett_quantile, grouped, one_factor
from se_lab.report.statistics import Floats, paired_difference

Model = Literal["joint", "pooled", "paired", "welch"]
MODELS: tuple[str, ...] = get_args(Model)

_STANDS_OUT = 0.05  # by simulation: false alarms of a table stay at 4.4 to 5.2 % of equal variances, below 7.1 % else
_SEEDS_DIFFER = 0.01  # seeds that differ by chance go with an error that is too small, so chance must seldom do it
_FEWEST_DF = 4


class Comparison(NamedTuple):
    """Differences to the baseline (V,), with what is needed to judge them; NaN where nothing can be compared."""

    mean: Floats
    half_width: Floats
    """Half-widths of the intervals, which hold together over the table."""
    p: Floats
    """Two-sided, adjusted for all comparisons of the table."""
    error: Floats
    """Standard errors of the differences."""
    df: Floats
    """Degrees of freedom of the standard errors."""
    n: NDArray[np.int64]
    """Seeds that the variant and its baseline share."""
    blocked: NDArray[np.bool_]
    """(V,) whether the variant's group was compared within seeds."""
    pooled: NDArray[np.bool_]
    """(V,) whether the variant's group shares one variance."""
    correlation: float
    """Between two variants of one seed, estimated over all groups; NaN where it cannot be."""

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Where the standard error is more than rounding."""
        return np.asarray(self.half_width > 1e-9 * np.maximum(np.abs(self.mean), 1e-3))

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """Where the simultaneous interval does not hold zero; False where there is none."""
        return np.asarray(self.varies & (np.abs(self.mean) > self.half_width))


class _Fit(NamedTuple):
    """The comparisons of one group: differences, standard errors, degrees of freedom, loadings for Dunnett's test."""

    mean: Floats
    error: Floats
    df: Floats
    loading: Floats | None
    """(K,) such that two differences correlate by the product of their loadings; None: each row has its own error."""
    blocked: bool
    own: tuple[Floats, Floats] | None = None
    """(K,) standard errors and degrees of freedom of the rows' own variances, NaN where the shared one serves."""


def compare(
    values: ArrayLike,
    group: NDArray[np.intp],
    baseline: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return each variant's difference to its baseline, with simultaneous intervals over the whole table.

    `joint` fits error ~ variant + seed in each group. The seed is a block where an F test finds that seeds differ
    (at 0.01), else it is dropped. All rows share one variance (Dunnett 1955), except those whose own variance, or whose
    baseline's, stands out above that of the rest (F test at 0.05): they take Welch's interval, or the paired one among
    blocks, where it is the wider. `pooled` has no block and always one variance, `welch` never; `paired` takes the
    differences seed by seed, each row with a variance of its own. Rows with a variance of their own share 1 − level by
    Šidák, and so do groups.

    Assumes seeds that are independent and errors that are roughly normal (t with 3 degrees of freedom still does).
    What matters is one variance for all: pooled, one variant three times as variable raises the false alarms of a
    table to 9 %, with `joint` to at most 7 % (benchmarks/evidence.py). Raises ReportError for an unknown model.
    """
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    mean, half, p, error, df = np.full((5, count), np.nan)
    blocked, pooled = np.zeros((2, count), dtype=bool)
    compared = (baseline >= 0) & (baseline != np.arange(count)) & ~np.isnan(array).all(axis=1)
    compared &= ~np.isnan(array[baseline]).all(axis=1)
    fits = [(rows, _fit(array, rows, int(baseline[rows[0]]), model)) for rows in _groups(group, compared)]
    tested = max(1, sum(bool(np.any(fit.df > 0)) for _, fit in fits))
    for rows, fit in fits:
        mean[rows], blocked[rows] = fit.mean, fit.blocked
        half[rows], error[rows], df[rows], pooled[rows] = _widths(fit, level ** (1 / tested))
        p[rows] = 1 - (1 - _adjusted(fit)) ** tested
    pairs = paired_difference(array, np.where(compared[:, None], array[baseline], np.nan)).n
    return Comparison(mean, half, p, error, df, pairs, blocked, pooled, seed_correlation(array, group))


def contrast(
    values: ArrayLike,
    pair: tuple[int, int],
    group: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return the difference of a pair of variants, first − second, with an interval of its own, in one row.

    It takes its variance from all variants of their group. Raises ReportError for an unknown model.
    """
    array, (first, second) = np.asarray(values, dtype=np.float64), pair
    finished = np.isfinite(array).any(axis=1) | np.isin(np.arange(len(array)), pair)  # an empty row has no variance
    rows = np.flatnonzero((group == group[first]) & finished)
    rows = rows if second in rows else np.array([second, first])
    fit = _fit(array, rows[rows != second], second, model)
    at = np.flatnonzero(rows[rows != second] == first)
    own = None if fit.own is None else (fit.own[0][at], fit.own[1][at])
    single = _Fit(fit.mean[at], fit.error[at], fit.df[at], np.array([0.0]), fit.blocked, own)
    half, error, df, pooled = _widths(single, level)
    pairs = np.atleast_1d(paired_difference(array[first], array[second]).n)
    return Comparison(single.mean, half, _adjusted(single), error, df, pairs, np.array([fit.blocked]), pooled, np.nan)


def verdicts(compared: Comparison, narrower: Comparison, sign: float, margin: float | None = None) -> list[str]:
    """Return better, worse, equivalent or undecided for each variant; nothing where there is no interval.

    compared, narrower: the same comparison with simultaneous 95 % and 90 % intervals. sign: 1 where lower is better, −1
    where higher is. Equivalence is two one-sided tests at 0.05 against ±margin, that is, the 90 % interval inside the
    margin (Schuirmann 1987); without a margin there is none.
    """
    inside = np.abs(narrower.mean) + narrower.half_width < (0.0 if margin is None else margin)
    decided = np.where(sign * compared.mean < 0, "better", "worse")
    words = np.where(compared.excludes_zero, decided, np.where(inside, "equivalent", "undecided"))
    return [str(word) for word in np.where(np.isfinite(compared.half_width), words, "")]


def seed_correlation(values: Floats, group: NDArray[np.intp]) -> float:
    """Return the correlation of two variants with one seed, from the mean squares of seed and rest in each group."""
    seed_ms, rest_ms, sizes = [], [], []
    for rows in _groups(group, np.asarray(~np.isnan(values).all(axis=1))):
        fitted = _two_way(values[rows])
        if fitted is not None and fitted.df > 0 and fitted.seed_df > 0:
            seed_ms.append(fitted.seed_square / fitted.seed_df)
            rest_ms.append(fitted.square / fitted.df)
            sizes.append((~np.isnan(values[rows])).sum() / (fitted.seed_df + 1))
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
    known = np.isfinite(y) & (v > 0)
    if known.sum() < 2:
        return float("nan"), float("nan"), float("nan")
    combined = combine_effects(y[known], v[known], method_re="iterated", use_t=True, atol=1e-10, maxiter=200)
    half = float(stats.t.ppf(0.975, known.sum() - 1)) * combined.sd_eff_w_re_hksj
    return float(combined.mean_effect_re), float(half), float(np.sqrt(max(combined.tau2, 0.0)))


class _TwoWay(NamedTuple):
    """Least squares of variant + seed: the variants' (pseudo-)inverse information, effects, and sums of squares."""

    inverse: Floats
    effects: Floats
    estimable: Floats
    square: float
    df: int
    seed_square: float
    seed_df: int


def _groups(group: NDArray[np.intp], chosen: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    return [np.flatnonzero(chosen & (group == g)) for g in np.unique(group[chosen])]


def _two_way(rows: Floats) -> _TwoWay | None:
    """Fit variant + seed to (K, S) rows of which cells may be missing; None where there is nothing to fit."""
    seen = ~np.isnan(rows)
    rows, seen = rows[:, seen.any(axis=0)], seen[:, seen.any(axis=0)]
    if not seen.any():
        return None
    y = np.where(seen, rows, 0.0)
    y = np.where(seen, y - y.sum() / seen.sum(), 0.0)
    n = seen.sum(axis=1)
    of_seed = seen / seen.sum(axis=0)
    information = np.diag(n.astype(float)) - of_seed @ seen.T
    inverse = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
    effects = inverse @ (y.sum(axis=1) - of_seed @ y.sum(axis=0))
    adjusted = np.where(seen, y - effects[:, None], 0.0)
    square = float((np.where(seen, adjusted - adjusted.sum(axis=0) / seen.sum(axis=0), 0.0) ** 2).sum())
    within = float((np.where(seen, y - (y.sum(axis=1) / np.maximum(n, 1))[:, None], 0.0) ** 2).sum())
    parts = len(rows) - int(np.linalg.matrix_rank(information, tol=1e-9 * max(1.0, n.max()), hermitian=True))
    df = int(seen.sum()) - len(rows) - rows.shape[1] + parts
    return _TwoWay(inverse, effects, information @ inverse, square, df, within - square, rows.shape[1] - parts)


def _fit(array: Floats, rows: NDArray[np.intp], base: int, model: str) -> _Fit:
    cells = array[np.array([base, *rows])]
    if model == "paired":
        return _paired(cells)
    if model != "joint":
        return _welch(cells) if model == "welch" else _one_way(cells)
    two_way = _two_way(cells)
    if two_way is None or not _seeds_differ(two_way):
        shared, own, residuals = _one_way(cells), _welch(cells), cells
    else:
        shared, own, residuals = _blocked(two_way), _paired(cells), _residuals(cells, two_way)
    out = _stand_out(residuals)
    kept = np.where((out[1:] | out[0]) & np.isfinite(shared.df), (own.error, own.df), np.nan)
    return shared._replace(own=(kept[0], kept[1]))


def _paired(cells: Floats) -> _Fit:
    estimate = paired_difference(cells[1:], cells[:1])
    n = np.maximum(estimate.n, 1)
    error = estimate.half_width / stats.t.ppf(0.975, np.maximum(n - 1, 1))
    return _Fit(estimate.mean, error, np.where(estimate.n > 1, n - 1.0, np.nan), None, True)


def _seeds_differ(fitted: _TwoWay) -> bool:
    if fitted.df < _FEWEST_DF or fitted.seed_df < 1:
        return False
    between, rest = fitted.seed_square / fitted.seed_df, fitted.square / fitted.df
    # Rows that are alike up to a shift leave no rest: there is nothing to judge by, and no block is the wider choice.
    if rest <= 1e-18 * max(between, 1e-300):
        return False
    return bool(stats.f.sf(between / rest, fitted.seed_df, fitted.df) < _SEEDS_DIFFER)


def _residuals(cells: Floats, fitted: _TwoWay) -> Floats:
    rest = cells - fitted.effects[:, None]
    seen = (~np.isnan(rest)).sum(axis=0)  # a seed of one variant alone fits it exactly
    return np.asarray(np.where(seen > 1, rest - np.nansum(rest, axis=0) / np.maximum(seen, 1), np.nan))


def _moments(cells: Floats) -> tuple[Floats, Floats, Floats]:
    """Return (K,) means, variances and counts; a variance is at least that of rounding to the grid of the values."""
    n = (~np.isnan(cells)).sum(axis=1).astype(float)
    mean = np.nansum(cells, axis=1) / np.maximum(n, 1)
    squares = np.nansum((cells - mean[:, None]) ** 2, axis=1)
    gaps = np.diff(np.unique(cells[~np.isnan(cells)].round(9)))
    floor = gaps.min() ** 2 / 12 if len(gaps) else 0.0
    variance = np.where(n > 1, np.maximum(squares / np.maximum(n - 1, 1), floor), np.nan)
    return np.where(n > 0, mean, np.nan), variance, n


def _stand_out(cells: Floats) -> NDArray[np.bool_]:
    """(K,) whose variance is above that of all other rows together, by an F test; a row of one value is not."""
    _, variance, n = _moments(cells)
    df = np.where(np.isfinite(variance), n - 1, 0.0)
    square = df * np.nan_to_num(variance)
    rest_df, rest = df.sum() - df, square.sum() - square
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (square / df) / (rest / rest_df)
    return np.asarray((df > 0) & (rest_df > 0) & (stats.f.sf(ratio, df, rest_df) < _STANDS_OUT))


def _blocked(fitted: _TwoWay) -> _Fit:
    contrasts = np.hstack([-np.ones((len(fitted.effects) - 1, 1)), np.eye(len(fitted.effects) - 1)])
    covariance = contrasts @ fitted.inverse @ contrasts.T
    error = np.sqrt(fitted.square / fitted.df * np.diag(covariance))
    estimable = np.abs(contrasts @ fitted.estimable - contrasts).max(axis=1) < 1e-6
    mean = np.where(estimable, contrasts @ fitted.effects, np.nan)
    scale = np.sqrt(np.diag(covariance))
    df = np.where(estimable, float(fitted.df), np.nan)
    return _Fit(mean, np.where(estimable, error, np.nan), df, one_factor(covariance / np.outer(scale, scale)), True)


def _one_way(cells: Floats) -> _Fit:
    mean, _, n = _moments(cells)
    df = max(float(n.sum() - len(n)), 0.0)
    squares = np.nansum((cells - mean[:, None]) ** 2)
    pooled = squares / df if df else np.nan
    error = np.sqrt(pooled * (1 / n[1:] + 1 / n[0]))
    rows = np.full(len(n) - 1, df if df else np.nan)
    return _Fit(mean[1:] - mean[0], error, rows, np.sqrt(n[1:] / (n[1:] + n[0])), False)


def _welch(cells: Floats) -> _Fit:
    mean, variance, n = _moments(cells)
    parts = variance / np.maximum(n, 1)
    square = parts[1:] + parts[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        df = square**2 / (parts[1:] ** 2 / (n[1:] - 1) + parts[0] ** 2 / (n[0] - 1))
    return _Fit(mean[1:] - mean[0], np.sqrt(square), np.where(np.isfinite(df), df, np.nan), None, False)


def _widths(fit: _Fit, level: float) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Return (K,) half-widths, standard errors, degrees of freedom, and whether the shared variance gave them."""
    half, error, df = fit.error * _critical(fit.df, fit.loading, level), fit.error, fit.df
    wider = np.zeros(len(half), dtype=bool)
    if fit.own is not None:
        own = fit.own[0] * _sidak(fit.own[1], level, int(np.isfinite(fit.df).sum()))
        wider = np.asarray(own > half)
        half, error, df = np.where(wider, (own, *fit.own), (half, error, df))
    return half, error, df, ~wider & (fit.loading is not None)


def _critical(df: Floats, loading: Floats | None, level: float) -> Floats:
    """Return (K,) how many standard errors a simultaneous half-width takes."""
    known = np.isfinite(df)
    if loading is None:
        return _sidak(df, level, int(known.sum()))
    critical = np.full(len(df), np.nan)
    if known.any():
        critical[known] = dunnett_quantile(level, float(df[known][0]), *grouped(loading[known]))
    return critical


def _sidak(df: Floats, level: float, count: int) -> Floats:
    return np.asarray(stats.t.isf((1 - level ** (1 / max(count, 1))) / 2, df))


def _adjusted(fit: _Fit) -> Floats:
    """Return (K,) two-sided p values, adjusted for the comparisons of the group."""
    known = np.isfinite(fit.df) & (fit.error > 0)
    p = np.full(len(fit.df), np.nan)
    if not known.any():
        return p
    t = np.abs(fit.mean[known] / fit.error[known])
    if fit.loading is None:
        p[known] = 1 - (1 - 2 * stats.t.sf(t, fit.df[known])) ** known.sum()
    else:
        p[known] = 1 - dunnett_cdf(t, float(fit.df[known][0]), *grouped(fit.loading[known]))
    if fit.own is not None:
        error, df = fit.own
        own = 1 - (1 - 2 * stats.t.sf(np.abs(fit.mean) / error, df)) ** known.sum()
        p = np.fmax(p, own)
    return np.asarray(np.clip(p, 0.0, 1.0))
