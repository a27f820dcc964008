"""Dunnett's distribution (1955): the largest |t| of several comparisons with one baseline."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import ndtr

Floats = NDArray[np.float64]

_Z, _Z_WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
_U, _U_WEIGHTS = np.polynomial.legendre.leggauss(48)


def dunnett_cdf(limits: ArrayLike, df: float, loadings: tuple[float, ...], counts: tuple[int, ...]) -> Floats:
    """Return the probability that the largest |t| is below each of the limits (L,).

    The correlation of two t is the product of their loadings; counts[i] of the t have loadings[i]. Given the baseline's
    mean and the standard error, the t are independent, so two integrals remain.
    """
    scale, weights = _scales(df)
    bound = np.atleast_1d(np.asarray(limits, dtype=np.float64))[:, None, None] * scale
    inner = np.ones((len(bound), len(_Z), len(scale)))
    for loading, count in zip(loadings, counts, strict=True):
        residual, shift = np.sqrt(1 - loading**2), loading * _Z[:, None]
        inner *= (ndtr((shift + bound) / residual) - ndtr((shift - bound) / residual)) ** count
    return np.asarray(np.einsum("z,lzs,s->l", _Z_WEIGHTS / _Z_WEIGHTS.sum(), inner, weights))


@lru_cache(maxsize=4096)
def dunnett_quantile(level: float, df: float, loadings: tuple[float, ...], counts: tuple[int, ...]) -> float:
    """Return the quantile of the largest |t| at probability `level`."""
    if sum(counts) == 1:
        return float(stats.t.isf((1 - level) / 2, df))
    tail = (1 - level) / 2
    low, high = float(stats.t.isf(tail, df)), float(stats.t.isf(tail / sum(counts), df)) * 1.001

    def excess(limit: float) -> float:
        return float(dunnett_cdf(limit, df, loadings, counts)[0]) - level

    return low if excess(low) >= 0 else float(optimize.brentq(excess, low, high + 1e-9, xtol=1e-7))


def one_factor(correlations: Floats) -> Floats:
    """Return loadings (K,) of one factor, whose products approximate the correlations (K, K)."""
    k = len(correlations)
    loading = np.full(k, np.sqrt(0.5))
    for _ in range(50 if k > 2 else 0):
        cross_sums = correlations @ loading - np.diag(correlations) * loading
        loading = 0.5 * loading + 0.5 * cross_sums / np.maximum((loading**2).sum() - loading**2, 1e-12)
    if k == 2:
        loading = np.full(2, np.sqrt(max(float(correlations[0, 1]), 0.0)))
    return np.asarray(np.clip(loading, 0.0, 0.99))  # the quadrature has too few nodes for larger ones


def group_loadings(loading: Floats) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the distinct loadings and their counts."""
    values, counts = np.unique(loading.round(3), return_counts=True)
    return tuple(map(float, values)), tuple(map(int, counts))


@lru_cache(maxsize=1024)
def _scales(df: float) -> tuple[Floats, Floats]:
    """Return quadrature nodes and weights for the ratio of estimated to true standard error."""
    v = 0.5 * (_U + 1)  # the probability is v², so nodes are dense for small estimates
    return np.sqrt(stats.chi2.ppf(v**2, df) / df), _U_WEIGHTS * v
