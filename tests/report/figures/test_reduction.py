"""Curves over the reduction ratio stand at the ratios, however many there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants
from se_lab.report.figures.chart import Chart
from se_lab.report.figures.reduction import reduction

Make = Callable[..., pd.DataFrame]


def chart_of(records: pd.DataFrame) -> Chart:
    return reduction(group_variants(records), "test/top1_error")


def test_curves_show_errors_parameters_and_the_baseline(reduction_study: pd.DataFrame) -> None:
    top, bottom = chart_of(reduction_study).panels
    curve, base = top.series
    np.testing.assert_array_equal(curve.x, [2, 4, 8, 16])
    np.testing.assert_allclose(curve.y, [24.2 / 3, 21.7 / 3, 23.6 / 3, 8.4])
    np.testing.assert_allclose(base.y, 8.2)
    assert base.low is not None and base.high is not None
    np.testing.assert_allclose([base.low[0], base.high[0]], [7.71668, 8.71073], rtol=1e-5)
    # logit(0.082) ± 4.302653 · 0.002/√3/(0.082 · 0.918)
    np.testing.assert_allclose(bottom.series[0].y, [305.242, 288.858, 280.666, 276.570])
    assert [text for _, text in bottom.x.ticks or ()] == ["2", "4", "8", "16"]


def test_every_curve_stands_at_its_ratios_however_many_there_are(study: Make) -> None:
    squeezes = ("avg", "max", "std", "l2", "lse", "gem", "rms", "soft", "top")
    records = study([({"reduction": r, "squeeze": s}, [7.0 + r / 100]) for s in squeezes for r in (32, 8, 2)])
    for panel in chart_of(records).panels:
        assert [series.name for series in panel.series] == list(squeezes)
        assert len({(series.color, series.marker) for series in panel.series}) == 9
        for series in panel.series:
            np.testing.assert_array_equal(series.x, [2, 8, 32])


def test_one_reduction_ratio_is_no_curve(study: Make) -> None:
    with pytest.raises(ValueError, match="at least two reduction ratios"):
        chart_of(study([({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0])]))


def test_settings_of_one_ratio_each_give_no_curve_and_unfinished_ones_no_name(study: Make) -> None:
    searched = study([({"reduction": r, "optim.lr": lr}, [7.0]) for r, lr in ((2, 0.3), (4, 0.2), (8, 0.1))])
    with pytest.raises(ValueError, match="No setting has finished trials with two reduction ratios"):
        chart_of(searched)
    records = study([({"reduction": r, "squeeze": s}, [7.0]) for s in ("avg", "max") for r in (2, 4)])
    records.loc[records["model.se.squeeze"] == "max", ["status", "test/top1_error"]] = ["failed", np.nan]
    chart = chart_of(records)
    assert [series.name for series in chart.panels[0].series] == ["avg"]
    assert chart.note == "One seed, no interval; 2 variants have no result."


def test_a_baseline_of_one_seed_has_no_interval_to_speak_of(study: Make) -> None:
    chart = chart_of(study([({"insertion": "none"}, [8.0]), *(({"reduction": r}, [7.0]) for r in (2, 4))]))
    assert chart.note == "One seed, no interval. Dashed: no SE."
