"""Per-image comparisons: images are paired by their key, and what cannot be paired is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from torchmetrics.classification import MulticlassCalibrationError

from se_lab.report import ablation_table
from se_lab.spec import RunSpec, SpecError
from se_lab.store import RunRecord, write_record

Make = Callable[..., pd.DataFrame]
TOP1 = "test/top1_error"
IMAGES = 200


@pytest.fixture
def predicted(study: Make, write_predictions: Callable[..., str]) -> Callable[[int], pd.DataFrame]:
    """Make a baseline and one variant with predictions, `seeds` of each, in shuffled image order."""

    def make(seeds: int) -> pd.DataFrame:
        records = study([({"insertion": "none"}, [8.0] * seeds), ({"reduction": 4}, [7.0] * seeds)])
        for i in records.index:
            correct = np.random.default_rng(i).random(IMAGES) < (0.7 if i < seeds else 0.85)
            records.loc[i, "folder"] = write_predictions(f"trial{i}", correct, shuffle=i)
            records.loc[i, TOP1] = 100 * (1 - correct.mean())
        return records

    return make


def right(record: pd.Series) -> np.ndarray:
    """(N,) whether the images are right, in the order of their keys."""
    stored = np.load(Path(record["folder"]) / "predictions.npz")
    return stored["correct"][np.argsort(stored["key"])]


def test_mcnemar_pairs_images_by_key_and_equals_statsmodels(predicted: Callable[[int], pd.DataFrame]) -> None:
    records = predicted(1)
    base, ours = right(records.loc[0]), right(records.loc[1])
    table = [[np.sum(ours & base), np.sum(ours & ~base)], [np.sum(~ours & base), np.sum(~ours & ~base)]]
    data = ablation_table(records, columns=[TOP1, "p_mcnemar"]).data
    assert data["p_mcnemar"].iloc[1] == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    assert np.isnan(data["p_mcnemar"].iloc[0])


def test_predictions_of_another_trial_are_refused(predicted: Callable[[int], pd.DataFrame]) -> None:
    records = predicted(1)
    mine, other = (Path(folder) for folder in records["folder"])
    write_record(mine, RunRecord("a", "finished", RunSpec().flat(), {}))
    assert ablation_table(records, columns=[TOP1, "p_mcnemar"]).data["p_mcnemar"].notna().any()
    (mine / "predictions.npz").write_bytes((other / "predictions.npz").read_bytes())
    with pytest.raises(SpecError, match="was damaged or changed after its trial ended"):
        ablation_table(records, columns=[TOP1, "p_mcnemar"])


def test_mcnemar_is_not_given_where_several_seeds_pair(predicted: Callable[[int], pd.DataFrame]) -> None:
    table = ablation_table(predicted(2), columns=[TOP1, "p_mcnemar"])
    assert table.data["p_mcnemar"].isna().all()
    assert any("several seeds" in note for note in table.notes)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_image_interval_is_about_the_same_difference(predicted: Callable[[int], pd.DataFrame], seeds: int) -> None:
    records = predicted(seeds)
    data = ablation_table(records, columns=[TOP1, "difference", "difference_images"]).data.iloc[1]
    assert data["difference_images"] == pytest.approx(data[f"{TOP1}:difference"])
    if seeds == 1:  # the normal approximation of a mean over images, which 200 images justify
        spread = np.std(right(records.loc[0]).astype(float) - right(records.loc[1]))
        assert data["difference_images:ci95"] == pytest.approx(1.96 * 100 * spread / np.sqrt(IMAGES), rel=0.05)


def test_top5_errors_come_from_the_five_guesses(predicted: Callable[[int], pd.DataFrame]) -> None:
    records = predicted(1)
    # the fixture's top-5 guesses hold the label exactly where the net is right, so both errors are one
    data = ablation_table(records, metric="test/top5_error", columns=["difference_images"]).data.iloc[1]
    assert data["difference_images"] == pytest.approx(records.loc[1, TOP1] - records.loc[0, TOP1])


def test_different_test_images_are_refused(
    predicted: Callable[[int], pd.DataFrame], write_predictions: Callable[..., str]
) -> None:
    records = predicted(1)
    records.loc[1, "folder"] = write_predictions("other", np.ones(IMAGES, dtype=bool), first=1)
    with pytest.raises(ValueError, match="different images"):
        ablation_table(records, columns=["p_mcnemar"])


def test_an_image_that_comes_twice_is_refused(
    predicted: Callable[[int], pd.DataFrame], write_predictions: Callable[..., str]
) -> None:
    records = predicted(1)
    records.loc[1, "folder"] = write_predictions("twice", np.ones(IMAGES, dtype=bool), keys=["a"] * IMAGES)
    with pytest.raises(ValueError, match="twice"):
        ablation_table(records, columns=["p_mcnemar"])


def test_other_metrics_have_no_predictions(predicted: Callable[[int], pd.DataFrame]) -> None:
    with pytest.raises(ValueError, match="'test/loss'"):
        ablation_table(predicted(1), metric="test/loss", columns=["p_mcnemar"])


def test_the_calibration_error_is_torchmetrics(study: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(3 * rng.normal(size=(500, 10)))
    label = torch.from_numpy(rng.integers(10, size=500))
    best = logits.softmax(1).float().topk(5)
    np.savez(
        tmp_path / "predictions.npz",
        key=np.arange(500).astype(str),
        label=label,
        top5=best.indices,
        probability=best.values,
        correct=best.indices[:, 0] == label,
    )
    records = study([({"insertion": "none"}, [8.0])]).assign(folder=str(tmp_path))
    table = ablation_table(records, columns=["top1_error", "calibration_error"])
    expected = MulticlassCalibrationError(10, n_bins=15)(logits.float(), label)
    assert table.data["test/calibration_error"][0] == pytest.approx(100 * float(expected), rel=1e-5)
