"""Figures: what is drawn, that labels keep apart, and that files repeat to the byte."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from se_lab.report import save_figure, tradeoff_figure
from se_lab.report.figures.canvas import MARKERS
from se_lab.report.figures.tradeoff import pareto_front

Make = Callable[..., pd.DataFrame]


@pytest.fixture
def crowded(study: Make) -> pd.DataFrame:
    """Make sixteen variants at two costs and close errors."""
    rng = np.random.default_rng(0)
    records = study(
        [
            ({"insertion": "none"}, list(8 + rng.normal(0, 0.1, 3))),
            *(
                ({"insertion": insertion, "reduction": r}, list(7.5 + rng.normal(0, 0.1, 3)))
                for insertion in ("standard", "pre", "post", "identity", "conv3x3")
                for r in (4, 8, 16)
            ),
        ]
    )
    return records


def labels(axes) -> list:
    return [text for text in axes.texts if text.get_text()]


def markers(axes) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() in MARKERS and line.get_linestyle() == "None"]
    return [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_the_axis_of_an_error_ends_where_errors_end(study: Make) -> None:
    records = study([({"insertion": "none"}, [1.0, 30.0, 9.0]), ({"reduction": 4}, [95.0, 60.0, 99.0])])
    (axes,) = tradeoff_figure(records).axes
    low, high = axes.get_ylim()
    assert -5 < low < 1 and 99 < high < 105  # the t intervals reach from −24 to 138
    (axes,) = tradeoff_figure(records.assign(**{"test/loss": records["test/top1_error"]}), metric="test/loss").axes
    assert axes.get_ylim()[0] < -10


def test_every_variant_is_named_once_and_no_label_overlaps_another(crowded: pd.DataFrame) -> None:
    figure = tradeoff_figure(crowded)
    (axes,) = figure.axes
    names = [text.get_text() for text in labels(axes)]
    assert sorted(names) == sorted(
        ["no SE"] + [f"{i}, r={r}" for i in ("standard", "pre", "post", "identity", "conv3x3") for r in (4, 8, 16)]
    )
    boxes = [text.get_window_extent() for text in labels(axes)]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    points = axes.transData.transform(markers(axes))
    assert len(points) == 16
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.p0, box.p1))


def test_points_are_means_at_their_cost(reduction_study: pd.DataFrame) -> None:
    (axes,) = tradeoff_figure(reduction_study).axes
    points = markers(axes)
    by_hand = {(272.474, 8.2), (305.242, 24.2 / 3), (288.858, 21.7 / 3), (280.666, 23.6 / 3), (276.570, 8.4)}
    assert len(points) == 5
    for x, y in by_hand:
        assert any(np.allclose((x, y), point) for point in points)
    assert axes.get_xlabel() == "params (k)"
    assert axes.get_ylabel() == "test top-1 error (%)"
    assert axes.get_title(loc="left") == "Mean of 3 seeds with 95 % interval"


def test_the_legend_of_a_trade_off_says_what_is_there_and_of_which_key(study: Make) -> None:
    records = study(
        [
            ({"insertion": "none"}, [1.0]),
            ({"reduction": 4, "squeeze": "max"}, [5.0]),
            ({"reduction": 8, "squeeze": "avg"}, [4.0]),
        ]
    )
    (axes,) = tradeoff_figure(records).axes
    # no line of a front where one variant beats all others; a bare 4 could be anything
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["r=4", "r=8"]


def test_the_front_is_what_nothing_beats() -> None:
    x = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    y = np.array([5.0, 9.0, 6.0, 7.0, 5.0])  # 4.0 costs more than 3.0 and is no better
    assert list(pareto_front(x, y)) == [1, 2, 0]
    assert list(pareto_front(x, -y, higher_is_better=True)) == [1, 2, 0]


def test_front_of_random_points_equals_the_definition() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 200)).round(2)
    beaten = [(((x <= a) & (y <= b)) & ((x < a) | (y < b))).any() for a, b in zip(x, y, strict=True)]
    points = set(zip(x[~np.array(beaten)], y[~np.array(beaten)], strict=True))
    front = pareto_front(x, y)
    assert set(zip(x[front], y[front], strict=True)) == points


def test_more_variants_than_can_be_named_leave_the_front_and_the_baseline_named(study: Make) -> None:
    errors = np.linspace(9, 8, 40)
    records = study(
        [({"insertion": "none"}, [9.5])] + [({"reduction": r + 2}, [error]) for r, error in enumerate(errors)]
    )
    (axes,) = tradeoff_figure(records).axes
    names = [text.get_text() for text in labels(axes)]
    assert "no SE" in names
    assert len(names) < 41
    assert f"{41 - len(names)} variants without a name" in axes.get_title(loc="left")


def test_a_variant_without_a_result_is_not_drawn(reduction_study: pd.DataFrame) -> None:
    reduction_study.loc[reduction_study["model.se.reduction"] == 8, "status"] = "failed"
    (axes,) = tradeoff_figure(reduction_study).axes
    assert sorted(text.get_text() for text in labels(axes)) == ["no SE", "r=16", "r=2", "r=4"]


def test_a_cost_or_metric_that_is_not_there_is_refused(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'images_per_s'"):
        tradeoff_figure(reduction_study, "images_per_s")
    with pytest.raises(ValueError, match="'val/loss'"):
        tradeoff_figure(reduction_study, metric="val/loss")


def test_files_repeat_to_the_byte(reduction_study: pd.DataFrame, tmp_path: Path) -> None:
    formats = ("png", "svg", "pdf")
    first, second = (
        save_figure(tradeoff_figure(reduction_study), tmp_path / name / "new" / "figure.v1", formats) for name in "ab"
    )
    assert [path.name for path in first] == ["figure.v1.png", "figure.v1.svg", "figure.v1.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_no_global_state_of_matplotlib_is_touched(reduction_study: pd.DataFrame) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    tradeoff_figure(reduction_study)
    assert dict(matplotlib.rcParams) == before
