"""The forest plot shows the paired differences and says what it leaves out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants
from se_lab.report.figures.chart import Chart, cut_intervals
from se_lab.report.figures.differences import differences

Make = Callable[..., pd.DataFrame]


def chart_of(records: pd.DataFrame) -> Chart:
    return differences(group_variants(records), "test/top1_error")


def test_each_row_is_a_variant_with_its_paired_difference_and_seeds(reduction_study: pd.DataFrame) -> None:
    (panel,) = chart_of(reduction_study).panels
    assert panel.y.ticks == [(0.0, "r=2"), (1.0, "r=4"), (2.0, "r=8"), (3.0, "r=16")]
    seeds, squares = panel.series
    # by hand from conftest's errors: mean of variant − baseline, seed by seed
    np.testing.assert_allclose(squares.x, [-0.4 / 3, -2.9 / 3, -1.0 / 3, 0.6 / 3])
    np.testing.assert_array_equal(squares.y, [0, 1, 2, 3])
    assert squares.hollow is not None
    assert squares.hollow.tolist() == [True, False, True, True]  # only r=4 excludes zero
    np.testing.assert_allclose(seeds.x[seeds.y == 1], [-1.0, -0.9, -1.0])
    assert [text.text for text in panel.texts][1] == "−0.97 ± 0.41"


def test_the_largest_differences_stay_where_there_are_too_many(study: Make) -> None:
    chart = chart_of(
        study([({"insertion": "none"}, [8.0])] + [({"reduction": r}, [8.0 - r / 100]) for r in range(2, 72)])
    )
    assert [name for _, name in chart.panels[0].y.ticks or ()] == [f"r={r}" for r in range(12, 72)]
    assert "10 smaller differences are omitted" in chart.note


def test_without_a_baseline_there_is_no_forest(study: Make) -> None:
    with pytest.raises(ValueError, match="No variant has a baseline"):
        chart_of(study([({"reduction": 4}, [7.0]), ({"reduction": 8}, [7.0])]))


def test_an_interval_that_dwarfs_all_differences_is_cut_and_marked(study: Make) -> None:
    rng = np.random.default_rng(0)
    calm = [({"reduction": r}, list(8 + rng.normal(0, 0.05, 5))) for r in (2, 4, 8)]
    wild = ({"reduction": 16}, [8.0, 2.0, 14.0, 1.0, 15.0])
    (panel,) = chart_of(study([({"insertion": "none"}, list(8 + rng.normal(0, 0.05, 5))), *calm, wild])).panels
    *_, squares = panel.series
    low, high = panel.x.limits or (0.0, 0.0)
    assert squares.x_half is not None
    beyond = (squares.x + squares.x_half > high) | (squares.x - squares.x_half < low)
    cut = list(cut_intervals(squares, panel))
    assert {y for _, _, y, _ in cut} == set(squares.y[beyond])
    assert all((x, side) in ((low, "left"), (high, "right")) for _, x, _, side in cut)
    seeds = panel.series[0]
    assert low < seeds.x.min() and seeds.x.max() < high  # points are never cut


def test_no_axis_of_points_goes_where_no_difference_of_errors_can_be(study: Make) -> None:
    """Two seeds give intervals of ± 400 points, where ± 100 are possible."""
    records = study([({"insertion": "none"}, [40.0, 95.0]), ({"reduction": 4}, [90.0, 10.0])])
    (panel,) = chart_of(records).panels
    assert panel.series[-1].x_half[0] > 100
    assert panel.x.limits == (-100.0, 100.0)
