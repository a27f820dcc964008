"""Heat map and parallel coordinates: each value in its place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants, heatmap_figure, parallel_figure
from se_lab.report.page_overview import heatmap

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


def test_a_heat_map_has_each_mean_in_its_cell_and_a_dash_where_there_is_none(grid: pd.DataFrame) -> None:
    figure = heatmap_figure(grid, "model.se.reduction", "model.backbone")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no SE", "4", "8"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "9.00", (1, 0): "8.00", (0, 1): "7.00", (1, 1): "6.00", (0, 2): "7.50", (1, 2): "–"}


def test_numbers_along_a_heat_map_stand_in_their_order_however_the_records_come(study: Make) -> None:
    axis = [(8, "max"), (16, "avg"), (2, "avg"), (8, "avg"), (2, "max")]
    records = study([({"reduction": r, "squeeze": squeeze}, [r / 2]) for r, squeeze in axis])
    across = heatmap_figure(records, "model.se.squeeze", "model.se.reduction").axes[0]
    assert [label.get_text() for label in across.get_xticklabels()] == ["r=2", "r=8", "r=16"]
    assert [label.get_text() for label in across.get_yticklabels()] == ["max", "avg"]
    down = heatmap_figure(records, "model.se.reduction", "model.se.squeeze").axes[0]
    assert [label.get_text() for label in down.get_yticklabels()] == ["2", "8", "16"]
    cells = {text.get_position(): text.get_text() for text in down.texts}
    assert cells == {(0, 0): "1.00", (1, 0): "1.00", (0, 1): "4.00", (1, 1): "4.00", (0, 2): "–", (1, 2): "8.00"}
    drawn = heatmap(group_variants(records, rows=["model.se.reduction", "model.se.squeeze"]), "test/top1_error")
    assert drawn is not None
    (trace,) = drawn["choices"][0]["traces"]
    assert (trace["x"], trace["y"]) == (["2", "8", "16"], ["max", "avg"])
    assert trace["z"] == [[1.0, 4.0, None], [1.0, 4.0, 8.0]]


def test_every_line_of_parallel_coordinates_can_be_seen_on_white_paper(grid: pd.DataFrame) -> None:
    (axes,) = parallel_figure(grid).axes
    red, green, blue = axes.collections[0].get_colors()[:, :3].T
    grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert grey[0] < 0.75  # the worst; the lightest of the map has 0.87
    assert (grey[:-1] > grey[1:]).all()  # darker as they get better


def test_numbers_in_a_heat_map_stand_out_from_their_cell(grid: pd.DataFrame) -> None:
    axes = heatmap_figure(grid, "model.se.reduction", "model.backbone").axes[0]
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert colors["6.00"] == "white"  # the lowest error is the darkest cell
    assert colors["9.00"] == "black"


def test_parallel_coordinates_draw_a_line_a_finished_variant_best_last(grid: pd.DataFrame) -> None:
    (axes,) = parallel_figure(grid).axes
    (lines,) = axes.collections
    ends = [path.vertices[-1] for path in lines.get_paths()]
    # five finished; the metric's axis runs from 6 to 9, the best (6) drawn last and at the bottom
    np.testing.assert_allclose([y for _, y in ends], [1.0, 2 / 3, 1 / 2, 1 / 3, 0.0])
    texts = [text.get_text() for text in axes.texts]
    assert {"backbone", "reduction", "test top-1 error (%)", "no SE", "9.00", "6.00"} <= set(texts)


def test_reduction_ratios_stand_in_their_order(study: Make) -> None:
    records = study([({"insertion": "none"}, [9.0]), *(({"reduction": r}, [8.0 + r / 100]) for r in (16, 2, 8))])
    (axes,) = parallel_figure(records).axes
    heights = {text.get_text(): text.xy[1] for text in axes.texts if text.xy[0] == 0}
    assert heights["no SE"] < heights["2"] < heights["8"] < heights["16"]


def test_a_single_variant_is_refused(study: Make) -> None:
    with pytest.raises(ValueError, match="only one"):
        parallel_figure(study([({"reduction": 4}, [7.0])]))
