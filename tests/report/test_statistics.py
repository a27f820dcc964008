"""Statistics: equal to SciPy's and statsmodels' on random data, and honest in simulated studies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from se_lab.report import statistics

STUDIES = 10_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def three_sigma(rate: float, trials: int = STUDIES) -> float:
    return 3 * np.sqrt(rate * (1 - rate) / trials)


def test_t_interval_equals_scipys_with_missing_seeds_left_out() -> None:
    values = rng().normal(20, 3, (50, 8))
    values[rng(1).random((50, 8)) < 0.3] = np.nan
    estimate = statistics.t_interval(values)
    for row, mean, half, n in zip(values, *estimate, strict=True):
        seen = row[~np.isnan(row)]
        assert n == len(seen)
        if n >= 2:
            expected = stats.ttest_1samp(seen, 0).confidence_interval(0.95)
            np.testing.assert_allclose([mean - half, mean + half], expected)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    estimate = statistics.t_interval([[3.0, np.nan], [np.nan, np.nan]])
    assert estimate.mean[0] == 3.0
    assert np.isnan(estimate.half_width).all()
    assert np.isnan(estimate.mean[1])
    assert list(estimate.n) == [1, 0]
    assert not estimate.excludes_zero.any()


def test_differences_of_whole_images_do_not_alarm_because_few_seeds_agree() -> None:
    images = rng().integers(-1, 2, (STUDIES, 2))  # −1, 0 or 1 image of 359: the mean is truly 0
    estimate = statistics.t_interval(100 * images / 359)
    agree = (images[:, 0] == images[:, 1]) & (images[:, 0] != 0)
    assert agree.mean() > 0.2  # these have an interval of no width
    assert estimate.excludes_zero.mean() < 0.05


def test_error_intervals_stay_within_bounds_and_cover_errors_near_zero() -> None:
    """Three seeds of 0.75 % error on 359 images, whose true errors spread by 0.25 points."""
    generator = rng(1)
    truth = generator.normal(0.75, 0.25, (STUDIES, 3)).clip(0.05)
    counted = 100 * generator.binomial(359, truth / 100) / 359
    bounds = statistics.error_interval(counted, 359)
    assert (bounds.low >= 0).all() and (bounds.high <= 100).all()
    assert np.mean((bounds.low <= 0.75) & (bounds.high >= 0.75)) >= 0.94
    plain = statistics.t_interval(counted)
    assert np.mean(plain.mean < plain.half_width) > 0.3  # those would reach below zero


def test_error_intervals_of_many_even_seeds_are_students() -> None:
    values = rng().normal(25, 0.1, 50)
    bounds, expected = statistics.error_interval(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert [bounds.low, bounds.high] == pytest.approx([expected.low, expected.high], abs=2e-4)


def test_paired_difference_equals_scipys_and_drops_half_pairs() -> None:
    ours, base = rng().normal(20, 1, (2, 9))
    ours[2] = base[5] = np.nan
    both = ~np.isnan(ours) & ~np.isnan(base)
    expected = stats.ttest_rel(ours[both], base[both]).confidence_interval(0.95)
    estimate = statistics.paired_difference(ours, base)
    assert estimate.n == 7
    np.testing.assert_allclose(
        [estimate.mean - estimate.half_width, estimate.mean + estimate.half_width], [expected.low, expected.high]
    )


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
def test_exact_sign_flip_equals_scipys_exact_permutation_test(n: int) -> None:
    for seed in range(5):
        differences = rng(seed).normal(0.5, 1, n)
        expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
        test = statistics.sign_flip(differences)
        assert test.exact
        assert test.p == pytest.approx(expected.pvalue)
        assert test.smallest == 2 / 2**n


def test_sign_flip_of_rounded_differences_counts_ties() -> None:
    # By hand: sums of ±0.1 ±0.2 ±0.3 are ±0.6, ±0.4, ±0.2, 0, 0; of the 8, |sum| ≥ 0.4 in 4, ≥ 0 in 8.
    assert statistics.sign_flip([0.1, -0.2, -0.3]).p == 0.5
    assert statistics.sign_flip([0.1, 0.2, -0.3]).p == 1.0


def test_sign_flip_takes_rows_of_different_lengths() -> None:
    rows = np.full((4, 7), np.nan)
    rows[0, :7], rows[1, 2:5], rows[2, 0] = rng().normal(1, 1, 7), [0.4, 0.6, 0.5], 0.3
    test = statistics.sign_flip(rows)
    assert test.p[0] == statistics.sign_flip(rows[0]).p
    assert list(test.p[1:3]) == [0.25, 1.0]  # all of one sign: 2 of 8 patterns, and 2 of 2
    assert np.isnan(test.p[3])
    np.testing.assert_array_equal(test.smallest, [2 / 128, 0.25, 1.0, np.nan])


def test_beyond_sixteen_seeds_patterns_are_drawn_and_agree_with_the_exact_p() -> None:
    differences = rng(4).normal(0.35, 1, 17)
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    drawn = statistics.sign_flip(differences, rng())
    assert not drawn.exact
    assert drawn.p == pytest.approx(exact, abs=three_sigma(exact, statistics.DRAWS))
    assert drawn.p == statistics.sign_flip(differences, rng()).p
    with pytest.raises(ValueError, match="generator"):
        statistics.sign_flip(differences)


def test_mcnemar_equals_statsmodels() -> None:
    for seed in range(20):
        first, second = rng(seed).random((2, 300)) < [[0.8], [0.85]]
        table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
        ours = statistics.mcnemar(first, second)
        assert ours.p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
        assert (ours.only_first, ours.only_second) == (table[0][1], table[1][0])


def test_mcnemar_of_equal_nets_is_one_and_of_unequal_lengths_refused() -> None:
    assert statistics.mcnemar([True, False], [True, False]).p == 1.0
    with pytest.raises(ValueError, match="arrays of the same shape"):
        statistics.mcnemar([True], [True, False])


@pytest.mark.parametrize("kind", ["signs", "continuous"])
def test_bootstrap_over_images_equals_scipys_percentile_bootstrap(kind: str) -> None:
    values = rng().choice([-1.0, 0.0, 1.0], 400, p=[0.15, 0.75, 0.1]) if kind == "signs" else rng().gamma(2, 1, 400)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, random_state=rng(1))
    low, high = expected.confidence_interval
    ours = statistics.bootstrap_images(values, rng(2))
    error = 0.06 * values.std() / np.sqrt(400)  # a 2.5 % quantile of 10,000 draws is good to ±0.027 deviations (1 σ)
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(low, abs=error * np.sqrt(2) * 1.5)
    assert ours.high == pytest.approx(high, abs=error * np.sqrt(2) * 1.5)


def test_bootstraps_refuse_what_they_cannot_draw_from() -> None:
    for values in ([], [[1.0]]):
        with pytest.raises(ValueError, match=r"\(N,\)"):
            statistics.bootstrap_images(values, rng())
    for values in ([1.0], [[]]):
        with pytest.raises(ValueError, match=r"\(S, N\)"):
            statistics.seeds_images_interval(values)


def test_seeds_by_images_has_the_mean_squares_of_statsmodels() -> None:
    generator = rng(3)
    values = generator.normal(size=(4, 30)) + generator.normal(size=(4, 1)) + generator.normal(size=(1, 30))
    seed, image = np.indices(values.shape)
    data = pd.DataFrame({"y": values.ravel(), "s": seed.ravel(), "i": image.ravel()})
    ms = anova_lm(smf.ols("y ~ C(s) + C(i)", data).fit())["mean_sq"].to_numpy()
    total = ms[0] + ms[1] - ms[2]
    df = total**2 / (ms[0] ** 2 / 3 + ms[1] ** 2 / 29 + ms[2] ** 2 / 87)
    ours = statistics.seeds_images_interval(values)
    assert ours.high - ours.estimate == pytest.approx(stats.t.ppf(0.975, df) * np.sqrt(total / 120))


def test_seeds_by_images_is_the_t_interval_where_all_images_are_alike() -> None:
    per_seed = np.array([0.3, -0.1, 0.5, 0.2])
    ours = statistics.seeds_images_interval(np.repeat(per_seed[:, None], 50, axis=1))
    low, high = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == (pytest.approx(low), pytest.approx(high))


def test_seeds_by_images_is_the_interval_over_images_where_all_seeds_are_alike() -> None:
    image = rng().choice([-1.0, 0.0, 1.0], 500, p=[0.2, 0.7, 0.1])
    both = statistics.seeds_images_interval(np.repeat(image[None], 5, axis=0))
    sem = image.std() / np.sqrt(500)
    assert both.high - both.estimate == pytest.approx(1.96 * sem, rel=0.03)


def test_holm_equals_statsmodels_and_passes_over_nan() -> None:
    for seed in range(6):
        p = rng(seed).random(12) ** 3
        np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1])
        gappy = np.insert(p, [0, 5], np.nan)
        np.testing.assert_allclose(statistics.holm(gappy)[~np.isnan(gappy)], multipletests(p, method="holm")[1])
        assert np.isnan(statistics.holm(gappy)[[0, 6]]).all()
    assert np.isnan(statistics.holm([np.nan])).all()


@pytest.mark.parametrize("difference", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_seeds_needed_equals_statsmodels(difference: float, power: float) -> None:
    sds = np.array([0.1, 0.3, 1.0])
    solver = TTestPower()
    for sd, n in zip(sds, statistics.seeds_needed(sds, difference, power), strict=True):
        assert solver.power(difference / sd, n, 0.05) >= power - 1e-9
        assert solver.power(difference / sd, n - 1, 0.05) < power


@pytest.mark.parametrize(("effect", "power"), [(5, 0.9), (10, 0.8), (20, 0.8), (20, 0.9), (60, 0.98), (60, 0.999)])
def test_seeds_needed_holds_where_the_spread_is_tiny(effect: float, power: float) -> None:
    def true_power(n: float) -> float:  # P(|Z + shift| > limit · √(χ²/df)), by integration over χ²
        limit, shift = stats.t.ppf(0.975, n - 1), effect * np.sqrt(n)
        v = (np.arange(200_000) + 0.5) / 200_000
        root = limit * np.sqrt(stats.chi2.ppf(v, n - 1) / (n - 1))
        return float(np.mean(stats.norm.sf(root - shift) + stats.norm.cdf(-root - shift)))

    n = statistics.seeds_needed(1.0, effect, power)
    assert true_power(float(n)) >= power
    assert n == 2 or true_power(float(n) - 1) < power


def test_seeds_needed_without_spread_is_two_and_of_no_difference_refused() -> None:
    np.testing.assert_array_equal(statistics.seeds_needed([0.0, np.nan], 0.1), [2, np.nan])
    with pytest.raises(ValueError, match="above 0"):
        statistics.seeds_needed(0.3, 0.0)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_t_intervals_cover_the_truth_in_95_percent_of_simulated_studies(n: int) -> None:
    estimate = statistics.t_interval(rng(n).normal(7.0, 2.0, (STUDIES, n)))
    covered = np.mean(np.abs(estimate.mean - 7.0) <= estimate.half_width)
    assert covered == pytest.approx(0.95, abs=0.01)


def test_paired_intervals_cover_and_are_narrower_where_pairs_correlate() -> None:
    shared = rng(1).normal(0, 1.0, (STUDIES, 4))
    base = 8 + shared + rng(2).normal(0, 0.3, shared.shape)
    ours = 7.6 + shared + rng(3).normal(0, 0.3, shared.shape)
    estimate = statistics.paired_difference(ours, base)
    assert np.mean(np.abs(estimate.mean + 0.4) <= estimate.half_width) == pytest.approx(0.95, abs=0.01)
    assert np.median(estimate.half_width) < np.median(statistics.t_interval(ours).half_width) / 2


@pytest.mark.parametrize(("n", "rate"), [(3, 0.0), (5, 0.0), (6, 1 / 32), (7, 3 / 64), (8, 6 / 128), (10, 25 / 512)])
def test_sign_flip_alarms_falsely_as_often_as_its_docstring_says(n: int, rate: float) -> None:
    # p is a multiple of 2/2^n: the largest one up to 0.05 is the alarm rate of an exact test
    p = statistics.sign_flip(rng(n).standard_cauchy((STUDIES, n))).p
    alarms = np.mean(p <= 0.05)
    assert alarms == pytest.approx(rate, abs=three_sigma(rate))
    assert alarms <= 0.05 + three_sigma(0.05)


@pytest.mark.parametrize("disagreements", [5, 6, 40, 400])
def test_mcnemar_never_alarms_falsely_in_more_than_5_percent(disagreements: int) -> None:
    # all that McNemar's test sees is how the disagreements divide: a fair coin where the nets are equally good
    wins = np.arange(disagreements + 1)
    p = np.array([_mcnemar_p(won, disagreements) for won in wins])
    rate = stats.binom.pmf(wins, disagreements, 0.5)[p <= 0.05].sum()
    assert rate <= 0.05
    if disagreements == 5:
        assert rate == 0
    if disagreements == 400:
        assert rate > 0.04


def _mcnemar_p(won: int, of: int) -> float:
    first = np.arange(of) < won
    return statistics.mcnemar(first, ~first).p


def test_holm_keeps_false_alarms_of_a_whole_table_below_5_percent() -> None:
    p = rng().random((2_000, 10))
    alarms = np.mean([(statistics.holm(row) <= 0.05).any() for row in p])
    assert alarms <= 0.05 + three_sigma(0.05, 2_000)
    assert np.mean((p <= 0.05).any(axis=1)) > 0.35  # what it is without


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_intervals_over_images_cover_the_truth_for_new_seeds_and_images(seeds: int) -> None:
    """Errors in points: 0.2 by seed, easy and hard images, noise of each; one seed: about that net on new images."""
    generator, studies, images = rng(seeds), 600, 300
    covered = 0
    for _ in range(studies):
        by_seed = generator.normal(0, 0.02, (seeds, 1))
        by_image = generator.normal(0, 0.3, (1, images))
        values = np.sign(np.round(by_seed + by_image + generator.normal(0, 0.2, (seeds, images)), 1)) * 0.5
        truth = 0.0
        if seeds == 1:  # the net's own rate on all images: P(x > 0.05) − P(x < −0.05)
            spread = np.hypot(0.3, 0.2)
            truth = 0.5 * float(
                stats.norm.sf(0.05, by_seed[0, 0], spread) - stats.norm.cdf(-0.05, by_seed[0, 0], spread)
            )
            interval = statistics.bootstrap_images(values[0], generator, draws=500)
        else:
            interval = statistics.seeds_images_interval(values)
        covered += interval.low <= truth <= interval.high
    assert covered / studies >= 0.95 - three_sigma(0.95, studies)
