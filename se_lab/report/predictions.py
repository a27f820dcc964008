"""Comparisons of variants image by image, from the trials' predictions.npz."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from se_lab.report import statistics
from se_lab.report.columns import ReportError
from se_lab.report.statistics import Floats
from se_lab.report.variants import Study
from se_lab.store import read_result


class ClassDifferences(NamedTuple):
    """Differences of two variants' errors by class (C,), in points; NaN without test images."""

    names: list[str]
    images: NDArray[np.intp]
    mean: Floats
    half_width: Floats
    """Half-widths of 95 % intervals over seeds, separate for each class; NaN with one seed."""
    p: Floats
    """Two-sided p values, corrected for all classes (Holm)."""
    seeds: int
    """Number of seeds, the smaller of the two variants."""


def has_predictions(folder: object) -> bool:
    """Return whether a trial's folder contains predictions of test images."""
    return isinstance(folder, (str, Path)) and bool(folder) and Path(folder, "predictions.npz").exists()


def load_predictions(folder: str | Path) -> Any:
    """Load a trial's predictions of N test images: key, label, top5, probability, correct.

    Raises SpecError if the file has changed since the trial, FileNotFoundError if there is none.
    """
    return np.load(io.BytesIO(read_result(folder, "predictions.npz")), allow_pickle=False)


def image_errors(folder: str, top: int = 1) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Return sorted image keys (N,), and whether each image is a top-`top` error (1 or 5).

    Raises FileNotFoundError if the trial has no predictions, ReportError for duplicate keys.
    """
    with load_predictions(folder) as archive:
        keys = archive["key"].astype(str)
        hit = archive["correct"] if top == 1 else (archive["top5"] == archive["label"][:, None]).any(axis=1)
    order = np.argsort(keys, kind="stable")
    if np.any(keys[order][1:] == keys[order][:-1]):
        raise ReportError(f"The predictions in {folder} contain an image twice.")
    return keys[order], ~hit[order].astype(bool)


CALIBRATION = "test/calibration_error"


def with_calibration(records: pd.DataFrame) -> pd.DataFrame:
    """Add the expected calibration error, in %, of finished trials with probabilities."""
    values = np.full(len(records), np.nan)
    for row, (status, folder) in enumerate(zip(records["status"], records.get("folder", ""), strict=True)):
        if status != "finished" or not has_predictions(folder):
            continue
        with load_predictions(folder) as archive:
            if "probability" in archive:
                values[row] = calibration_error(archive["probability"][:, 0], archive["correct"])
    result: pd.DataFrame = records.assign(**{CALIBRATION: values})
    return result


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Return the expected calibration error, in %, from probabilities of the top class (N,).

    This is the mean of |accuracy − confidence| over bins of equal width, weighted by the number of images (Guo et al.
    2017, equation 3). It is biased upwards if bins have few images.
    """
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(places, weights=correct.astype(float) - confidence, minlength=bins)
    return float(100 * np.abs(gap).sum() / len(confidence))


def mcnemar_column(study: Study, metric: str) -> tuple[Floats, str]:
    """Return p values (V,) of McNemar's exact test against the baseline, and a note."""
    p = np.full(len(study.variants), np.nan)
    has_several = False
    for variant, pairs in _pairs(study, metric):
        has_several |= len(pairs) > 1
        if len(pairs) == 1:
            p[variant] = statistics.mcnemar(~pairs[0][0], ~pairs[0][1]).p
    note = "p, McNemar: exact, over test images, for two trained nets; other seeds may differ."
    return p, note + (" Not given if several seeds are shared; use the difference instead." if has_several else "")


def image_differences(study: Study, metric: str, rng: np.random.Generator) -> tuple[Floats, Floats, str]:
    """Return differences in points and half-widths for other images, (V,) each, and a note."""
    estimate, half = np.full((2, len(study.variants)), np.nan)
    for variant, pairs in _pairs(study, metric):
        points = 100.0 * np.stack([errors.astype(float) - base for errors, base in pairs])
        is_single = len(pairs) == 1
        interval = (
            statistics.bootstrap_images(points[0], rng) if is_single else statistics.seeds_images_interval(points)
        )
        estimate[variant], half[variant] = interval.estimate, (interval.high - interval.low) / 2
    note = (
        "Δ, seeds × images: 95 % interval for other seeds and other test images (variance components of both); for "
        "one seed, other images only (bootstrap)."
    )
    return estimate, half, note


