"""Training curves: a panel a variant over its baseline, mean and range of the seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants, training_figure
from se_lab.report.figures.curves import read_curves

Make = Callable[..., pd.DataFrame]
WithCurves = Callable[[pd.DataFrame], pd.DataFrame]


def test_a_panel_has_the_variants_mean_over_the_baselines(
    reduction_study: pd.DataFrame, with_curves: WithCurves
) -> None:
    figure = training_figure(with_curves(reduction_study))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["r=2", "r=4", "r=8", "r=16"]
    base_val, base_train, val, train = panels[1].lines
    np.testing.assert_allclose(base_val.get_ydata(), [40, 20, 8.2])
    np.testing.assert_allclose(base_train.get_ydata(), [20, 10, 4.1])
    np.testing.assert_allclose(val.get_ydata(), [40, 20, 21.7 / 3])
    assert [line.get_linestyle() for line in (val, train)] == ["-", "--"]


def test_the_band_reaches_from_the_lowest_to_the_highest_seed(
    reduction_study: pd.DataFrame, with_curves: WithCurves
) -> None:
    axes = training_figure(with_curves(reduction_study)).axes[1]
    low_to_high = axes.collections[2].get_paths()[0].vertices  # r=4 in validation: 7.0 to 7.5 at the last epoch
    last = low_to_high[low_to_high[:, 0] == 3][:, 1]
    assert (last.min(), last.max()) == (7.0, 7.5)


def test_the_best_twelve_stay_where_there_are_more(study: Make, with_curves: WithCurves) -> None:
    records = study([({"insertion": "none"}, [20.0])] + [({"reduction": r}, [20.0 - r]) for r in range(2, 17)])
    figure = training_figure(with_curves(records))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles == [f"r={r}" for r in range(5, 17)]
    assert "3 variants that end worse left out" in figure.get_suptitle()


def test_without_se_variants_the_baselines_are_the_panels(study: Make, with_curves: WithCurves) -> None:
    figure = training_figure(with_curves(study([({"insertion": "none"}, [8.0, 8.2])])))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["cifar_resnet20, no SE"]


def test_a_trial_without_a_validation_split_has_its_training_curve(study: Make, with_curves: WithCurves) -> None:
    records = with_curves(study([({"reduction": 4}, [8.0])]))
    path = Path(records.loc[0, "folder"]) / "metrics.csv"
    pd.read_csv(path).drop(columns="val/top1_error").to_csv(path, index=False)
    (axes,) = training_figure(records).axes
    assert [line.get_linestyle() for line in axes.lines] == ["--"]


def test_epochs_are_whole_numbers(reduction_study: pd.DataFrame, with_curves: WithCurves) -> None:
    figure = training_figure(with_curves(reduction_study))
    figure.canvas.draw()
    assert all(tick % 1 == 0 for axes in figure.axes for tick in axes.get_xticks())


def test_files_with_other_columns_a_torn_end_or_no_epoch_are_read_as_far_as_they_go(
    study: Make, with_curves: WithCurves
) -> None:
    records = with_curves(study([({"reduction": 4}, [8.0, 7.0, 6.0, 5.0])]))
    whole, torn, headed, empty = (Path(folder) / "metrics.csv" for folder in records["folder"])
    pd.read_csv(whole).assign(more=1).to_csv(whole, index=False)
    torn.write_text(torn.read_text().rstrip())
    headed.write_text(headed.read_text().partition("\n")[0] + "\n")
    empty.write_text("")
    curves = read_curves(group_variants(records), ["val/top1_error"])
    read = curves.sort_values(["seed", "epoch"])[["seed", "epoch", "val/top1_error"]]
    assert read.to_numpy().tolist() == [
        [0, 1, 40], [0, 2, 20], [0, 3, 8], [1, 1, 40], [1, 2, 20], [1, 3, 7],
    ]  # fmt: skip


def test_folders_without_curves_and_unknown_metrics_are_refused(
    reduction_study: pd.DataFrame, with_curves: WithCurves, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"None of the 15 .*metrics\.csv"):
        training_figure(reduction_study.assign(folder=str(tmp_path)))
    with pytest.raises(ValueError, match="none of val/top9_error"):
        training_figure(with_curves(reduction_study), "top9_error")
