"""The trade-off: every variant at its own cost and mean, the front, and which variants have a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from se_lab.report import group_variants
from se_lab.report.figures.chart import Chart, Series
from se_lab.report.figures.tradeoff import pareto_front, tradeoff

Make = Callable[..., pd.DataFrame]
TOP1 = "test/top1_error"


def chart_of(records: pd.DataFrame, cost: str = "params", metric: str = TOP1, **options: Any) -> Chart:
    return tradeoff(group_variants(records, **options), metric, cost)


def variants(chart: Chart) -> list[Series]:
    """Series of variants, not of single trials or the front."""
    return [series for series in chart.panels[0].series if series.front >= 0]


def points(chart: Chart) -> dict[int, tuple[float, float]]:
    """Where each variant is, by its number."""
    return {
        variant: (float(x), float(y))
        for series in variants(chart)
        for x, y, (variant, _) in zip(series.x, series.y, series.keys, strict=True)
    }


def test_points_are_means_at_their_cost_with_their_intervals(reduction_study: pd.DataFrame) -> None:
    chart = chart_of(reduction_study)
    by_hand = [(272.474, 8.2), (305.242, 24.2 / 3), (288.858, 21.7 / 3), (280.666, 23.6 / 3), (276.570, 8.4)]
    for variant, point in points(chart).items():
        np.testing.assert_allclose(point, by_hand[variant])
    (series,) = variants(chart)
    assert series.hollow is not None and series.hollow.tolist() == [True, False, False, False, False]
    assert series.y_half is not None
    reach = 4.302653 * 0.002 / np.sqrt(3) / (0.082 * 0.918)  # t of 2 degrees · sd / √n, on the logit scale
    ends = 100 / (1 + np.exp(-np.log(0.082 / 0.918) + np.array([reach, -reach])))
    np.testing.assert_allclose(series.y_half[:, 0], [8.2 - ends[0], ends[1] - 8.2], rtol=1e-5)
    (panel,) = chart.panels
    assert (panel.x.label, panel.y.label) == ("params (k)", "test top-1 error (%)")
    assert chart.note.startswith("Mean of 3 seeds with 95 % interval")


def test_variants_of_equal_cost_stand_at_that_cost_and_the_note_says_so(study: Make) -> None:
    names = ("avg", "max", "std", "lse", "l2", "covariance")
    records = study([({"squeeze": name}, [7.0 + i / 10]) for i, name in enumerate(names)], params=271_450)
    for order in (records, records.iloc[::-1]):
        chart = chart_of(order)
        assert {x for x, _ in points(chart).values()} == {271.45}
        assert "6 variants have the same cost" in chart.note


def test_trials_are_small_points_with_the_trial_behind_them(reduction_study: pd.DataFrame) -> None:
    chart = chart_of(reduction_study, "step_ms")
    (series,) = [one for one in chart.panels[0].series if one.front < 0 and one.marker]
    np.testing.assert_allclose(series.x, reduction_study["step_ms"])  # each at its own time, 12.5 + seed
    np.testing.assert_allclose(series.y, reduction_study[TOP1])
    assert [trial for _, trial in series.keys] == list(range(15))
    assert f"trial {reduction_study['trial_id'][3]}" in series.hover[3]


def test_the_axis_of_an_error_ends_where_errors_end(study: Make) -> None:
    records = study([({"insertion": "none"}, [1.0, 30.0, 9.0]), ({"reduction": 4}, [95.0, 60.0, 99.0])])
    low, high = chart_of(records).panels[0].y.limits or (0.0, 0.0)
    assert -5 < low < 1 and 99 < high < 105  # the t intervals reach from −24 to 138
    records = records.assign(**{"test/loss": records[TOP1]})
    low, _ = chart_of(records, metric="test/loss").panels[0].y.limits or (0.0, 0.0)
    assert low < -10


def test_the_legend_says_of_which_key_its_values_are(study: Make) -> None:
    records = study(
        [
            ({"insertion": "none"}, [1.0]),
            ({"reduction": 4, "squeeze": "max"}, [5.0]),
            ({"reduction": 8, "squeeze": "avg"}, [4.0]),
        ]
    )
    # no line of a front where one variant beats all others; a bare 4 could be anything
    assert [series.name for series in chart_of(records).panels[0].series if series.name] == ["r=4", "r=8"]


def test_the_front_is_what_nothing_beats() -> None:
    x = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    y = np.array([5.0, 9.0, 6.0, 7.0, 5.0])  # 4.0 costs more than 3.0 and is no better
    assert list(pareto_front(x, y)) == [1, 2, 0]
    assert list(pareto_front(x, -y, higher_is_better=True)) == [1, 2, 0]


def test_front_of_random_points_equals_the_definition() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 200)).round(2)
    beaten = [(((x <= a) & (y <= b)) & ((x < a) | (y < b))).any() for a, b in zip(x, y, strict=True)]
    expected = set(zip(x[~np.array(beaten)], y[~np.array(beaten)], strict=True))
    front = pareto_front(x, y)
    assert set(zip(x[front], y[front], strict=True)) == expected


def test_two_data_sets_have_no_front_as_their_errors_cannot_be_compared(study: Make) -> None:
    variants = [
        ({"data.name": name, **se}, [error + add])
        for name, add in (("digits", 5.0), ("mnist", 0.0))
        for se, error in (({"insertion": "none"}, 3.0), ({"reduction": 4}, 2.0))
    ]
    (panel,) = tradeoff(group_variants(study(variants)), TOP1, "params").panels
    assert "Pareto front" not in [series.name for series in panel.series] and len(panel.lines) == 0
    (panel,) = tradeoff(group_variants(study(variants[:2])), TOP1, "params").panels
    assert "Pareto front" in [series.name for series in panel.series]


def test_more_variants_than_can_be_named_leave_the_front_and_the_baseline_named(study: Make) -> None:
    errors = np.linspace(9, 8, 40)
    chart = chart_of(
        study([({"insertion": "none"}, [9.5])] + [({"reduction": r + 2}, [error]) for r, error in enumerate(errors)])
    )
    named = {name.text for name in chart.panels[0].names}
    assert "no SE" in named and len(named) < 41
    assert f"{41 - len(named)} names are omitted" in chart.note


def test_a_variant_without_a_result_is_not_drawn(reduction_study: pd.DataFrame) -> None:
    reduction_study.loc[reduction_study["model.se.reduction"] == 8, "status"] = "failed"
    chart = chart_of(reduction_study)
    assert sorted(name.text for name in chart.panels[0].names) == ["no SE", "r=16", "r=2", "r=4"]


def test_a_cost_that_is_not_there_is_refused(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'images_per_s'"):
        chart_of(reduction_study, "images_per_s")


def test_times_that_differ_between_the_seeds_of_a_variant_are_said(study: Make) -> None:
    records = study([({"insertion": "none"}, [8.0, 8.2]), ({"reduction": 4}, [7.0, 7.5])])
    even = records.assign(step_ms=[10.0, 10.5, 12.0, 12.1])
    assert "Warning" not in chart_of(even, "step_ms").note
    uneven = records.assign(step_ms=[10.0, 15.0, 12.0, 12.1])
    assert "differ by up to 50 % in the time of a step" in chart_of(uneven, "step_ms").note
    assert "Warning" not in chart_of(uneven, "params").note


def test_a_random_search_has_one_look_as_no_legend_could_tell_its_variants_apart(study: Make) -> None:
    chart = chart_of(study([({"reduction": 4, "optim.lr": lr}, [8.0 + lr]) for lr in np.linspace(0.1, 1, 12)]))
    assert len({(series.color, series.marker) for series in variants(chart)}) == 1
