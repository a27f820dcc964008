"""What charts share: round ticks, ranges that cut wild intervals, looks that differ, colour maps by sign."""

from __future__ import annotations

import numpy as np
import pytest

from se_lab.report.figures.chart import Cells, interval_limits, line_look, log_ticks, point_look, round_ticks, span


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (40.5612, 40.5626, ["40.5615", "40.5620", "40.5625"]),
        (-3.2, 4.1, ["−2", "0", "2", "4"]),
        (269.4, 285.6, ["270", "275", "280", "285"]),
        (0, 23_000_000, ["0", "5,000,000", "10,000,000", "15,000,000", "20,000,000"]),
        (7.0, 7.0, ["7"]),
    ],
)
def test_ticks_are_round_few_and_differ_in_print(low: float, high: float, expected: list[str]) -> None:
    assert [text for _, text in round_ticks(low, high)] == expected


def test_ticks_stand_at_the_number_they_print_and_within_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = rng.normal() * 10.0 ** rng.integers(-4, 6)
        high = low + 10.0 ** rng.integers(-4, 6)
        ticks = round_ticks(low, high)
        assert 2 <= len(ticks) <= 5 and len({text for _, text in ticks}) == len(ticks)
        for value, text in ticks:
            assert low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high)
            assert float(text.replace("−", "-").replace(",", "")) == pytest.approx(
                value, rel=1e-9, abs=1e-9 * (high - low)
            )


def test_ticks_of_a_logarithmic_axis_are_1_2_and_5_times_powers_of_ten() -> None:
    assert [text for _, text in log_ticks(0.9, 1100)] == ["1", "10", "100", "1,000"]
    assert [text for _, text in log_ticks(40, 600)] == ["50", "100", "200", "500"]


def test_a_range_holds_all_values_and_one_value_has_room() -> None:
    assert span([1.0, 3.0], [2.0, np.nan], margin=0.1) == pytest.approx((0.8, 3.2))
    low, high = span([5.0])
    assert low < 5 < high
    low, high = span([10.0, 1000.0], scale="log", margin=0.5)
    assert (low, high) == pytest.approx((1.0, 10_000.0))


def test_intervals_far_longer_than_the_others_do_not_stretch_the_axis_and_points_are_never_cut() -> None:
    mean, half = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 50.0])
    low, high = interval_limits(mean, half, np.array([0.5, 3.5]))
    assert (low, high) == pytest.approx((-2.5, 6.5))  # points with ± 0.5 reach from 0.5 to 3.5: thrice that
    assert interval_limits(mean, half, np.array([-90.0]))[0] <= -90


def test_36_lines_and_24_points_have_looks_of_their_own() -> None:
    assert len({line_look(number) for number in range(36)}) == 36
    assert len({point_look(number) for number in range(24)}) == 24


def test_values_of_both_signs_have_a_diverging_map_around_0() -> None:
    signed = Cells(np.array([[-1.0, 3.0]]), "difference")
    assert signed.range == (-3.0, 3.0)
    low, middle, high = signed.color_of(np.array([-3.0, 0.0, 3.0]))
    assert min(int(middle[i : i + 2], 16) for i in (1, 3, 5)) > 240  # nothing is white
    assert int(low[5:], 16) > int(low[1:3], 16) and int(high[1:3], 16) > int(high[5:], 16)  # blue, red
    assert Cells(np.array([[1.0, 3.0]]), "error").colors == Cells(np.array([[2.0, 9.0]]), "error").colors
