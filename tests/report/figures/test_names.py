"""Names fit their room, in lines or as numbers; names of points find free places."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from se_lab.report.figures.labels import place_names
from se_lab.report.figures.names import Names, wrap


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r=16", "r=16"),
        ("resnet50.a1_in1k, r=16", "resnet50.\na1_in1k,\nr=16"),
        ("one two three", "one two\nthree"),
        ("r=2, d_e=0.05", "r=2,\nd_e=0.05"),  # at the space, where breaking the word saves no line
        ("a_0.12345678", "a_\n0.12345678"),
        ("a_1.5e-05", "a_1.5e-05"),
        ("ab_1.25e-05", "ab_\n1.25e-05"),
        ("abcdefghijklmnopqrstu", "abcdefghij\nklmnopqrst\nu"),
    ],
)
def test_a_name_is_broken_where_it_can_be_and_nothing_of_it_is_lost(text: str, expected: str) -> None:
    assert wrap(text, 10, len) == expected


def test_names_that_do_not_fit_become_numbers_with_a_key() -> None:
    names = Names()
    assert names.fit(["r=2", "r=4"], 10, len) == ["r=2", "r=4"]
    long = ["seresnext101_32x8d.ah_in1k, r=2", "r=4", "seresnext101_32x8d.ah_in1k, r=2"]
    assert names.fit(long, 10, len) == ["1", "2", "1"]
    assert names.fit(["x" * 11], 10, len) == ["3"]
    assert names.key(80, len) == ["1  seresnext101_32x8d.ah_in1k, r=2", "2  r=4", "3  xxxxxxxxxxx"]


def test_names_of_points_overlap_neither_each_other_nor_points_nor_what_is_solid() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((20, 2)) * [600, 300] + 20
    sizes = np.column_stack([rng.integers(30, 90, 20), np.full(20, 12)]).astype(float)
    legend = np.array([[500.0, 250, 640, 330]])
    corners = place_names(points, sizes, legend, np.empty((0, 4)), np.array([0.0, 0, 640, 340]), 1.0)
    boxes = np.hstack([corners, corners + sizes])[~np.isnan(corners[:, 0])]
    assert len(boxes) >= 18
    every = [*boxes, *legend]
    for a, b in combinations(every, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for x, y in points:
        assert not ((boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])).any()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [640, 340]).all()
