"""Compare all variants of a table with their baselines at once: one model, simultaneous intervals.

Pure functions on arrays. `values` is (V, S), a row a variant and a column a seed, NaN where a trial is missing; `group`
(V,) numbers the groups, `baseline` (V,) names each variant's baseline, −1 where there is none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import ndtr

from se_lab.report.columns import unknown
from se_lab.report.statistics import Floats, paired_difference

Model = Literal["joint", "pooled", "paired", "welch"]
MODELS: tuple[str, ...] = get_args(Model)

_VARIANCES_DIFFER = 0.05
_SEEDS_DIFFER = 0.01  # seeds that differ by chance go with an error that is too small, so chance must seldom do it
_FEWEST_DF = 4
_Z, _Z_WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
_U, _U_WEIGHTS = np.polynomial.legendre.leggauss(48)


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


def compare(
    values: ArrayLike,
    group: NDArray[np.intp],
    baseline: NDArray[np.intp],
    model: str = "joint",
    level: float = 0.95,
) -> Comparison:
    """Return each variant's difference to its baseline, with simultaneous intervals over the whole table.

    `joint` fits error ~ variant + seed in each group. The seed is a block where an F test finds that seeds differ
    (at 0.01), else it is dropped. All rows share one variance unless Bartlett's test (at 0.05) finds that they differ;
    then each row has Welch's error. `pooled` has no block and always one variance, `welch` never; `paired` takes the
    differences seed by seed, each row with a variance of its own. One variance gives Dunnett's intervals (1955), the
    others Šidák's; several groups share 1 − level by Šidák.

    Assumes seeds that are independent and errors that are roughly normal (t with 3 degrees of freedom still does).
    What matters is one variance for all: pooled, one variant three times as variable raises the false alarms of a
    table to 9 %. Raises ReportError for an unknown model.
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
        mean[rows], error[rows], df[rows] = fit.mean, fit.error, fit.df
        half[rows] = fit.error * _critical(fit, level ** (1 / tested))
        p[rows] = 1 - (1 - _adjusted(fit)) ** tested
        blocked[rows], pooled[rows] = fit.blocked, fit.loading is not None
    pairs = paired_difference(array, np.where(compared[:, None], array[baseline], np.nan)).n
    return Comparison(mean, half, p, error, df, pairs, blocked, pooled, seed_correlation(array, group))


def contrast(values: ArrayLike, first: int, second: int, group: NDArray[np.intp], model: str = "joint") -> Comparison:
    """Return the difference of two variants, first − second, with an interval of its own, in one row.

    It takes its variance from all variants of their group. Raises ReportError for an unknown model.
    """
    array = np.asarray(values, dtype=np.float64)
    rows = np.flatnonzero(group == group[first])
    rows = rows if second in rows else np.array([second, first])
    fit = _fit(array, rows[rows != second], second, model)
    at = np.flatnonzero(rows[rows != second] == first)
    single = _Fit(fit.mean[at], fit.error[at], fit.df[at], None, fit.blocked)
    half, pairs = single.error * _critical(single, 0.95), paired_difference(array[first], array[second]).n
    alone = np.array([True])
    return Comparison(
        single.mean, half, _adjusted(single), single.error, single.df, np.atleast_1d(pairs), alone & fit.blocked,
        alone & (fit.loading is not None), np.nan,
    )  # fmt: skip


def verdicts(compared: Comparison, sign: float, group: NDArray[np.intp], margin: float | None = None) -> list[str]:
    """Return better, worse, equivalent or undecided for each variant; nothing where there is no interval.

    sign: 1 where lower is better, −1 where higher is. Equivalence is two one-sided tests at 0.05 against ±margin, that
    is, the simultaneous 90 % interval inside the margin (Schuirmann 1987); without a margin there is none.
    """
    inside = np.zeros(len(compared.mean), dtype=bool)
    if margin is not None:
        for rows in _groups(group, np.asarray(np.isfinite(compared.half_width))):
            loading = np.full(len(rows), np.sqrt(0.5)) if compared.pooled[rows].all() else None
            fit = _Fit(compared.mean[rows], compared.error[rows], compared.df[rows], loading, False)
            inside[rows] = np.abs(fit.mean) + fit.error * _critical(fit, 0.90) < margin
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

    differences, errors: (G,), one a net. A random-effects model: the variance between nets by Paule & Mandel (1982),
    the interval by Hartung & Knapp with t(G − 1). The spread is a standard deviation. NaN below two nets.
    """
    y, v = np.asarray(differences, dtype=np.float64), np.square(np.asarray(errors, dtype=np.float64))
    known = np.isfinite(y) & (v > 0)
    y, v = y[known], v[known]
    if len(y) < 2:
        return float("nan"), float("nan"), float("nan")

    def excess(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float(np.sum(w * (y - np.sum(w * y) / w.sum()) ** 2) - (len(y) - 1))

    most = float(np.var(y, ddof=1)) * len(y)
    tau2 = float(optimize.brentq(excess, 0.0, most)) if excess(0.0) > 0 else 0.0
    w = 1 / (v + tau2)
    mean = np.sum(w * y) / w.sum()
    scale = np.sum(w * (y - mean) ** 2) / (len(y) - 1)
    half = stats.t.ppf(0.975, len(y) - 1) * np.sqrt(scale / w.sum())
    return float(mean), float(half), float(np.sqrt(tau2))


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
        estimate = paired_difference(cells[1:], cells[:1])
        n = np.maximum(estimate.n, 1)
        error = estimate.half_width / stats.t.ppf(0.975, np.maximum(n - 1, 1))
        return _Fit(estimate.mean, error, np.where(estimate.n > 1, n - 1.0, np.nan), None, True)
    two_way = _two_way(cells)
    if model == "joint" and two_way is not None and _seeds_differ(two_way):
        residuals = _residuals(cells, two_way)
        if _variances_agree(residuals):
            return _blocked(two_way)
        return _welch(cells)
    if model == "pooled" or (model == "joint" and _variances_agree(cells)):
        return _one_way(cells)
    return _welch(cells)


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


def _variances_agree(cells: Floats) -> bool:
    """Bartlett's test (1937) over the rows with two values or more."""
    _, variance, n = _moments(cells)
    known = (n > 1) & (variance > 0)
    if known.sum() < 2:
        return True
    df, v = n[known] - 1, variance[known]
    total, k = df.sum(), len(df)
    statistic = total * np.log((df * v).sum() / total) - (df * np.log(v)).sum()
    correction = 1 + ((1 / df).sum() - 1 / total) / (3 * (k - 1))
    return bool(stats.chi2.sf(statistic / correction, k - 1) >= _VARIANCES_DIFFER)


