"""Statistics of ablations: pure functions on arrays, random numbers only from a generator passed by the caller.

Arrays of seeds have the seeds on their last axis, NaN where a trial is missing; every function uses the values present.
An interval over seeds holds the test set fixed: it says what another seed would give on the same images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import (  # the quantiles of stats.t, without its checks of arguments, which take longer
    betaincinv,
    expit,
    logit,
    stdtrit,
)

Floats = NDArray[np.float64]

EXACT_SEEDS = 16  # 2^15 sign patterns a variant; beyond it, patterns are drawn
DRAWS = 9_999
_UPPER = 0.975  # all intervals hold 95 %, all tests are two-sided at 0.05
_CELLS = 4_000_000  # of float64 at a time: 32 MB


class Estimate(NamedTuple):
    """Means with the half-widths of their intervals (NaN below two values) and the numbers of values."""

    mean: Floats
    half_width: Floats
    n: NDArray[np.int64]

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Where the values differ by more than rounding. Equal values show only how coarsely a test set counts."""
        return np.asarray(self.half_width > 1e-9 * np.abs(self.mean))

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """Where the interval does not hold zero; False where there is none, and where all values are equal.

        If differences of −1, 0 and 1 image are equally likely, two seeds agree on −1 or on 1 in 22 % of studies.
        """
        return np.asarray(self.varies & (np.abs(self.mean) > self.half_width))


class Bounds(NamedTuple):
    """Means between the ends of their intervals (NaN where there is none), and the numbers of values."""

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]

    @property
    def sides(self) -> Floats:
        """(2, ...) how far the intervals reach below and above their means."""
        return np.stack([self.mean - self.low, self.high - self.mean])


class SignFlip(NamedTuple):
    """Two-sided p values, the smallest that each n allows, and whether all sign patterns were counted."""

    p: Floats
    smallest: Floats
    exact: bool


class McNemar(NamedTuple):
    """Exact two-sided p, and the images that only the first or only the second net gets right."""

    p: float
    only_first: int
    only_second: int


class Interval(NamedTuple):
    """An estimate between two bounds."""

    estimate: float
    low: float
    high: float


def t_interval(values: ArrayLike) -> Estimate:
    """Return Student's 95 % t interval of the mean over the last axis, `mean ± t(n−1) · sd / √n`.

    values: (..., S), NaN where missing. Assumes independent seeds with roughly normal errors; covers at the stated
    rate for every n ≥ 2 then, but is wide for few: t is 12.7 for two seeds and 4.3 for three.
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
    """Return the 95 % interval over seeds of a mean error in %, which stays within 0 and 100 %.

    Student's t on the logit scale: logit(mean) ± t(n−1) · sd / √n / (mean · (1 − mean)), the sd by the delta method. It
    covers as well as the t interval, also at 0.75 % error, where the latter reaches below 0 in two of three tables. The
    spread of equal values is unknown: their interval is that of an error counted on `images` (Clopper & Pearson 1934).

    Args:
        values: (..., S) errors in %, NaN where missing.
        images: (...) images that an error is counted on, NaN where that is not known.
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
    """Return the mean of `values − baseline` seed by seed, with its t interval; unpaired seeds are left out.

    values, baseline: (..., S) with the same seeds in the same places. The effect of a seed on both cancels, so the
    interval is narrower than that of two independent means where the pairs correlate.
    """
    return t_interval(np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64))


def sign_flip(differences: ArrayLike, rng: np.random.Generator | None = None, draws: int = DRAWS) -> SignFlip:
    """Test by permutation whether each paired difference could as well have had the opposite sign.

    differences: (..., S), NaN where a pair is missing. Up to 16 seeds all 2^n patterns are counted and p is exact;
    beyond, `draws` patterns come from `rng`, and the observed one counts as one more (Phipson & Smyth 2010).
    p is never below 2/2^n: 0.25 for three seeds, 0.0625 for five, so six are the fewest that can reach 0.05. Exact
    p values are conservative for few seeds: the alarm rate at 0.05 is 0 up to n = 5, 1/32 at 6, 3/64 at 7.
    Raises ValueError beyond 16 seeds without a generator.
    """
    array = np.asarray(differences, dtype=np.float64)
    present = ~np.isnan(array)
    n = present.sum(axis=-1)
    # A missing pair becomes 0, whose sign does not matter: the patterns of those present are counted equally often.
    rows = np.where(present, array, 0.0).reshape(-1, array.shape[-1])
    rows = rows[:, np.any(rows != 0.0, axis=0)]
    seeds = rows.shape[1]
    exact = seeds <= EXACT_SEEDS
    if exact:
        free_signs = max(seeds - 1, 0)  # |sum| is the same with all signs turned, so the first sign stays
        bits = (np.arange(2**free_signs)[:, None] >> np.arange(free_signs)) & 1
        signs = np.hstack([np.ones((2**free_signs, min(seeds, 1))), 1.0 - 2.0 * bits])
    elif rng is None:
        raise ValueError(f"{seeds} seeds are too many to count every sign pattern: give a generator.")
    else:
        signs = rng.choice((-1.0, 1.0), size=(draws, seeds))
    sums = np.abs(rows.sum(axis=1))
    slack = 1e-12 * np.abs(rows).sum(axis=1)  # equal sums may differ in their last bits
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
    """Run McNemar's exact test on paired per-image results: a binomial test of the images on which they disagree.

    first, second: (N,) bool, whether each net has the image right, same images in the same order. It asks whether
    these two trained nets differ on such images, not whether the methods do: another seed is another net.
    Conservative: the alarm rate at 0.05 is 0 up to five disagreements and nears 0.05 from some hundreds on.
    Raises ValueError where the lengths differ.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"McNemar's test pairs images, but there are {a.shape} and {b.shape} of them.")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    p = min(1.0, 2.0 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(p, only_a, only_b)


def bootstrap_images(values: ArrayLike, rng: np.random.Generator, draws: int = 10_000) -> Interval:
    """Return the 95 % percentile bootstrap over images of the mean of `values` (N,), e.g. differences of errors.

    For one-seed studies: it says what other test images would give with these very weights. Raises ValueError
    where `values` is empty.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"A bootstrap over images needs a (N,) array with N ≥ 1, not {array.shape}.")
    # Drawing N images is drawing how often each distinct value comes: few numbers where values are −1, 0 and 1.
    distinct, counts = np.unique(array, return_counts=True)
    means = _multinomial_means(distinct[None], counts, rng, draws)[:, 0]
    low, high = np.quantile(means, [1 - _UPPER, _UPPER])
    return Interval(float(array.mean()), float(low), float(high))


