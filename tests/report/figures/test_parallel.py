"""Parallel coordinates: a line a variant, round ticks that differ, a colour key."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants
from se_lab.report.figures.chart import Chart, Series
from se_lab.report.figures.parallel import parallel
from tests.report.figures.test_heatmap import grid  # noqa: F401  (a fixture)

Make = Callable[..., pd.DataFrame]


def chart_of(records: pd.DataFrame) -> Chart:
    return parallel(group_variants(records), "test/top1_error")


def lines(chart: Chart) -> list[Series]:
    return [series for series in chart.panels[0].series if series.keys]


def ticks(chart: Chart, place: int) -> dict[str, float]:
    """Heights of the ticks of an axis."""
    return {text.text: text.y for text in chart.panels[0].texts if text.x == place}


def test_a_line_a_finished_variant_the_best_last_and_darkest(grid: pd.DataFrame) -> None:  # noqa: F811
    chart = chart_of(grid)
    # five finished; the metric's axis runs from 6 to 9, the best (6) drawn last and at the bottom
    np.testing.assert_allclose([line.y[-1] for line in lines(chart)], [1.0, 2 / 3, 1 / 2, 1 / 3, 0.0])
    assert [name for _, name in chart.panels[0].x.ticks or ()] == [
        "backbone",
        "reduction",
        "params (k)",
        "test top-1 error (%)",
    ]
    rgb = np.array([[int(line.color[i : i + 2], 16) for i in (1, 3, 5)] for line in lines(chart)]) / 255
    grey = rgb @ [0.2126, 0.7152, 0.0722]
    assert grey[0] < 0.75  # the worst can be seen on white paper; the lightest of the map has 0.87
    assert (grey[:-1] > grey[1:]).all()
    assert chart.color_key is not None and chart.color_key.range == (6.0, 9.0)


def test_reduction_ratios_stand_in_their_order(study: Make) -> None:
    chart = chart_of(
        study([({"insertion": "none"}, [9.0]), *(({"reduction": r}, [8.0 + r / 100]) for r in (16, 2, 8))])
    )
    assert ticks(chart, 0) == {"no SE": 0.0, "2": 1 / 3, "8": 2 / 3, "16": 1.0}


def test_ticks_are_round_and_differ_in_print_where_values_are_close(study: Make) -> None:
    chart = chart_of(study([({"reduction": r}, [40.561 + r / 10_000]) for r in (2, 4, 8, 16)]))
    metric = ticks(chart, 2)
    assert metric == pytest.approx({"40.5615": 0.3 / 1.4, "40.5620": 0.8 / 1.4, "40.5625": 1.3 / 1.4})


def test_a_single_variant_is_refused(study: Make) -> None:
    with pytest.raises(ValueError, match="at least two"):
        chart_of(study([({"reduction": 4}, [7.0])]))


def test_many_values_of_a_searched_number_stand_to_scale(study: Make) -> None:
    rates = [0.001 * 10 ** (power / 3) for power in range(10)]
    chart = chart_of(study([({"reduction": 4, "optim.lr": rate}, [8.0 + rate]) for rate in rates]))
    assert ticks(chart, 0) == pytest.approx({"0.001": 0.0, "0.01": 1 / 3, "0.1": 2 / 3, "1": 1.0})
    np.testing.assert_allclose(sorted(line.y[0] for line in lines(chart)), np.linspace(0, 1, 10), atol=1e-12)
