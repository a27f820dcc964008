"""Models of one group of variants: differences from the baseline and their standard errors.

`cells` is (1 + K, S), the baseline and K variants by seed, NaN for missing trials.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr, stdtrit

from se_lab.report.dunnett import dunnett_cdf, dunnett_quantile, group_loadings, one_factor
from se_lab.report.statistics import Floats, paired_difference

# Levels of the F tests, chosen by simulation (benchmarks/evidence.py): tables with equal variances have 3.6 to 5.3 %
# false positives, tables with one variant or baseline three times as variable at most 8 %.
_ROW_STANDS_OUT, _BASELINE_STANDS_OUT, _ONE_OF_TWO_STANDS_OUT = 0.05, 0.2, 0.15
_SEEDS_DIFFER = 0.01  # a strict test, since blocks found by chance make the standard error too small
_FEWEST_DF = 4


class Fit(NamedTuple):
    """Differences (K,), standard errors and degrees of freedom of a group; NaN if missing."""

    mean: Floats
    error: Floats
    df: Floats
    loading: Floats | None
    """Loadings (K,): the correlation of two differences is their product. None if each row has its own error."""
    blocked: bool
    variance: Literal["shared", "baseline", "row"]
    """The variance model: one variance, a separate one for the baseline, or one per row."""
    wider: tuple[Fit, ...] = ()
    """Alternative fits for rows with a larger variance, NaN in the other rows; the widest interval is used."""

    def only(self, row: int) -> Fit:
        """Return the fit of a single row, as the only comparison."""
        loading = None if self.loading is None else np.zeros(1)
        index, wider = np.array([row]), tuple(fit.only(row) for fit in self.wider)
        return self._replace(
            mean=self.mean[index], error=self.error[index], df=self.df[index], loading=loading, wider=wider
        )


class TwoWay(NamedTuple):
    """Least-squares fit of variant + seed effects, with sums of squares."""

    inverse: Floats
    effects: Floats
    estimable: Floats
    square: float
    df: int
    seed_square: float
    seed_df: int


def groups(group: NDArray[np.intp], mask: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return the indices of the rows in the mask, by group."""
    return [np.flatnonzero(mask & (group == g)) for g in np.unique(group[mask])]


def two_way(rows: Floats) -> TwoWay | None:
    """Fit variant + seed effects to values (K, S) with missing cells; None if all are missing."""
    mask = ~np.isnan(rows)
    rows, mask = rows[:, mask.any(axis=0)], mask[:, mask.any(axis=0)]
    if not mask.any():
        return None
    y = np.where(mask, rows, 0.0)
    y = np.where(mask, y - y.sum() / mask.sum(), 0.0)
    n = mask.sum(axis=1)
    of_seed = mask / mask.sum(axis=0)
    information = np.diag(n.astype(float)) - of_seed @ mask.T
    inverse = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
    effects = inverse @ (y.sum(axis=1) - of_seed @ y.sum(axis=0))
    deviations = np.where(mask, y - effects[:, None], 0.0)
    square = float((np.where(mask, deviations - deviations.sum(axis=0) / mask.sum(axis=0), 0.0) ** 2).sum())
    within_square = float((np.where(mask, y - (y.sum(axis=1) / np.maximum(n, 1))[:, None], 0.0) ** 2).sum())
    parts = len(rows) - int(np.linalg.matrix_rank(information, tol=1e-9 * max(1.0, n.max()), hermitian=True))
    df = int(mask.sum()) - len(rows) - rows.shape[1] + parts
    return TwoWay(inverse, effects, information @ inverse, square, df, within_square - square, rows.shape[1] - parts)


