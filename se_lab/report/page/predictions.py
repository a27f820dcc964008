"""Errors by class, confusion and the images on which variants disagree, from the trials' predictions.npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from se_lab.report.page.images import thumbnail
from se_lab.report.predictions import class_names, has_predictions
from se_lab.report.variants import Study
from se_lab.store import RunRecord

MOST_CONFUSION = 50
"""Of more classes, the pairs that are confused most stand for the confusion matrix."""
MOST_PAIRS = 20
MOST_IMAGES = 1_000
"""Images that are looked at for a disagreement: those on which trials differ most."""
MOST_THUMBNAILS = 300


def class_data(study: Study, folders: Sequence[Path | None], kept: Sequence[RunRecord | None]) -> dict[str, Any] | None:
    """Return what the finished trials' predictions say about classes and images; None where there are none.

    Trials that were tested on other images than the first are left out.
    """
    trials: dict[int, list[tuple[NDArray[np.intp], NDArray[np.bool_]]]] = {}
    keys = label = record = None
    for variant, status, folder, one in zip(
        study.trials["variant"], study.trials["status"], folders, kept, strict=True
    ):
        if status != "finished" or folder is None or not has_predictions(folder):
            continue
        with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
            order = np.argsort(stored["key"].astype(str), kind="stable")
            names, truth = stored["key"].astype(str)[order], stored["label"][order]
            guess, right = stored["top5"][order, 0], stored["correct"][order]
        if keys is None:
            keys, label, record = names, truth, one
        if label is not None and np.array_equal(keys, names) and np.array_equal(label, truth):
            trials.setdefault(int(variant), []).append((guess, right))
    if keys is None or label is None or len(trials) == 0:
        return None
    classes = int(max(label.max(), *(guess.max() for own in trials.values() for guess, _ in own))) + 1
    count = np.bincount(label, minlength=classes)
    right = {variant: np.sum([right for _, right in own], axis=0) for variant, own in trials.items()}
    share = np.stack([right[variant] / len(own) for variant, own in trials.items()])
    chosen = np.sort(np.argsort(-np.ptp(share, axis=0), kind="stable")[:MOST_IMAGES])
    chosen = chosen[np.ptp(share[:, chosen], axis=0) > 0]
    variants = []
    for variant, own in sorted(trials.items()):
        wrong = np.bincount(label, weights=len(own) - right[variant], minlength=classes)
        with np.errstate(invalid="ignore"):
            errors = 100 * wrong / (count * len(own))
        confusion = np.zeros((classes, classes), dtype=int)
        for guess, _ in own:
            np.add.at(confusion, (label, guess), 1)
        variants.append(
            {"variant": variant, "trials": len(own), "right": right[variant][chosen].tolist(),
             "errors": [round(float(error), 3) if np.isfinite(error) else None for error in errors],
             "guess": own[0][0][chosen].tolist(), **_confused(confusion)}
        )  # fmt: skip
    pictures = {}
    for place in np.argsort(-np.ptp(share[:, chosen], axis=0), kind="stable")[:MOST_THUMBNAILS]:
        if record is None or (source := thumbnail(record, str(keys[chosen[place]]))) is None:
            break
        pictures[int(place)] = source
    return {
        "names": class_names(keys, label, classes),
        "variants": variants,
        "start": min(1, len(variants) - 1),
        "images": {
            "keys": keys[chosen].tolist(),
            "truth": label[chosen].tolist(),
            "pictures": pictures,
            "total": len(keys),
        },
    }


def _confused(confusion: NDArray[np.int_]) -> dict[str, Any]:
    """Return the confusion matrix, or of many classes the pairs that are confused most."""
    if len(confusion) <= MOST_CONFUSION:
        return {"confusion": confusion.tolist()}
    apart = confusion.copy()
    np.fill_diagonal(apart, 0)
    most = np.argsort(-apart, axis=None, kind="stable")[:MOST_PAIRS]
    truth, guess = np.unravel_index(most, apart.shape)
    return {"pairs": [[int(a), int(b), int(apart[a, b])] for a, b in zip(truth, guess, strict=True) if apart[a, b]]}
