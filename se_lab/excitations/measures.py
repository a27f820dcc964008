"""Measures of the dependence of gates on classes, from a unit's statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from se_lab.excitations.statistics import PER_UNIT, Floats, UnitStatistics, bin_edges
from se_lab.spec import seed_of

NEAR = 0.05
"""Distance from a bound of the excitation below which a gate counts as saturated."""
FEW_IMAGES = 10
"""Number of images of a class below which measures are noisy."""
DRAWS = 20
PERMUTATIONS = 200


def mean_of_classes(unit: UnitStatistics) -> Floats:
    """Return the mean over all classes with images, (C,): the line 'all' of Figure 6."""
    return np.asarray(unit.mean[unit.count > 0].mean(0))


def variances(unit: UnitStatistics) -> tuple[Floats, Floats]:
    """Return the variance between class means, and the mean variance within classes, (C,) each."""
    mask = unit.count > 0
    weight = (unit.count[mask] / unit.count.sum())[:, None]
    mean = unit.mean[mask]
    between = (weight * (mean - (weight * mean).sum(0)) ** 2).sum(0)
    return between, (weight * unit.std[mask] ** 2).sum(0)


def variance_explained(unit: UnitStatistics) -> Floats:
    """Return the fraction of each channel's variance between classes, (C,), as ω² (Hays 1963).

    ω² = (SSb − (k − 1) MSw) / (SSt + MSw) for k classes. Unlike SSb / SSt, it is close to 0, or negative, if classes do
    not matter, even for few images per class. NaN for one image per class, 0 for a constant gate.
    """
    return _omega_squared(unit, *variances(unit))


def unit_variance_explained(unit: UnitStatistics) -> float:
    """Return the fraction of the variance between classes over all channels of a unit, as ω²."""
    between, within = variances(unit)
    return float(_omega_squared(unit, between.sum(keepdims=True), within.sum(keepdims=True))[0])


def _omega_squared(unit: UnitStatistics, between: Floats, within: Floats) -> Floats:
    images, classes = unit.count.sum(), int((unit.count > 0).sum())
    if images <= classes:
        return np.full_like(between, np.nan)
    mean_square = images * within / (images - classes)
    return _ratio(images * between - (classes - 1) * mean_square, images * (between + within) + mean_square)


def selectivity_index(unit: UnitStatistics) -> Floats:
    """Return the class selectivity index of channels, (C,) (Morcos et al. 2018, section 2.2).

    The index is (a − b) / (|a| + |b|), from 0 to 1, where a is the mean of the class that excites the channel most, and
    b the mean over the other classes. It is not meaningful for negative gates, such as those of tanh.
    """
    return _selectivity(unit.mean[unit.count > 0])


def selectivity_without_classes(unit: UnitStatistics) -> float:
    """Return the mean selectivity index of a unit that is expected by chance.

    Even without an effect of classes, the largest class mean exceeds the others. Class means are drawn around the
    overall mean, with the variance within classes, from a stream keyed by the unit's name. NaN for one image per class.
    """
    mask = unit.count > 0
    count = unit.count[mask][:, None]
    if count.sum() <= len(count):
        return float("nan")
    within = variances(unit)[1] * count.sum() / (count.sum() - len(count))
    centre = (count * unit.mean[mask]).sum(0) / count.sum()
    rng = np.random.default_rng(seed_of("selectivity", unit.site.name))
    spread = np.sqrt(within / count)
    indices = [_selectivity(centre + spread * rng.standard_normal(spread.shape)).mean() for _ in range(DRAWS)]
    return float(np.mean(indices))


def _selectivity(mean: Floats) -> Floats:
    if len(mean) < 2:
        return np.zeros(mean.shape[1])
    best = mean.max(0)
    rest = (mean.sum(0) - best) / (len(mean) - 1)
    return _ratio(best - rest, np.abs(best) + np.abs(rest))


def saturation(unit: UnitStatistics) -> tuple[float, float]:
    """Return the fractions of gates within 0.05 of the lower and upper bound of the excitation.

    Sigmoid: s < 0.05 and s > 0.95; tanh: s < −0.95 and s > 0.95. For an excitation without an upper bound, such as
    ReLU, these are the fraction of zeros and NaN.
    """
    counts = unit.by_class.sum(0)
    low, high = unit.site.low, unit.site.high
    if low is None or high is None:
        zeros = float(unit.zero.sum() / counts.sum()) if low == 0 else float("nan")
        return zeros, float("nan")
    edges = bin_edges()
    low_bin, high_bin = (int(np.abs(edges - edge).argmin()) for edge in (low + NEAR, high - NEAR))
    return float(counts[:low_bin].sum() / counts.sum()), float(counts[high_bin:].sum() / counts.sum())


def saturation_labels(units: Sequence[UnitStatistics]) -> tuple[str, str]:
    """Return labels for the two fractions of `saturation`."""
    limits = {(unit.site.low, unit.site.high) for unit in units}
    if len(limits) > 1:
        return "at or near the lower bound", "near the upper bound"
    ((low, high),) = limits
    if low is None or high is None:
        return "exactly 0", "no upper bound"
    return f"below {low + NEAR:g}".replace("-", "−"), f"above {high - NEAR:g}"


def few_images(count: Floats) -> str:
    """Return a remark on classes with few images, given the counts (K,), or ""."""
    counts = count[count > 0]
    few_classes = int((counts < FEW_IMAGES).sum())
    if not few_classes:
        return ""
    return f"{few_classes} of {len(counts)} classes have fewer than {FEW_IMAGES} images: measures of classes are noisy"


def closed_histogram(unit: UnitStatistics) -> tuple[NDArray[np.int64], Floats]:
    """Return the histogram of all gates of a unit: counts (B',) and bin edges (B' + 1,).

    The bins extend from the lowest to the highest gate.
    """
    edges, counts = bin_edges(), unit.by_class.sum(0)
    mask = unit.count > 0
    low, high = float(unit.minimum[mask].min()), float(unit.maximum[mask].max())
    if high <= 1:  # gates of exactly 1 are in the bin after the last one for sigmoid and tanh
        counts[2 * PER_UNIT - 1] += counts[2 * PER_UNIT]
        counts[2 * PER_UNIT] = 0
    bins = np.flatnonzero(counts)
    edges = edges[bins[0] : bins[-1] + 2].copy()
    edges[-1] = min(edges[-1], max(high, edges[-2] + 1e-6))
    edges[0] = min(edges[0], low)
    return counts[bins[0] : bins[-1] + 1], edges


def density(unit: UnitStatistics) -> tuple[Floats, Floats]:
    """Return the density curve of a unit's gates: gates (P,) and densities (P,)."""
    counts, edges = closed_histogram(unit)
    height = counts / counts.sum() / np.diff(edges)
    return np.concatenate([edges[:1], edges[:-1] + np.diff(edges) / 2, edges[-1:]]), np.concatenate(
        [[0.0], height, [0.0]]
    )


