"""Training curves: mean and range of the seeds, a panel a variant, whole epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants
from se_lab.report.figures.chart import Chart
from se_lab.report.figures.curves import curves, read_curves
from se_lab.report.figures.image import draw
from se_lab.spec import RunSpec, SpecError
from se_lab.store import RunRecord, write_record

Make = Callable[..., pd.DataFrame]
WithCurves = Callable[[pd.DataFrame], pd.DataFrame]


def chart_of(records: pd.DataFrame, metric: str = "test/top1_error") -> Chart:
    return curves(group_variants(records), metric)


def rewrite(records: pd.DataFrame, epochs: list[float], **columns: list[float]) -> pd.DataFrame:
    """Give all trials the same curves."""
    for folder in records["folder"]:
        pd.DataFrame({"epoch": epochs} | {key.replace("_", "/", 1): c for key, c in columns.items()}).to_csv(
            Path(folder) / "metrics.csv", index=False
        )
    return records


def test_changed_curves_are_refused(study: Make, with_curves: WithCurves) -> None:
    records = with_curves(study([({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0])]))
    folder = Path(records["folder"].iloc[0])
    write_record(folder, RunRecord("a", "finished", RunSpec().flat(), {}))
    chart_of(records)
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("1", "2"))
    with pytest.raises(SpecError, match=r"metrics\.csv was damaged or changed after its trial ended"):
        chart_of(records)


def test_a_panel_has_the_variants_mean_and_range_over_the_baselines(
    reduction_study: pd.DataFrame, with_curves: WithCurves
) -> None:
    panels = chart_of(with_curves(reduction_study)).panels
    assert [panel.title for panel in panels] == ["r=2", "r=4", "r=8", "r=16"]
    base_val, base_train, val, train = panels[1].series
    np.testing.assert_allclose(base_val.y, [40, 20, 8.2])
    np.testing.assert_allclose(base_train.y, [20, 10, 4.1])
    np.testing.assert_allclose(val.y, [40, 20, 21.7 / 3])
    np.testing.assert_array_equal(val.x, [2, 3, 4])  # epochs that were trained; the file counts from 0
    assert (val.dash, train.dash) == ("solid", "dash")
    assert val.low is not None and val.high is not None
    assert (val.low[-1], val.high[-1]) == (7.0, 7.5)
    assert len({str((panel.x, panel.y)) for panel in panels}) == 1  # one range, to compare them


def test_the_best_stay_where_there_are_more_than_fit(study: Make, with_curves: WithCurves) -> None:
    records = with_curves(
        study([({"insertion": "none"}, [20.0])] + [({"reduction": r}, [20.0 - r / 10]) for r in range(2, 70)])
    )
    chart = chart_of(records)
    assert [panel.title for panel in chart.panels] == [f"r={r}" for r in range(58, 70)]
    assert "56 worse variants are omitted" in chart.note


def test_without_se_variants_the_baselines_are_the_panels(study: Make, with_curves: WithCurves) -> None:
    chart = chart_of(with_curves(study([({"insertion": "none"}, [8.0, 8.2])])))
    assert [panel.title for panel in chart.panels] == ["cifar_resnet20, no SE"]


@pytest.mark.parametrize("epochs", [[0], [0, 1], [0, 1, 2]])
def test_a_run_of_few_epochs_shows_all_of_them_as_whole_numbers(
    study: Make, with_curves: WithCurves, epochs: list[float]
) -> None:
    errors = [80.0, 30.0, 20.0][: len(epochs)]
    records = rewrite(with_curves(study([({"reduction": 4}, [8.0])])), epochs, val_top1_error=errors)
    (panel,) = chart_of(records).panels
    (series,) = panel.series
    low, high = panel.y.limits or (0.0, 0.0)
    assert low <= min(errors) and max(errors) < high  # nothing is cut
    assert panel.x.ticks == [(epoch + 1, str(epoch + 1)) for epoch in epochs]
    assert bool(series.marker) == (len(epochs) < 3)  # one point is no line


def test_the_fall_from_chance_level_may_lie_above_the_axis_and_the_note_says_so(
    study: Make, with_curves: WithCurves
) -> None:
    errors = [90.0, 80.0, *np.linspace(30, 20, 38)]
    records = rewrite(with_curves(study([({"reduction": 4}, [8.0])])), list(range(40)), val_top1_error=errors)
    chart = chart_of(records)
    assert (chart.panels[0].y.limits or (0, 0))[1] == pytest.approx(1.08 * errors[4])
    assert "the first epochs are above the range of the axis" in chart.note


def test_a_trial_without_a_validation_split_has_its_training_curve(study: Make, with_curves: WithCurves) -> None:
    records = rewrite(with_curves(study([({"reduction": 4}, [8.0])])), [0, 1], train_top1_error=[9.0, 8.0])
    (panel,) = chart_of(records).panels
    assert [series.dash for series in panel.series] == ["dash"]


def test_files_with_other_columns_a_torn_end_or_no_epoch_are_read_as_far_as_they_go(
    study: Make, with_curves: WithCurves
) -> None:
    records = with_curves(study([({"reduction": 4}, [8.0, 7.0, 6.0, 5.0])]))
    whole, torn, headed, empty = (Path(folder) / "metrics.csv" for folder in records["folder"])
    pd.read_csv(whole).assign(more=1).to_csv(whole, index=False)
    torn.write_text(torn.read_text().rstrip())
    headed.write_text(headed.read_text().partition("\n")[0] + "\n")
    empty.write_text("")
    table = read_curves(group_variants(records), ["val/top1_error"])
    read = table.sort_values(["seed", "epoch"])[["seed", "epoch", "val/top1_error"]]
    assert read.to_numpy().tolist() == [
        [0, 1, 40], [0, 2, 20], [0, 3, 8], [1, 1, 40], [1, 2, 20], [1, 3, 7],
    ]  # fmt: skip


def test_folders_without_curves_and_unknown_metrics_are_refused(
    reduction_study: pd.DataFrame, with_curves: WithCurves, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"None of 15 .*metrics\.csv"):
        chart_of(reduction_study.assign(folder=str(tmp_path)))
    with pytest.raises(ValueError, match="none of val/top9_error"):
        chart_of(with_curves(reduction_study), "test/top9_error")


def test_training_is_hollow_and_the_range_an_interval_where_an_epoch_is_a_point(
    study: Make, with_curves: WithCurves
) -> None:
    records = with_curves(study([({"reduction": 4}, [8.0, 9.0])]))
    for folder, val in zip(records["folder"], (30.0, 34.0), strict=True):
        frame = pd.DataFrame({"epoch": [0], "val/top1_error": [val], "train/top1_error": [20.0]})
        frame.to_csv(Path(folder) / "metrics.csv", index=False)
    chart = chart_of(records)
    val, train = chart.panels[0].series
    assert val.y_half is not None and val.hollow is not None and train.hollow is not None
    np.testing.assert_allclose([val.y, *val.y_half], [[32], [2], [2]])
    assert [val.hollow.tolist(), train.hollow.tolist()] == [[False], [True]]
    (legend,) = draw(chart).legends
    assert [line.get_markerfacecolor() for line in legend.get_lines()] == [val.color, "white"]