def fit_group(cells: Floats, model: str) -> Fit:
    """Fit the model joint, pooled, paired or welch to the baseline and variants of a group."""
    if model == "paired":
        return _fit_paired(cells)
    if model != "joint":
        return _fit_welch(cells) if model == "welch" else _fit_one_way(cells)
    two_way_fit = two_way(cells)
    if two_way_fit is not None and _seeds_differ(two_way_fit):
        outliers = _stand_out(_residuals(cells, two_way_fit), _ROW_STANDS_OUT, _ROW_STANDS_OUT)
        return _fit_blocked(two_way_fit)._replace(wider=(_where(outliers[1:] | outliers[0], _fit_paired(cells)),))
    base_fit = _fit_one_way(cells)
    if np.isfinite(base_fit.df).sum() < 2:
        outliers = _stand_out(cells, _ONE_OF_TWO_STANDS_OUT, _ONE_OF_TWO_STANDS_OUT)
        return base_fit._replace(wider=(_where(outliers[1:] | outliers[0], _fit_welch(cells)),))
    outliers = _stand_out(cells, _BASELINE_STANDS_OUT, _ROW_STANDS_OUT)
    return base_fit._replace(
        wider=(_where(outliers[1:], _fit_welch(cells)), *([_fit_two_variances(cells)] if outliers[0] else []))
    )


def widths(fit: Fit, level: float) -> tuple[Floats, Floats, Floats, NDArray[np.str_]]:
    """Return simultaneous half-widths, standard errors, df and variance models, (K,) each."""
    count = int(np.isfinite(fit.df).sum())
    half, error, df = np.full((3, len(fit.mean)), np.nan)
    variance = np.full(len(half), fit.variance)
    for candidate in (fit, *fit.wider):
        margins = candidate.error * _critical(candidate, level, count)
        is_wider = np.isfinite(margins) & ~(margins <= half)
        half, error, df = np.where(is_wider, (margins, candidate.error, candidate.df), (half, error, df))
        variance = np.where(is_wider, candidate.variance, variance)
    return half, error, df, variance


def adjusted_p(fit: Fit) -> Floats:
    """Return two-sided p values (K,), adjusted for the comparisons of the group."""
    count, p = int(np.isfinite(fit.df).sum()), np.full(len(fit.mean), np.nan)
    for candidate in (fit, *fit.wider):
        mask = np.isfinite(candidate.df) & (candidate.error > 0)
        t = np.abs(candidate.mean[mask] / candidate.error[mask])
        if candidate.loading is None:
            p_values = 1 - (1 - 2 * stdtr(candidate.df[mask], -t)) ** count
        else:
            p_values, factors = np.empty(len(t)), group_loadings(candidate.loading[np.isfinite(candidate.df)])
            for df in np.unique(candidate.df[mask]):
                rows = candidate.df[mask] == df
                p_values[rows] = 1 - dunnett_cdf(t[rows], float(df), *factors)
        p[mask] = np.fmax(p[mask], np.clip(p_values, 0.0, 1.0))
    return p


def _critical(fit: Fit, level: float, count: int) -> Floats:
    """Return simultaneous half-widths (K,) in units of the standard error."""
    if fit.loading is None:
        return np.asarray(-stdtrit(fit.df, (1 - level ** (1 / max(count, 1))) / 2))
    quantiles, mask = np.full(len(fit.df), np.nan), np.isfinite(fit.df)
    factors = group_loadings(fit.loading[mask])
    for df in np.unique(fit.df[mask]):
        quantiles[fit.df == df] = dunnett_quantile(level, float(df), *factors)
    return quantiles


def _where(rows: NDArray[np.bool_], fit: Fit) -> Fit:
    return fit._replace(error=np.where(rows, fit.error, np.nan), df=np.where(rows, fit.df, np.nan))


def _fit_paired(cells: Floats) -> Fit:
    estimate = paired_difference(cells[1:], cells[:1])
    n = np.maximum(estimate.n, 1)
    error = estimate.half_width / stdtrit(np.maximum(n - 1, 1), 0.975)
    return Fit(estimate.mean, error, np.where(estimate.n > 1, n - 1.0, np.nan), None, True, "row")


def _seeds_differ(fitted: TwoWay) -> bool:
    if fitted.df < _FEWEST_DF or fitted.seed_df < 1:
        return False
    seed_ms, rest_ms = fitted.seed_square / fitted.seed_df, fitted.square / fitted.df
    # Without residuals the F test is undefined; intervals without blocks are wider.
    if rest_ms <= 1e-18 * max(seed_ms, 1e-300):
        return False
    return bool(fdtrc(fitted.seed_df, fitted.df, seed_ms / rest_ms) < _SEEDS_DIFFER)


def _residuals(cells: Floats, fitted: TwoWay) -> Floats:
    residuals = cells - fitted.effects[:, None]
    counts = (~np.isnan(residuals)).sum(axis=0)  # a seed with a single variant has no residual
    return np.asarray(np.where(counts > 1, residuals - np.nansum(residuals, axis=0) / np.maximum(counts, 1), np.nan))


