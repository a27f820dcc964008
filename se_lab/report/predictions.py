"""Per-image comparisons over the trials' `predictions.npz`: for one-seed studies, and for other test images."""

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
    """Differences of two variants' errors by class (C,), in points; NaN for a class without a test image."""

    names: list[str]
    images: NDArray[np.intp]
    mean: Floats
    half_width: Floats
    """Half-widths of the 95 % intervals over seeds, a class each; NaN with one seed."""
    p: Floats
    """Two-sided, corrected for all classes (Holm)."""
    seeds: int
    """The fewest seeds of either variant."""


def has_predictions(folder: object) -> bool:
    """Return whether a trial's folder, as records name it, holds the predictions of its test images."""
    return isinstance(folder, (str, Path)) and bool(folder) and Path(folder, "predictions.npz").exists()


def load_predictions(folder: str | Path) -> Any:
    """Open the predictions of a trial's test images: key, label, top5, probability and correct (N, …).

    Raises SpecError where they are not what the trial wrote, FileNotFoundError where there are none.
    """
    return np.load(io.BytesIO(read_result(folder, "predictions.npz")), allow_pickle=False)


def image_errors(folder: str, top: int = 1) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Return sorted keys (N,), and whether the first `top` (1 or 5) guesses miss each image's label.

    Raises FileNotFoundError where the trial has no predictions, ReportError where a key comes twice.
    """
    with load_predictions(folder) as archive:
        keys = archive["key"].astype(str)
        hit = archive["correct"] if top == 1 else (archive["top5"] == archive["label"][:, None]).any(axis=1)
    order = np.argsort(keys, kind="stable")
    if np.any(keys[order][1:] == keys[order][:-1]):
        raise ReportError(f"The predictions in {folder} name an image twice.")
    return keys[order], ~hit[order].astype(bool)


CALIBRATION = "test/calibration_error"


def with_calibration(records: pd.DataFrame) -> pd.DataFrame:
    """Add the expected calibration error of each finished trial whose predictions have probabilities, in %."""
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
    """Return the expected calibration error in % of the most probable classes' probabilities (N,).

    The mean of |accuracy − confidence| over bins of equal width, weighted by their images (Guo et al. 2017, equation
    3). A single model's is biased upwards where bins have few images.
    """
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(places, weights=correct.astype(float) - confidence, minlength=bins)
    return float(100 * np.abs(gap).sum() / len(confidence))


def mcnemar_column(study: Study, metric: str) -> tuple[Floats, str]:
    """Return (V,) McNemar's exact p of each variant against its baseline where one seed pairs, and a note."""
    p = np.full(len(study.variants), np.nan)
    has_several = False
    for variant, pairs in _pairs(study, metric):
        has_several |= len(pairs) > 1
        if len(pairs) == 1:
            p[variant] = statistics.mcnemar(~pairs[0][0], ~pairs[0][1]).p
    note = "p, McNemar: exact, over the test images of two trained nets; another seed is another net."
    return p, note + (" Not given where several seeds pair: that is what the difference is for." if has_several else "")


def image_differences(study: Study, metric: str, rng: np.random.Generator) -> tuple[Floats, Floats, str]:
    """Return (V,) differences to the baseline in points, half-widths valid for other test images, and a note."""
    estimate, half = np.full((2, len(study.variants)), np.nan)
    for variant, pairs in _pairs(study, metric):
        points = 100.0 * np.stack([errors.astype(float) - base for errors, base in pairs])
        is_single = len(pairs) == 1
        interval = (
            statistics.bootstrap_images(points[0], rng) if is_single else statistics.seeds_images_interval(points)
        )
        estimate[variant], half[variant] = interval.estimate, (interval.high - interval.low) / 2
    note = (
        "Δ, seeds × images: 95 % interval for other seeds and other test images (variance components of both); one "
        "seed: other images alone (bootstrap)."
    )
    return estimate, half, note


def _pairs(study: Study, metric: str) -> Iterator[tuple[int, list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]]]:
    """Yield each variant with the errors of its trials and of the baseline's of the same seeds, image by image."""
    if not metric.startswith("test/top"):
        raise ReportError(f"Predictions are kept of test images and top-1 or top-5 errors, not for {metric!r}.")
    top = 5 if "top5" in metric else 1
    trials = study.trials[study.trials["status"] == "finished"]
    if "folder" not in trials:
        raise ReportError("These records name no folders, where the predictions of a trial are kept: read the store.")
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
    """Compare the errors of two variants class by class: Welch's t test over seeds, for one seed McNemar's over images.

    A class whose error no seed changes has no p. Raises ReportError for other metrics than top-1 and top-5 test
    errors, and where a trial has no predictions or the trials are of different images.
    """
    if metric not in ("test/top1_error", "test/top5_error"):
        raise ReportError(f"Predictions are kept of test images and top-1 or top-5 errors, not for {metric!r}.")
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
    """Return p and half-width of the 95 % interval of Welch's t test; a sample of equal values has no variance."""
    parts = np.array([x.var(ddof=1) / len(x) if np.ptp(x) > 0 else 0.0 for x in (a, b)])  # without rounding errors
    error = np.sqrt(parts.sum())
    df = parts.sum() ** 2 / (parts**2 / (len(a) - 1, len(b) - 1)).sum()
    return float(2 * stats.t.sf(abs(a.mean() - b.mean()) / error, df)), float(stats.t.ppf(0.975, df) * error)


def _missed_images(
    study: Study, top: int, variants: tuple[int, int]
) -> tuple[NDArray[np.str_], NDArray[np.intp], list[NDArray[np.bool_]]]:
    """Return keys and labels (N,) of the test images, and which ones each variant's trials miss, (S, N) each."""
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
                raise ReportError("The two variants' trials were tested on different images.")
            rows.append(errors)
        if not rows:
            raise ReportError(f"No trial of {study.variants['variant'].iloc[variant]} has predictions.")
        misses.append(np.stack(rows))
    assert keys is not None and label is not None
    return keys, label, misses


def class_names(keys: NDArray[np.str_], label: NDArray[np.intp], classes: int) -> list[str]:
    """Return the classes' names: the folder of their images, where each class has one of its own, else the number."""
    folders = np.array([key.split("/")[0] if "/" in key else "" for key in keys])
    names = []
    for number in range(classes):
        unique_folders = np.unique(folders[label == number])
        names.append(str(unique_folders[0]) if len(unique_folders) == 1 and unique_folders[0] else str(number))
    return names if len(set(names)) == classes else [str(number) for number in range(classes)]
