"""Errors by class, confusion matrices and disagreements, from the trials' predictions.npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from se_lab.report.page.images import thumbnail
from se_lab.report.predictions import class_names, has_predictions, load_predictions
from se_lab.report.variants import Study
from se_lab.store import RunRecord

MOST_CONFUSION = 50
"""Maximum number of classes for a confusion matrix; beyond it, the most confused pairs are listed."""
MOST_PAIRS = 20
MOST_IMAGES = 1_000
"""Maximum number of images to compare, those on which trials differ most."""
MOST_THUMBNAILS = 300


def class_data(
    study: Study, folders: Sequence[Path | None], records: Sequence[RunRecord | None]
) -> dict[str, Any] | None:
    """Return results by class and image from predictions of finished trials, if any.

    Trials with other test images than the first are ignored.
    """
    trials: dict[int, list[tuple[NDArray[np.intp], NDArray[np.bool_]]]] = {}
    keys = label = record = None
    for variant, status, folder, trial_record in zip(
        study.trials["variant"], study.trials["status"], folders, records, strict=True
    ):
        if status != "finished" or folder is None or not has_predictions(folder):
            continue
        with load_predictions(folder) as archive:
            order = np.argsort(archive["key"].astype(str), kind="stable")
            names, truth = archive["key"].astype(str)[order], archive["label"][order]
            guess, hits = archive["top5"][order, 0], archive["correct"][order]
        if keys is None:
            keys, label, record = names, truth, trial_record
        if label is not None and np.array_equal(keys, names) and np.array_equal(label, truth):
            trials.setdefault(int(variant), []).append((guess, hits))
    if keys is None or label is None or len(trials) == 0:
        return None
    classes = int(max(label.max(), *(guess.max() for results in trials.values() for guess, _ in results))) + 1
    count = np.bincount(label, minlength=classes)
    hits = {variant: np.sum([hits for _, hits in results], axis=0) for variant, results in trials.items()}
    share = np.stack([hits[variant] / len(results) for variant, results in trials.items()])
    selection = np.sort(np.argsort(-np.ptp(share, axis=0), kind="stable")[:MOST_IMAGES])
    selection = selection[np.ptp(share[:, selection], axis=0) > 0]
    variants = []
    for variant, results in sorted(trials.items()):
        misses = np.bincount(label, weights=len(results) - hits[variant], minlength=classes)
        with np.errstate(invalid="ignore"):
            errors = 100 * misses / (count * len(results))
        confusion = np.zeros((classes, classes), dtype=int)
        for guess, _ in results:
            np.add.at(confusion, (label, guess), 1)
        variants.append(
            {"variant": variant, "trials": len(results), "right": hits[variant][selection].tolist(),
             "errors": [round(float(error), 3) if np.isfinite(error) else None for error in errors],
             "guess": results[0][0][selection].tolist(), **_confusion_data(confusion)}
        )  # fmt: skip
    pictures = {}
    for place in np.argsort(-np.ptp(share[:, selection], axis=0), kind="stable")[:MOST_THUMBNAILS]:
        if record is None or (source := thumbnail(record, str(keys[selection[place]]))) is None:
            break
        pictures[int(place)] = source
    return {
        "names": class_names(keys, label, classes),
        "variants": variants,
        "start": min(1, len(variants) - 1),
        "images": {
            "keys": keys[selection].tolist(),
            "truth": label[selection].tolist(),
            "pictures": pictures,
            "total": len(keys),
        },
    }


def _confusion_data(confusion: NDArray[np.int_]) -> dict[str, Any]:
    """Return the confusion matrix, or the most confused pairs for many classes."""
    if len(confusion) <= MOST_CONFUSION:
        return {"confusion": confusion.tolist()}
    off_diagonal = confusion.copy()
    np.fill_diagonal(off_diagonal, 0)
    indices = np.argsort(-off_diagonal, axis=None, kind="stable")[:MOST_PAIRS]
    truth, guess = np.unravel_index(indices, off_diagonal.shape)
    return {
        "pairs": [
            [int(a), int(b), int(off_diagonal[a, b])] for a, b in zip(truth, guess, strict=True) if off_diagonal[a, b]
        ]
    }