def class_similarity(unit: UnitStatistics) -> tuple[Floats, NDArray[np.intp]]:
    """Return the correlation of class means over channels, (K, K), and clustered classes (K,).

    Classes with images are clustered by average linkage of 1 − correlation. The correlation of a class with equal means
    in all channels is NaN, clustered as 0.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    classes = np.flatnonzero(unit.count > 0)
    mean = unit.mean[classes]
    centred = mean - mean.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    is_flat = norm[:, 0] <= 1e-9
    scaled = centred / np.where(is_flat[:, None], np.inf, norm)
    correlation = np.clip(scaled @ scaled.T, -1, 1)
    np.fill_diagonal(correlation, 1)
    order: NDArray[np.intp] = np.arange(len(classes))
    if len(classes) > 2:
        distances = squareform(1 - correlation, checks=False)
        order = leaves_list(linkage(distances, "average", optimal_ordering=len(classes) <= 200)).astype(np.intp)
    correlation[is_flat] = correlation[:, is_flat] = np.nan
    return correlation[np.ix_(order, order)], classes[order]


def unit_similarity(rows: Sequence[UnitStatistics], columns: Sequence[UnitStatistics]) -> Floats:
    """Return the debiased linear CKA of class means between units, (R, C').

    Linear CKA (Kornblith et al. 2019, equation 3) with the unbiased estimate of HSIC (Song et al. 2012, equation 5) is
    close to 0 for unrelated units, while plain CKA approaches 1 for few classes. Units may have different numbers of
    channels, or belong to two nets; classes without images in either are ignored. NaN for fewer than four classes, and
    for a unit with the same gates for all classes.
    """
    left, right = _grams(rows, columns)
    return np.asarray(left.reshape(len(rows), -1) @ right.reshape(len(columns), -1).T)


def similarity_by_chance(rows: Sequence[UnitStatistics], columns: Sequence[UnitStatistics]) -> float:
    """Return the 95 % quantile of `unit_similarity` for permuted classes.

    It is computed from 200 permutations and all pairs of ten evenly spaced units. NaN if all similarities are NaN.
    """
    sample = [
        [units[i] for i in np.unique(np.linspace(0, len(units) - 1, 10).astype(int))] for units in (rows, columns)
    ]
    left, right = _grams(*sample)
    columns_flat = right.reshape(len(right), -1).T
    rng = np.random.default_rng(seed_of("similarity", left.shape[1]))
    values = []
    for _ in range(PERMUTATIONS):
        order = rng.permutation(left.shape[1])
        values.append(left[:, order][:, :, order].reshape(len(left), -1) @ columns_flat)
    similarities = np.concatenate([value.ravel() for value in values])
    return float(np.nanquantile(similarities, 0.95)) if np.isfinite(similarities).any() else float("nan")


def _grams(rows: Sequence[UnitStatistics], columns: Sequence[UnitStatistics]) -> tuple[Floats, Floats]:
    mask = (rows[0].count > 0) & (columns[0].count > 0)
    left, right = (np.stack([_gram(unit.mean[mask]) for unit in units]) for units in (rows, columns))
    return left, right


def _gram(mean: Floats) -> Floats:
    """Return the U-centred Gram matrix (K, K) of class means, with norm 1; NaN if equal.

    The inner product of two U-centred matrices is K (K − 3) times the unbiased HSIC (Székely and Rizzo 2014).
    """
    classes = len(mean)
    if classes < 4:
        return np.full((classes, classes), np.nan)
    centred = mean - mean.mean(0)
    products = centred @ centred.T
    np.fill_diagonal(products, 0)
    sums = products.sum(0) / (classes - 2)
    products += products.sum() / ((classes - 1) * (classes - 2)) - sums - sums[:, None]
    np.fill_diagonal(products, 0)
    length = float(np.linalg.norm(products))
    return products / length if length > 1e-18 else np.full_like(products, np.nan)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 1e-14)
