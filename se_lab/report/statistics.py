"""Statistics of ablation studies, as pure functions on arrays.

The last axis is that of seeds, with NaN for missing trials, which all functions ignore. Intervals over seeds are for a
fixed test set: they do not include the variation between test images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import (  # faster than stats.t, which checks its arguments
    betaincinv,
    expit,
    logit,
    stdtrit,
)

Floats = NDArray[np.float64]

EXACT_SEEDS = 16  # up to 2^15 sign patterns are enumerated
DRAWS = 9_999
_UPPER = 0.975  # for 95 % intervals and two-sided tests at 0.05
_CELLS = 4_000_000  # float64 values in memory at a time: 32 MB


class Estimate(NamedTuple):
    """Means with half-widths of intervals (NaN below two values) and numbers of values."""

    mean: Floats
    half_width: Floats
    n: NDArray[np.int64]

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Whether the values differ by more than rounding errors."""
        return np.asarray(self.half_width > 1e-9 * np.abs(self.mean))

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """Whether the interval excludes zero; False without one, and if all values are equal.

        Equal values are no evidence: if differences of −1, 0 and 1 image are equally likely, two seeds have the same
        non-zero difference in 22 % of studies.
        """
        return np.asarray(self.varies & (np.abs(self.mean) > self.half_width))


class Bounds(NamedTuple):
    """Means with the ends of their intervals (NaN without an interval) and numbers of values."""

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]

    @property
    def sides(self) -> Floats:
        """Lengths of the intervals below and above the means, (2, ...)."""
        return np.stack([self.mean - self.low, self.high - self.mean])


class SignFlip(NamedTuple):
    """Two-sided p values, their minima for the numbers of seeds, and whether they are exact."""

    p: Floats
    smallest: Floats
    exact: bool


class McNemar(NamedTuple):
    """Exact two-sided p value, and numbers of images that only one net classifies correctly."""

    p: float
    only_first: int
    only_second: int


class Interval(NamedTuple):
    """An estimate with the bounds of its interval."""

    estimate: float
    low: float
    high: float


def t_interval(values: ArrayLike) -> Estimate:
    """Return the 95 % t interval of the mean over the last axis, `mean ± t(n−1) · sd / √n`.

    values: (..., S), NaN if missing. Assumes independent seeds and roughly normal errors. The interval is valid for any
    n ≥ 2, but wide for small n: t is 12.7 for two seeds and 4.3 for three.
    """
    array = np.asarray(values, dtype=np.float64)
    present = ~np.isnan(array)
    n = present.sum(axis=-1)
    total = np.where(present, array, 0.0).sum(axis=-1)
    mean = np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.where(present, array - mean[..., None], 0.0) ** 2
    df = np.where(n > 1, n - 1, 1)
    half = stdtrit(df, _UPPER) * np.sqrt(squares.sum(axis=-1) / df / np.maximum(n, 1))
    return Estimate(mean, np.where(n > 1, half, np.nan), n)