def _pairs(study: Study, metric: str) -> Iterator[tuple[int, list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]]]:
    """Yield each variant with pairs of its and the baseline's image errors, by seed."""
    if not metric.startswith("test/top"):
        raise ReportError(f"Predictions allow only top-1 and top-5 test errors, not {metric!r}.")
    top = 5 if "top5" in metric else 1
    trials = study.trials[study.trials["status"] == "finished"]
    if "folder" not in trials:
        raise ReportError("The records have no folders, which contain the predictions; read them from the store.")
    folders = trials.set_index(["variant", "seed"])["folder"].to_dict()
    seeds = sorted({seed for _, seed in folders})
    errors = {key: image_errors(folder, top) for key, folder in folders.items()}
    for variant, base in enumerate(study.baseline):
        pairs = []
        for seed in seeds:
            if base in (-1, variant) or (variant, seed) not in errors or (base, seed) not in errors:
                continue
            (keys, variant_errors), (base_keys, base_errors) = errors[variant, seed], errors[base, seed]
            if not np.array_equal(keys, base_keys):
                name = study.variants["variant"].iloc[variant]
                raise ReportError(
                    f"{name} and its baseline were tested on different images "
                    f"(seed {seed}: {folders[variant, seed]}, {folders[base, seed]})."
                )
            pairs.append((variant_errors, base_errors))
        if pairs:
            yield variant, pairs


def class_differences(study: Study, metric: str, first: int, second: int) -> ClassDifferences:
    """Compare the errors of two variants by class.

    The test is Welch's t test over seeds, or McNemar's over images for one seed. There is no p value if all seeds have
    the same error. Raises ReportError for other metrics than top-1 and top-5 test errors, for trials without
    predictions, and for trials with different images.
    """
    if metric not in ("test/top1_error", "test/top5_error"):
        raise ReportError(f"Predictions allow only top-1 and top-5 test errors, not {metric!r}.")
    keys, label, misses = _missed_images(study, 5 if "top5" in metric else 1, (first, second))
    count = np.bincount(label)
    mean, half, p = np.full((3, len(count)), np.nan)
    seeds = min(map(len, misses))
    for number in np.flatnonzero(count):
        first_errors, second_errors = (100.0 * errors[:, label == number].mean(axis=1) for errors in misses)
        mean[number] = first_errors.mean() - second_errors.mean()
        if max(map(len, misses)) == 1:
            p[number] = statistics.mcnemar(*(~errors[0, label == number] for errors in misses)).p
        elif seeds > 1 and (np.ptp(first_errors) > 0 or np.ptp(second_errors) > 0):
            p[number], half[number] = _welch(first_errors, second_errors)
    names = class_names(keys, label, len(count))
    return ClassDifferences(names, count, mean, half, statistics.holm(p), seeds)


def _welch(a: Floats, b: Floats) -> tuple[float, float]:
    """Return p value and half-width of the 95 % interval of Welch's t test."""
    parts = np.array([x.var(ddof=1) / len(x) if np.ptp(x) > 0 else 0.0 for x in (a, b)])  # avoids rounding errors
    error = np.sqrt(parts.sum())
    df = parts.sum() ** 2 / (parts**2 / (len(a) - 1, len(b) - 1)).sum()
    return float(2 * stats.t.sf(abs(a.mean() - b.mean()) / error, df)), float(stats.t.ppf(0.975, df) * error)


def _missed_images(
    study: Study, top: int, variants: tuple[int, int]
) -> tuple[NDArray[np.str_], NDArray[np.intp], list[NDArray[np.bool_]]]:
    """Return keys and labels (N,) of test images, and the errors of each variant, (S, N)."""
    trials = study.trials[study.trials["status"] == "finished"]
    keys = label = None
    misses = []
    for variant in variants:
        rows = []
        folders = trials.loc[trials["variant"] == variant, "folder"] if "folder" in trials else []
        for folder in folders:
            if not has_predictions(folder):
                continue
            names, errors = image_errors(folder, top)
            with load_predictions(folder) as archive:
                truth = archive["label"][np.argsort(archive["key"].astype(str), kind="stable")]
            keys, label = (names, truth) if keys is None else (keys, label)
            if not np.array_equal(keys, names):
                raise ReportError("The two variants were tested on different images.")
            rows.append(errors)
        if not rows:
            raise ReportError(f"No trial of {study.variants['variant'].iloc[variant]} has predictions.")
        misses.append(np.stack(rows))
    assert keys is not None and label is not None
    return keys, label, misses


def class_names(keys: NDArray[np.str_], label: NDArray[np.intp], classes: int) -> list[str]:
    """Return class names: the folders of the images if each class has its own, else numbers."""
    folders = np.array([key.split("/")[0] if "/" in key else "" for key in keys])
    names = []
    for number in range(classes):
        unique_folders = np.unique(folders[label == number])
        names.append(str(unique_folders[0]) if len(unique_folders) == 1 and unique_folders[0] else str(number))
    return names if len(set(names)) == classes else [str(number) for number in range(classes)]