def _blocked(fitted: _TwoWay) -> _Fit:
    contrasts = np.hstack([-np.ones((len(fitted.effects) - 1, 1)), np.eye(len(fitted.effects) - 1)])
    covariance = contrasts @ fitted.inverse @ contrasts.T
    error = np.sqrt(fitted.square / fitted.df * np.diag(covariance))
    estimable = np.abs(contrasts @ fitted.estimable - contrasts).max(axis=1) < 1e-6
    mean = np.where(estimable, contrasts @ fitted.effects, np.nan)
    scale = np.sqrt(np.diag(covariance))
    df = np.where(estimable, float(fitted.df), np.nan)
    return _Fit(mean, np.where(estimable, error, np.nan), df, _loadings(covariance / np.outer(scale, scale)), True)


def _loadings(correlations: Floats) -> Floats:
    """Return (K,) loadings of one common factor, whose products come nearest to the correlations."""
    k = len(correlations)
    loading = np.full(k, np.sqrt(0.5))
    for _ in range(50 if k > 2 else 0):  # for two, or a complete table, every pair correlates by 1/2
        others = correlations @ loading - np.diag(correlations) * loading
        loading = 0.5 * loading + 0.5 * others / np.maximum((loading**2).sum() - loading**2, 1e-12)
    if k == 2:
        loading = np.full(2, np.sqrt(max(float(correlations[0, 1]), 0.0)))
    return np.asarray(np.clip(loading, 0.0, 0.999))


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


def _critical(fit: _Fit, level: float) -> Floats:
    """Return (K,) how many standard errors a simultaneous half-width takes."""
    known = np.isfinite(fit.df)
    critical = np.full(len(fit.df), np.nan)
    if not known.any():
        return critical
    if fit.loading is None:
        tail = (1 - level ** (1 / known.sum())) / 2
        critical[known] = stats.t.isf(tail, fit.df[known])
    else:
        critical[known] = dunnett_quantile(level, float(fit.df[known][0]), *_counted(fit.loading[known]))
    return critical


def _adjusted(fit: _Fit) -> Floats:
    known = np.isfinite(fit.df) & (fit.error > 0)
    p = np.full(len(fit.df), np.nan)
    if not known.any():
        return p
    t = np.abs(fit.mean[known] / fit.error[known])
    if fit.loading is None:
        p[known] = 1 - (1 - 2 * stats.t.sf(t, fit.df[known])) ** known.sum()
    else:
        df, (loadings, counts) = float(fit.df[known][0]), _counted(fit.loading[known])
        p[known] = [1 - dunnett_cdf(value, df, loadings, counts) for value in t]
    return np.asarray(np.clip(p, 0.0, 1.0))


def _counted(loading: Floats) -> tuple[tuple[float, ...], tuple[int, ...]]:
    values, counts = np.unique(loading.round(3), return_counts=True)
    return tuple(map(float, values)), tuple(map(int, counts))


def dunnett_cdf(limit: float, df: float, loadings: tuple[float, ...], counts: tuple[int, ...]) -> float:
    """Return the chance that the largest of several |t|, which share their error and a baseline, is below the limit.

    The t correlate by the products of their loadings; counts[i] of them have loadings[i] (Dunnett 1955, two-sided).
    """
    v = 0.5 * (_U + 1)  # u = v²: dense where the estimated error is small
    scale = np.sqrt(stats.chi2.ppf(v**2, df) / df)
    inner = np.ones((len(_Z), len(scale)))
    for b, count in zip(loadings, counts, strict=True):
        rest = np.sqrt(1 - b * b)
        upper, lower = (b * _Z[:, None] + limit * scale) / rest, (b * _Z[:, None] - limit * scale) / rest
        inner *= (ndtr(upper) - ndtr(lower)) ** count
    by_scale = _Z_WEIGHTS @ inner / _Z_WEIGHTS.sum()
    return float(by_scale @ (_U_WEIGHTS * v))


@lru_cache(maxsize=4096)
def dunnett_quantile(level: float, df: float, loadings: tuple[float, ...], counts: tuple[int, ...]) -> float:
    """Return the limit that `dunnett_cdf` puts at the level."""
    tail = (1 - level) / 2
    low, high = float(stats.t.isf(tail, df)), float(stats.t.isf(tail / sum(counts), df)) * 1.001
    if dunnett_cdf(low, df, loadings, counts) >= level:  # a single comparison
        return low
    return float(optimize.brentq(lambda c: dunnett_cdf(c, df, loadings, counts) - level, low, high + 1e-9, xtol=1e-7))