def error_interval(values: ArrayLike, images: ArrayLike = np.nan) -> Bounds:
    """Return the 95 % interval over seeds of a mean error in %, within 0 and 100 %.

    Student's t on the logit scale: logit(mean) ± t(n−1) · sd / √n / (mean · (1 − mean)), by the delta method. The
    coverage is that of the t interval, even at 0.75 % error, where two of three t intervals extend below 0. If all
    values are equal, the interval is binomial over `images` (Clopper and Pearson 1934).

    Args:
        values: Errors (..., S) in %, NaN if missing.
        images: Numbers of test images (...), NaN if unknown.
    """
    estimate = t_interval(values)
    share, half = estimate.mean / 100, estimate.half_width / 100
    count = np.broadcast_to(np.asarray(images, dtype=np.float64), share.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = half / (share * (1 - share))
        low, high = expit(logit(share) - reach), expit(logit(share) + reach)
        wrong_count = np.clip(share * count, 0.0, count)
        exact = [
            np.where(wrong_count > 0, betaincinv(wrong_count, count - wrong_count + 1, 1 - _UPPER), 0.0),
            np.where(wrong_count < count, betaincinv(wrong_count + 1, count - wrong_count, _UPPER), 1.0),
        ]
    use_t = np.isfinite(half) & estimate.varies
    use_count = np.isfinite(half) & ~estimate.varies & np.isfinite(count)
    ends = [100 * np.select([use_t, use_count], pair, np.nan) for pair in zip((low, high), exact, strict=True)]
    return Bounds(estimate.mean, ends[0], ends[1], estimate.n)


def paired_difference(values: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Return the mean of `values − baseline` over shared seeds, with its t interval.

    values, baseline: (..., S) with the same order of seeds. If pairs correlate, the interval is narrower than that of
    two independent means.
    """
    return t_interval(np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64))


def sign_flip(differences: ArrayLike, rng: np.random.Generator | None = None, draws: int = DRAWS) -> SignFlip:
    """Test whether paired differences are symmetric about zero, by permutation of their signs.

    differences: (..., S), NaN if missing. For up to 16 seeds all 2^n sign patterns are enumerated and p is exact; for
    more, `draws` patterns are drawn from `rng`, and the observed one is added (Phipson and Smyth 2010). p is at least
    2/2^n: 0.25 for three seeds, 0.0625 for five, so six seeds are needed to reach 0.05. The rate of false positives at
    0.05 is 0 up to n = 5, 1/32 for 6, 3/64 for 7. Raises ValueError for more than 16 seeds without a generator.
    """
    array = np.asarray(differences, dtype=np.float64)
    present = ~np.isnan(array)
    n = present.sum(axis=-1)
    # Missing pairs become 0, whose sign does not matter.
    rows = np.where(present, array, 0.0).reshape(-1, array.shape[-1])
    rows = rows[:, np.any(rows != 0.0, axis=0)]
    seeds = rows.shape[1]
    exact = seeds <= EXACT_SEEDS
    if exact:
        free_signs = max(seeds - 1, 0)  # the first sign is fixed, since flipping all signs keeps |sum|
        bits = (np.arange(2**free_signs)[:, None] >> np.arange(free_signs)) & 1
        signs = np.hstack([np.ones((2**free_signs, min(seeds, 1))), 1.0 - 2.0 * bits])
    elif rng is None:
        raise ValueError(f"{seeds} seeds are too many to enumerate all sign patterns; pass a generator.")
    else:
        signs = rng.choice((-1.0, 1.0), size=(draws, seeds))
    sums = np.abs(rows.sum(axis=1))
    slack = 1e-12 * np.abs(rows).sum(axis=1)  # for rounding errors
    step = max(1, _CELLS // len(signs))
    hits = np.concatenate(
        [
            (np.abs(rows[i : i + step] @ signs.T) >= (sums - slack)[i : i + step, None]).sum(axis=1)
            for i in range(0, max(len(rows), 1), step)
        ]
    )
    p = hits / len(signs) if exact else (hits + 1) / (draws + 1)
    smallest = np.minimum(1.0, 2.0 ** (1.0 - n))
    return SignFlip(np.where(n > 0, p.reshape(n.shape), np.nan), np.where(n > 0, smallest, np.nan), exact)


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Run McNemar's exact test on paired results by image, a binomial test of disagreements.

    first, second: (N,) bool, whether each net classifies an image correctly. The test compares two trained nets, not
    two methods, since other seeds give other nets. It is conservative: the rate of false positives at 0.05 is 0 for up
    to five disagreements, and close to 0.05 for some hundreds. Raises ValueError for different lengths.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"McNemar's test needs arrays of the same shape, not {a.shape} and {b.shape}.")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    p = min(1.0, 2.0 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(p, only_a, only_b)


def bootstrap_images(values: ArrayLike, rng: np.random.Generator, draws: int = 10_000) -> Interval:
    """Return the 95 % percentile bootstrap interval over images of the mean of `values` (N,).

    For studies with one seed: the interval is for other test images with the same weights. Raises ValueError if
    `values` is empty.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"A bootstrap over images needs a (N,) array with N ≥ 1, not {array.shape}.")
    # Draw the counts of distinct values instead of N images, since there are few, such as −1, 0 and 1.
    distinct, counts = np.unique(array, return_counts=True)
    means = _multinomial_means(distinct[None], counts, rng, draws)[:, 0]
    low, high = np.quantile(means, [1 - _UPPER, _UPPER])
    return Interval(float(array.mean()), float(low), float(high))


def seeds_images_interval(values: ArrayLike) -> Interval:
    """Return the 95 % interval of the mean of `values` (S, N) for other seeds and other images.

    Seeds and images are crossed random effects. The variance of the mean is (MS seeds + MS images − MS residual) / SN,
    with Satterthwaite's degrees of freedom, and at least that of either effect alone. Without variation of images,
    this is the t interval over seeds; for one seed, only images vary. Raises ValueError if `values` is empty or not
    two-dimensional.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"An interval over seeds and images needs a (S, N) array, not {array.shape}.")
    seeds, images = array.shape
    seed_means, image_means, mean = array.mean(axis=1), array.mean(axis=0), float(array.mean())
    residuals = array - seed_means[:, None] - image_means + mean
    squares = np.array(
        [images * ((seed_means - mean) ** 2).sum(), seeds * ((image_means - mean) ** 2).sum(), (residuals**2).sum()]
    )
    df = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    ms = np.divide(squares, df, out=np.zeros(3), where=df > 0)
    total = max(ms[0] + ms[1] - ms[2], ms[0], ms[1])
    parts = np.divide(ms**2, df, out=np.zeros(3), where=df > 0).sum()
    half = float(stats.t.ppf(_UPPER, total**2 / parts) * np.sqrt(total / array.size)) if parts > 0 else 0.0
    return Interval(mean, mean - half, mean + half)


def holm(p: ArrayLike) -> Floats:
    """Correct p values (M,) by Holm's step-down method (Holm 1979), ignoring NaN.

    The method controls the family-wise error rate under any dependence.
    """
    array = np.asarray(p, dtype=np.float64)
    result = np.full(array.shape, np.nan)
    indices = np.flatnonzero(~np.isnan(array))
    order = indices[np.argsort(array[indices], kind="stable")]
    factors = len(order) - np.arange(len(order))
    result[order] = np.minimum(1.0, np.maximum.accumulate(factors * array[order])) if len(order) else []
    return result


def seeds_needed(sd: ArrayLike, difference: float, power: float = 0.8, rows: ArrayLike = 1.0) -> Floats:
    """Return the number of seeds that a two-sided t test at 0.05 needs to detect a difference.

    Args:
        sd: Standard deviation (...) of the difference for a single seed, in the unit of `difference`.
        difference: The true difference.
        power: The probability of detection.
        rows: Degrees of freedom (...) of the test per seed after the first: 1 if paired, 2 for two variants with a
            common variance, V for V variants.

    Raises ValueError if `difference` is not positive.
    """
    if not difference > 0:
        raise ValueError(f"difference is {difference!r}; it must be above 0.")
    effect = difference / np.maximum(np.asarray(sd, dtype=np.float64), 1e-12 * difference)
    # Start the search at the normal approximation, which needs fewer seeds than the t test.
    n = np.maximum(2.0, np.floor(((stats.norm.ppf(_UPPER) + stats.norm.ppf(power)) / effect) ** 2))
    while np.any(too_few := _t_test_power(n, effect, np.asarray(rows) * (n - 1)) < power):
        n = np.where(too_few, n + 1, n)
    return np.asarray(n)


def sd_factors(df: ArrayLike) -> tuple[Floats, Floats]:
    """Return factors from an estimated standard deviation to its 5 % and 95 % bounds."""
    freedom = np.asarray(df, dtype=np.float64)
    return np.sqrt(freedom / stats.chi2.ppf(0.95, freedom)), np.sqrt(freedom / stats.chi2.ppf(0.05, freedom))


def _t_test_power(n: Floats, effect: Floats, df: Floats) -> Floats:
    shift = np.minimum(effect * np.sqrt(n), 300.0)  # the power is 1 there; larger values may not converge
    limit = stdtrit(df, _UPPER)
    return np.asarray(stats.ncf.sf(limit**2, 1, df, shift**2))  # F = t², so both tails are included


def _multinomial_means(values: Floats, counts: NDArray[np.int64], rng: np.random.Generator, draws: int) -> Floats:
    """Return means (draws, R) of `values` (R, K), drawing columns in proportion to `counts`."""
    total = int(counts.sum())
    step = max(1, _CELLS // len(counts))
    return np.concatenate(
        [
            rng.multinomial(total, counts / total, size=min(step, draws - start)) @ values.T / total
            for start in range(0, draws, step)
        ]
    )
