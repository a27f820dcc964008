"""Errors by class: each difference and p against SciPy and statsmodels, and what cannot be compared is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from se_lab.report import group_variants
from se_lab.report.columns import ReportError
from se_lab.report.figures.classes import classes
from se_lab.report.figures.image import draw
from se_lab.report.predictions import class_differences
from tests.report.figures.reading import overlaps

TOP1 = "test/top1_error"
LABEL = np.arange(200) % 10


@pytest.fixture
def predicted(study: Callable[..., pd.DataFrame], write_predictions: Callable[..., str]) -> Callable:
    """Make records of two variants with predictions; class 9 of the second is missed far more often."""

    def make(seeds: int) -> tuple[pd.DataFrame, np.ndarray]:
        rng = np.random.default_rng(0)
        rate = np.stack([np.full(200, 0.15), np.where(LABEL == 9, 0.75, 0.15)])
        missed = rng.random((2, seeds, 200)) < rate[:, None]
        errors = 100 * missed.mean(axis=2)
        records = study([({"insertion": "none"}, errors[0]), ({"reduction": 4}, errors[1])])
        folders = [write_predictions(f"t{v}{s}", ~missed[v, s], shuffle=s) for v in range(2) for s in range(seeds)]
        return records.assign(folder=folders), missed

    return make


def test_each_class_has_welchs_interval_and_is_filled_by_holm(predicted: Callable) -> None:
    records, missed = predicted(5)
    chart = classes(group_variants(records), TOP1)
    (squares,) = chart.panels[0].series
    tests, means = [], []
    for number in range(10):
        ours, theirs = (100 * missed[v][:, number == LABEL].mean(axis=1) for v in (1, 0))
        tests.append(stats.ttest_ind(ours, theirs, equal_var=False))
        means.append(ours.mean() - theirs.mean())
    np.testing.assert_allclose(squares.x, means)
    assert squares.x_half is not None and squares.hollow is not None
    halves = [np.ptp(test.confidence_interval()) / 2 for test in tests]
    np.testing.assert_allclose(squares.x_half, halves)
    filled, *_ = multipletests([test.pvalue for test in tests], 0.05, "holm")
    assert filled.any() and (~squares.hollow == filled).all()
    assert chart.title == "Errors by class: standard against no SE"
    assert not list(overlaps(draw(chart)))


def test_of_one_seed_each_the_images_are_compared_by_mcnemar(predicted: Callable) -> None:
    records, missed = predicted(1)
    p = []
    for number in range(10):
        ours, theirs = (missed[v, 0][number == LABEL] for v in (1, 0))
        table = [[(ours & theirs).sum(), (ours & ~theirs).sum()], [(~ours & theirs).sum(), (~ours & ~theirs).sum()]]
        p.append(mcnemar(table, exact=True).pvalue)
    found = class_differences(group_variants(records), TOP1, 1, 0)
    np.testing.assert_allclose(found.p, multipletests(p, 0.05, "holm")[1])
    assert np.isnan(found.half_width).all() and found.seeds == 1


def test_a_contrast_names_the_two_variants(predicted: Callable) -> None:
    study = group_variants(predicted(2)[0])
    turned, usual = (classes(study, TOP1, pair) for pair in (("no SE", "standard"), ("standard", "no SE")))
    np.testing.assert_allclose(turned.panels[0].series[0].x, -usual.panels[0].series[0].x)
    with pytest.raises(ReportError, match="Unknown variant 'r=5'"):
        classes(study, TOP1, ("r=5", "no SE"))
    with pytest.raises(ReportError, match="twice"):
        classes(study, TOP1, ("standard", "standard"))


def test_trials_without_predictions_or_of_other_images_are_refused(
    predicted: Callable, write_predictions: Callable
) -> None:
    records, _ = predicted(1)
    with pytest.raises(ReportError, match="No trial of standard has predictions"):
        classes(group_variants(records.assign(folder=[records["folder"][0], ""])), TOP1)
    other = write_predictions("other", np.ones(200, bool), first=7)
    with pytest.raises(ReportError, match="different images"):
        classes(group_variants(records.assign(folder=[records["folder"][0], other])), TOP1)
    with pytest.raises(ReportError, match="top-1 and top-5"):
        classes(group_variants(records), "test/loss")


@pytest.mark.filterwarnings("error")
def test_errors_that_no_seed_changes_have_no_p(study: Callable[..., pd.DataFrame], write_predictions: Callable) -> None:
    correct = np.ones((2, 3, 70), dtype=bool)
    correct[0, :, 0] = False  # a seventh of class 0 in all seeds: in float64 the deviation of such means is not 0
    correct[1, :, [0, 10]] = False
    correct[:, :, 1] = False
    correct[1, 0, 11] = False  # of class 1, the second variant varies and the first does not
    records = study([({"insertion": "none"}, [3.0] * 3), ({"reduction": 4}, [5.0] * 3)])
    folders = [write_predictions(f"t{v}{s}", correct[v, s]) for v in range(2) for s in range(3)]
    found = class_differences(group_variants(records.assign(folder=folders)), TOP1, 1, 0)
    np.testing.assert_allclose(found.mean[:2], [100 / 7, 100 / 21])
    assert np.isnan(found.p[0]) and np.isnan(found.half_width[0])
    expected = stats.t.ppf(0.975, 2) * (100 / 7) / 3  # of values 2, 1, 1 the standard error is a third
    np.testing.assert_allclose(found.half_width[1], expected)
