"""Forest plots and reduction curves show the paired differences and the means, and say what they leave out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import difference_figure, reduction_figure

Make = Callable[..., pd.DataFrame]


def squares(axes) -> dict[float, tuple[float, str]]:
    """Difference and face colour of each row's square, by its height."""
    lines = [line for line in axes.lines if line.get_marker() == "s"]
    return {line.get_ydata()[0]: (line.get_xdata()[0], line.get_markerfacecolor()) for line in lines}


def test_each_row_is_a_variant_with_its_paired_difference(reduction_study: pd.DataFrame) -> None:
    (axes,) = difference_figure(reduction_study).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["r=2", "r=4", "r=8", "r=16"]
    rows = squares(axes)
    # by hand from conftest's errors: mean of variant − baseline, seed by seed
    np.testing.assert_allclose([rows[y][0] for y in range(4)], [-0.4 / 3, -2.9 / 3, -1.0 / 3, 0.6 / 3])
    assert [rows[y][1] != "white" for y in range(4)] == [False, True, False, False]  # only r=4 excludes zero
    assert [text.get_text() for text in axes.texts][1] == "−0.97 ± 0.41"


def test_every_seed_is_a_tick(reduction_study: pd.DataFrame) -> None:
    (axes,) = difference_figure(reduction_study).axes
    ticks = [line.get_xdata() for line in axes.lines if line.get_marker() == "|" and line.get_markersize() == 7]
    np.testing.assert_allclose(ticks[1], [-1.0, -0.9, -1.0])


def test_the_largest_differences_stay_where_there_are_too_many(study: Make) -> None:
    records = study([({"insertion": "none"}, [8.0])] + [({"reduction": r}, [8.0 - r / 100]) for r in range(2, 72)])
    (axes,) = difference_figure(records).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"r={r}" for r in range(12, 72)]
    assert "10 smaller differences left out" in axes.get_title(loc="left")


def test_without_a_baseline_there_is_no_forest(study: Make) -> None:
    with pytest.raises(ValueError, match="Nothing pairs"):
        difference_figure(study([({"reduction": 4}, [7.0]), ({"reduction": 8}, [7.0])]))


def test_reduction_curves_show_errors_parameters_and_the_baseline(reduction_study: pd.DataFrame) -> None:
    top, bottom = reduction_figure(reduction_study).axes
    curve = next(line for line in top.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(curve.get_xdata(), [2, 4, 8, 16])
    np.testing.assert_allclose(curve.get_ydata(), [24.2 / 3, 21.7 / 3, 23.6 / 3, 8.4])
    assert any(np.allclose(line.get_ydata(), 8.2) for line in top.lines if line.get_linestyle() == "--")
    params = next(line for line in bottom.lines if line.get_marker() == "o")
    np.testing.assert_allclose(params.get_ydata(), [305.242, 288.858, 280.666, 276.570])
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["2", "4", "8", "16"]


def test_a_curve_is_drawn_for_each_setting_of_the_other_keys(study: Make) -> None:
    records = study([({"reduction": r, "squeeze": s}, [7.0 + r / 100]) for s in ("avg", "max") for r in (8, 4)])
    figure = reduction_figure(records)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["avg", "max"]


def test_one_reduction_ratio_is_no_curve(study: Make) -> None:
    with pytest.raises(ValueError, match="no two reduction ratios"):
        reduction_figure(study([({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0])]))