def seeds_images_interval(values: ArrayLike) -> Interval:
    """Return the 95 % interval of the mean of `values` (S, N) for other seeds and other images, crossed.

    Seeds and images are random effects of a two-way table; the variance of its mean is (MS seeds + MS images − MS
    rest) / SN, with Satterthwaite's degrees of freedom, and never below that of seeds or images alone. Without any
    image noise this is the t interval over seeds. With one seed only images vary. Raises ValueError where `values` is
    not two-dimensional or is empty.
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
    """Correct p values (M,) by Holm's step-down method; NaN stays NaN and does not count as a test.

    Keeps the chance of any false alarm among the rows below the level, whatever their dependence (Holm 1979).
    """
    array = np.asarray(p, dtype=np.float64)
    result = np.full(array.shape, np.nan)
    indices = np.flatnonzero(~np.isnan(array))
    order = indices[np.argsort(array[indices], kind="stable")]
    factors = len(order) - np.arange(len(order))
    result[order] = np.minimum(1.0, np.maximum.accumulate(factors * array[order])) if len(order) else []
    return result


def seeds_needed(sd: ArrayLike, difference: float, power: float = 0.8, rows: ArrayLike = 1.0) -> Floats:
    """Return the fewest seeds with which a two-sided t test at 0.05 finds a true `difference` with that power.

    Args:
        sd: (...) the standard deviation of the differences of single seeds, in the unit of `difference`; NaN gives NaN.
        difference: The difference to find.
        power: The share of studies that should find it.
        rows: (...) degrees of freedom of the test for each seed after the first: 1 paired, 2 with two variants of
            one variance, V with V variants.

    Raises ValueError where `difference` is not positive.
    """
    if not difference > 0:
        raise ValueError(f"The difference to tell must be above zero, not {difference!r}.")
    effect = difference / np.maximum(np.asarray(sd, dtype=np.float64), 1e-12 * difference)
    # The normal approximation never needs more seeds than the t test: the search goes up from it by a few.
    n = np.maximum(2.0, np.floor(((stats.norm.ppf(_UPPER) + stats.norm.ppf(power)) / effect) ** 2))
    while np.any(too_few := _t_test_power(n, effect, np.asarray(rows) * (n - 1)) < power):
        n = np.where(too_few, n + 1, n)
    return np.asarray(n)


def sd_factors(df: ArrayLike) -> tuple[Floats, Floats]:
    """Return the 5 % and 95 % bounds of a true standard deviation, as factors of an estimate with `df`."""
    freedom = np.asarray(df, dtype=np.float64)
    return np.sqrt(freedom / stats.chi2.ppf(0.95, freedom)), np.sqrt(freedom / stats.chi2.ppf(0.05, freedom))


def _t_test_power(n: Floats, effect: Floats, df: Floats) -> Floats:
    shift = np.minimum(effect * np.sqrt(n), 300.0)  # there the power is 1; far beyond, it may not converge
    limit = stdtrit(df, _UPPER)
    return np.asarray(stats.ncf.sf(limit**2, 1, df, shift**2))  # F is t squared, so it has both tails


def _multinomial_means(values: Floats, counts: NDArray[np.int64], rng: np.random.Generator, draws: int) -> Floats:
    """(draws, R) means of the rows of `values` (R, K), whose column k is drawn in proportion to counts[k]."""
    total = int(counts.sum())
    step = max(1, _CELLS // len(counts))
    return np.concatenate(
        [
            rng.multinomial(total, counts / total, size=min(step, draws - start)) @ values.T / total
            for start in range(0, draws, step)
        ]
    )