def _moments(cells: Floats) -> tuple[Floats, Floats, Floats]:
    """Return means, variances and counts, (K,); a variance is at least that of rounding."""
    n = (~np.isnan(cells)).sum(axis=1).astype(float)
    mean = np.nansum(cells, axis=1) / np.maximum(n, 1)
    squares = np.nansum((cells - mean[:, None]) ** 2, axis=1)
    gaps = np.diff(np.unique(cells[~np.isnan(cells)].round(9)))
    floor = gaps.min() ** 2 / 12 if len(gaps) else 0.0
    variance = np.where(n > 1, np.maximum(squares / np.maximum(n - 1, 1), floor), np.nan)
    return np.where(n > 0, mean, np.nan), variance, n


def _stand_out(cells: Floats, baseline: float, row: float) -> NDArray[np.bool_]:
    """Return whether each row (1 + K,) has a larger variance than the other rows, by F tests."""
    _, variance, n = _moments(cells)
    df = np.where(np.isfinite(variance), n - 1, 0.0)
    square = df * np.nan_to_num(variance)
    rest_df, rest_square = df.sum() - df, square.sum() - square
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (square / df) / (rest_square / rest_df)
    levels = np.where(np.arange(len(cells)) == 0, baseline, row)
    return np.asarray((df > 0) & (rest_df > 0) & (fdtrc(df, rest_df, ratio) < levels))


def _fit_blocked(fitted: TwoWay) -> Fit:
    contrasts = np.hstack([-np.ones((len(fitted.effects) - 1, 1)), np.eye(len(fitted.effects) - 1)])
    covariance = contrasts @ fitted.inverse @ contrasts.T
    error = np.sqrt(fitted.square / fitted.df * np.diag(covariance))
    estimable = np.abs(contrasts @ fitted.estimable - contrasts).max(axis=1) < 1e-6
    mean = np.where(estimable, contrasts @ fitted.effects, np.nan)
    scale = np.sqrt(np.diag(covariance))
    df = np.where(estimable, float(fitted.df), np.nan)
    return Fit(
        mean, np.where(estimable, error, np.nan), df, one_factor(covariance / np.outer(scale, scale)), True, "shared"
    )


def _fit_one_way(cells: Floats) -> Fit:
    mean, _, n = _moments(cells)
    df = max(float(n.sum() - len(n)), 0.0)
    squares = np.nansum((cells - mean[:, None]) ** 2)
    pooled_variance = squares / df if df else np.nan
    error = np.sqrt(pooled_variance * (1 / n[1:] + 1 / n[0]))
    rows = np.full(len(n) - 1, df if df else np.nan)
    return Fit(mean[1:] - mean[0], error, rows, np.sqrt(n[1:] / (n[1:] + n[0])), False, "shared")


def _fit_welch(cells: Floats) -> Fit:
    mean, variance, n = _moments(cells)
    parts = variance / np.maximum(n, 1)
    square = parts[1:] + parts[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        df = square**2 / (parts[1:] ** 2 / (n[1:] - 1) + parts[0] ** 2 / (n[0] - 1))
    return Fit(mean[1:] - mean[0], np.sqrt(square), np.where(np.isfinite(df), df, np.nan), None, False, "row")


def _fit_two_variances(cells: Floats) -> Fit:
    """Fit one variance for the baseline and one for all variants (Hasler and Hothorn 2008)."""
    mean, variance, n = _moments(cells)
    df = np.where(np.isfinite(variance), n - 1, 0.0)
    pooled_variance = (df[1:] * np.nan_to_num(variance[1:])).sum() / df[1:].sum()
    rows, base = pooled_variance / np.maximum(n[1:], 1), variance[0] / n[0]
    row_df = (rows + base) ** 2 / (rows**2 / df[1:].sum() + base**2 / df[0])
    row_df = np.where(n[1:] > 0, np.floor(10 * row_df) / 10, np.nan)  # few distinct values: a quantile is slow
    loading = np.sqrt(base / (rows + base))
    return Fit(mean[1:] - mean[0], np.sqrt(rows + base), row_df, loading, False, "baseline")
