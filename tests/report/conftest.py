"""Synthetic records: a study of SE variants whose errors, costs and folders are made up here, number by number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SE = {
    "insertion": "standard",
    "reduction": 16,
    "squeeze": "avg",
    "excitation": "sigmoid",
    "stages": "all",
    "bias": False,
}
PLAIN = {**dict.fromkeys(SE), "insertion": "none"}


def trial(variant: Mapping[str, object], seed: int, error: float = 10.0, **columns: object) -> dict[str, object]:
    """One finished trial; `variant` overrides keys of `model.se` (None: the baseline) or any dotted key."""
    se = PLAIN if variant.get("insertion") == "none" else SE
    flat = {f"model.se.{key}": value for key, value in se.items()}
    flat |= {key if "." in key else f"model.se.{key}": value for key, value in variant.items()}
    row: dict[str, object] = {
        "status": "finished",
        "error": None,
        "folder": "",
        "model.backbone": "cifar_resnet20",
        "data.name": "digits",
        "optim.lr": 0.1,
        "train.epochs": 20,
        **flat,
        "seed": seed,
        "test/loss": error / 30,
        "test/top1_error": error,
        "test/top5_error": error / 10,
        "params": 272_474 + (0 if se is PLAIN else 64 * 1024 // int(flat["model.se.reduction"] or 1)),
        "macs": 2_550_000,
        "step_ms": 12.5 + seed,
        "code_version": "abc1234",
        "data_digest": "d1",
        **columns,
    }
    row["trial_id"] = hashlib.sha256(str(row).encode()).hexdigest()[:12]
    return row


@pytest.fixture
def study() -> Callable[..., pd.DataFrame]:
    """Make records of variants, each given as (overrides, errors by seed)."""

    def make(variants: Sequence[tuple[Mapping[str, object], Sequence[float]]], **columns: object) -> pd.DataFrame:
        rows = [
            trial(variant, seed, error, **columns) for variant, errors in variants for seed, error in enumerate(errors)
        ]
        return pd.DataFrame(rows)

    return make


@pytest.fixture
def reduction_study(study: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Make a baseline and four reduction ratios with three seeds; r=4 is better than the baseline beyond doubt."""
    return study(
        [
            ({"insertion": "none"}, [8.0, 8.4, 8.2]),
            ({"reduction": 2}, [7.9, 8.5, 7.8]),
            ({"reduction": 4}, [7.0, 7.5, 7.2]),
            ({"reduction": 8}, [7.6, 8.3, 7.7]),
            ({"reduction": 16}, [8.1, 8.5, 8.6]),
        ]
    )


@pytest.fixture
def write_predictions(tmp_path: Path) -> Callable[..., str]:
    """Write a trial folder with predictions.npz, images in shuffled order; returns the folder."""

    def write(name: str, correct: np.ndarray, shuffle: int = 0, first: int = 0, keys: Sequence[str] = ()) -> str:
        folder = tmp_path / name
        folder.mkdir()
        n = len(correct)
        order = np.random.default_rng(shuffle).permutation(n)
        names = np.array(list(keys) or [f"image{i:04d}" for i in range(first, first + n)])
        label = np.arange(n) % 10
        guesses = (label[:, None] + np.where(correct, 0, 1)[:, None] + np.arange(5)) % 10
        np.savez(
            folder / "predictions.npz",
            key=names[order],
            label=label[order],
            top5=guesses[order],
            correct=correct[order],
        )
        return str(folder)

    return write


@pytest.fixture
def with_curves(tmp_path: Path) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Give each trial a folder with metrics.csv of three epochs: val 40, 20 and its error; train half of that."""

    def write(records: pd.DataFrame) -> pd.DataFrame:
        folders = []
        for i, error in enumerate(records["test/top1_error"]):
            folder = tmp_path / f"curves{i}"
            folder.mkdir()
            val = np.array([40.0, 20.0, error])
            frame = pd.DataFrame({"epoch": [1, 2, 3], "lr": 0.1, "train/top1_error": val / 2, "val/top1_error": val})
            frame.to_csv(folder / "metrics.csv", index=False)
            folders.append(str(folder))
        return records.assign(folder=folders)

    return write
