"""Heat map: each value in its cell, numbers in their order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants
from se_lab.report.figures.chart import Chart
from se_lab.report.figures.heatmap import heatmap

Make = Callable[..., pd.DataFrame]


@pytest.fixture
def grid(study: Make) -> pd.DataFrame:
    """Make 3 reduction ratios × 2 backbones with baselines; the trial of b, r=8 failed."""
    records = study(
        [
            ({"model.backbone": name, **se}, [error])
            for name, errors in (("a", (9.0, 7.0, 7.5)), ("b", (8.0, 6.0, 6.5)))
            for se, error in zip(({"insertion": "none"}, {"reduction": 4}, {"reduction": 8}), errors, strict=True)
        ]
    )
    records.loc[5, "status"] = "failed"
    return records


def names(chart: Chart) -> tuple[list[str], list[str]]:
    """What stands down and across."""
    (panel,) = chart.panels
    down, across = ([text for _, text in axis.ticks or ()] for axis in (panel.y, panel.x))
    return down, across


def test_each_mean_is_in_its_cell_and_a_dash_where_there_is_none(grid: pd.DataFrame) -> None:
    chart = heatmap(group_variants(grid), "test/top1_error")
    assert names(chart) == (["no SE", "4", "8"], ["a", "b"])
    cells = chart.panels[0].cells
    assert cells is not None
    np.testing.assert_array_equal(cells.values, [[9, 8], [7, 6], [7.5, np.nan]])
    assert cells.texts == [["9.00", "8.00"], ["7.00", "6.00"], ["7.50", "–"]]
    assert (cells.range, cells.dark_high) == ((6.0, 9.0), False)


def test_numbers_stand_in_their_order_however_the_records_come(study: Make) -> None:
    axis = [(8, "max"), (16, "avg"), (2, "avg"), (8, "avg"), (2, "max")]
    records = study([({"reduction": r, "squeeze": squeeze}, [r / 2]) for r, squeeze in axis])
    for rows, expected in (
        (["model.se.reduction", "model.se.squeeze"], (["max", "avg"], ["2", "8", "16"])),
        (["model.se.squeeze", "model.se.reduction"], (["2", "8", "16"], ["max", "avg"])),
    ):
        chart = heatmap(group_variants(records, rows=rows), "test/top1_error")
        assert names(chart) == expected
        values = chart.panels[0].cells.values if chart.panels[0].cells else np.empty(0)
        by_hand = np.array([[1, 4, np.nan], [1, 4, 8]])
        np.testing.assert_array_equal(values, by_hand if rows[0].endswith("reduction") else by_hand.T)


def test_a_baseline_without_a_cell_is_named_in_the_note(study: Make) -> None:
    rows = [({"reduction": r, "squeeze": s}, [7.0]) for r in (2, 4) for s in ("avg", "max")]
    chart = heatmap(group_variants(study([({"insertion": "none"}, [8.0, 8.2]), *rows])), "test/top1_error")
    assert "no SE: 8.10" in chart.note


def test_a_study_of_one_key_has_no_heat_map(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"two varied keys; these trials vary model\.se\.reduction"):
        heatmap(group_variants(reduction_study), "test/top1_error")
