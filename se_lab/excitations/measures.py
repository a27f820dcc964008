"""What gates say about classes: functions from one unit's statistics to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from se_lab.excitations.statistics import PER_UNIT, Floats, UnitStatistics, bin_edges

LOW, HIGH = 0.05, 0.95
"""Below and above these a gate counts as saturated."""


def mean_of_classes(unit: UnitStatistics) -> Floats:
    """Return the mean over all classes that have images, (C,): the line 'all' of Figure 6."""
    return np.asarray(unit.mean[unit.count > 0].mean(0))


def variances(unit: UnitStatistics) -> tuple[Floats, Floats]:
    """Return the variance between class means and the mean variance within classes, (C,) each, over all images."""
    there = unit.count > 0
    weight = (unit.count[there] / unit.count.sum())[:, None]
    mean = unit.mean[there]
    between = (weight * (mean - (weight * mean).sum(0)) ** 2).sum(0)
    return between, (weight * unit.std[there] ** 2).sum(0)


def variance_explained(unit: UnitStatistics) -> Floats:
    """Return the share of each channel's variance that lies between classes, (C,); 0 where a gate never moves."""
    between, within = variances(unit)
    return _ratio(between, between + within)


def unit_variance_explained(unit: UnitStatistics) -> float:
    """Return the share of the variance of all a unit's channels together that lies between classes."""
    between, within = variances(unit)
    return float(_ratio(between.sum(keepdims=True), (between + within).sum(keepdims=True))[0])


def selectivity_index(unit: UnitStatistics) -> Floats:
    """Return the class selectivity index of each channel, (C,), from 0 to 1 (Morcos et al. 2018, section 2.2).

    (a − b) / (|a| + |b|), a the mean of the class that excites the channel most and b the mean over the other classes.
    Gates below 0, as tanh makes them, are outside of its definition: there it can exceed what it means.
    """
    mean = unit.mean[unit.count > 0]
    if len(mean) < 2:
        return np.zeros(mean.shape[1])
    best = mean.max(0)
    others = (mean.sum(0) - best) / (len(mean) - 1)
    return _ratio(best - others, np.abs(best) + np.abs(others))


def saturation(unit: UnitStatistics) -> tuple[float, float]:
    """Return the shares of gates below 0.05 and above 0.95, of all images and channels."""
    counts = unit.by_class.sum(0)
    low, high = (round((1 + edge) * PER_UNIT) for edge in (LOW, HIGH))
    return float(counts[:low].sum() / counts.sum()), float(counts[high:].sum() / counts.sum())


def closed_histogram(unit: UnitStatistics) -> tuple[NDArray[np.int64], Floats]:
    """Return how many gates of all images and channels fall into each bin, (B',), and the bins' edges, (B' + 1,).

    Only bins between the lowest and the highest gate, the outer ones cut off there.
    """
    edges, counts = bin_edges(), unit.by_class.sum(0)
    there = unit.count > 0
    low, high = float(unit.minimum[there].min()), float(unit.maximum[there].max())
    if high <= 1:  # a gate of exactly 1 opens the bin after the last one of sigmoid and tanh
        counts[2 * PER_UNIT - 1] += counts[2 * PER_UNIT]
        counts[2 * PER_UNIT] = 0
    used = np.flatnonzero(counts)
    edges = edges[used[0] : used[-1] + 2].copy()
    edges[-1] = min(edges[-1], max(high, edges[-2] + 1e-6))
    edges[0] = min(edges[0], low)
    return counts[used[0] : used[-1] + 1], edges


def density(unit: UnitStatistics) -> tuple[Floats, Floats]:
    """Return the outline of a unit's gates: where (P,), and their density there (P,), 0 at both ends."""
    counts, edges = closed_histogram(unit)
    height = counts / counts.sum() / np.diff(edges)
    return np.concatenate([edges[:1], edges[:-1] + np.diff(edges) / 2, edges[-1:]]), np.concatenate(
        [[0.0], height, [0.0]]
    )


def class_similarity(unit: UnitStatistics) -> tuple[Floats, NDArray[np.intp]]:
    """Return the correlation of class means over channels (K, K), and the classes (K,) in the order of its clusters.

    Only classes with images count. Average linkage of 1 − correlation. A class whose mean gate is the same for all
    channels has no correlation: NaN there, clustered as 0.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    there = np.flatnonzero(unit.count > 0)
    mean = unit.mean[there]
    centred = mean - mean.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = norm[:, 0] <= 1e-9
    scaled = centred / np.where(flat[:, None], np.inf, norm)
    correlation = np.clip(scaled @ scaled.T, -1, 1)
    np.fill_diagonal(correlation, 1)
    order: NDArray[np.intp] = np.arange(len(there))
    if len(there) > 2:
        distances = squareform(1 - correlation, checks=False)
        order = leaves_list(linkage(distances, "average", optimal_ordering=len(there) <= 200)).astype(np.intp)
    correlation[flat] = correlation[:, flat] = np.nan
    return correlation[np.ix_(order, order)], there[order]


def unit_similarity(rows: Sequence[UnitStatistics], columns: Sequence[UnitStatistics]) -> Floats:
    """Return how alike units tell classes apart, (R, C'), from 0 to 1: linear CKA of class means.

    Kornblith et al. 2019, equation 3. Units may have different numbers of channels, or come from two nets; the classes
    are those that both have images of. NaN where a unit has the same gates for all classes.
    """
    both = (rows[0].count > 0) & (columns[0].count > 0)
    left, right = (np.stack([_gram(unit.mean[both]) for unit in units]) for units in (rows, columns))
    return np.asarray(left @ right.T)


def _gram(mean: Floats) -> Floats:
    """Return the inner products of class means (K, C), centred, scaled to length 1, as (K²,); NaN for equal means."""
    centred = mean - mean.mean(0)
    products = (centred @ centred.T).ravel()
    length = float(np.linalg.norm(products))
    return products / length if length > 1e-18 else np.full_like(products, np.nan)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 1e-14)
