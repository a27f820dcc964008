"""The joint model: equal to SciPy and statsmodels, and its intervals hold together in simulated tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from se_lab.report import joint
from se_lab.report.dunnett import dunnett_quantile


def table(variants: int, seeds: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(20, 1, (variants, seeds))


def one_group(values: np.ndarray, model: str = "joint") -> joint.Comparison:
    nothing = np.zeros(len(values), dtype=np.intp)
    return joint.compare(values, nothing, nothing, model)


def p_values(values: np.ndarray, model: str = "joint") -> np.ndarray:
    nothing = np.zeros(len(values), dtype=np.intp)
    return joint.table_p_values(values, nothing, nothing, model)


# Two-sided 5 % points of Dunnett (1964), by number of comparisons and degrees of freedom
@pytest.mark.parametrize(
    ("k", "df", "point"), [(1, 10, 2.23), (2, 10, 2.57), (4, 10, 2.89), (3, 5, 3.29), (2, 5, 3.03)]
)
def test_quantiles_are_those_that_dunnett_printed(k: int, df: int, point: float) -> None:
    assert dunnett_quantile(0.95, df, (float(np.sqrt(0.5)),), (k,)) == pytest.approx(point, abs=0.005)


@pytest.mark.parametrize("loading", [0.5, 0.7071, 0.999, 1.0])
@pytest.mark.parametrize("df", [2, 9])
def test_the_quantile_of_one_comparison_is_students(df: int, loading: float) -> None:
    assert dunnett_quantile(0.95, df, (loading,), (1,)) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-6)


def test_pooled_intervals_and_p_are_scipys_dunnett_for_unequal_numbers_of_seeds() -> None:
    values = table(5, 8)
    values[3] += 2.0
    values[1, 5:] = values[4, 3:] = np.nan
    ours = one_group(values, "pooled")
    rows = [row[~np.isnan(row)] for row in values]
    theirs = stats.dunnett(*rows[1:], control=rows[0], random_state=np.random.default_rng(0))
    interval = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(ours.mean[1:] - ours.half_width[1:], interval.low, atol=0.02)
    np.testing.assert_allclose(ours.mean[1:] + ours.half_width[1:], interval.high, atol=0.02)
    np.testing.assert_allclose(p_values(values, "pooled")[1:], theirs.pvalue, atol=0.003)
    assert np.isnan(ours.half_width[0])


def test_blocks_give_the_estimates_and_errors_of_least_squares_where_cells_are_missing() -> None:
    values = table(4, 7) + 5 * np.random.default_rng(9).normal(size=7)
    values[0, 2] = values[2, :2] = np.nan
    ours = one_group(values)
    assert ours.blocked[1:].all()
    variant, seed = np.nonzero(~np.isnan(values))
    fit = smf.ols("y ~ C(v) + C(s)", pd.DataFrame({"y": values[variant, seed], "v": variant, "s": seed})).fit()
    np.testing.assert_allclose(ours.mean[1:], fit.params[[f"C(v)[T.{i}]" for i in (1, 2, 3)]])
    np.testing.assert_allclose(ours.error[1:], fit.bse[[f"C(v)[T.{i}]" for i in (1, 2, 3)]])
    assert (ours.df[1:] == fit.df_resid).all()


def test_a_row_whose_variance_stands_out_takes_welchs_interval_and_the_others_the_shared_variance() -> None:
    values = table(5, 10) * [[1.0], [1.0], [12.0], [1.0], [1.0]]
    ours = one_group(values)
    assert list(ours.variance[1:]) == ["shared", "row", "shared", "shared"]
    welch = stats.ttest_ind(values[2], values[0], equal_var=False)
    assert ours.mean[2] / ours.error[2] == pytest.approx(welch.statistic)
    assert ours.df[2] == pytest.approx(welch.df)
    assert p_values(values)[2] == pytest.approx(1 - (1 - welch.pvalue) ** 4)  # Šidák
    pooled = np.sqrt(values.var(axis=1, ddof=1).mean() * 2 / 10)
    assert ours.error[1] == pytest.approx(pooled)


def test_a_baseline_whose_variance_stands_out_has_its_own_beside_that_of_the_variants() -> None:
    values = table(5, 10) * [[12.0], [1.0], [1.0], [1.0], [1.0]]
    values[2, 7:] = np.nan
    ours = one_group(values)
    assert set(ours.variance[1:]) == {"baseline"}
    rows = [row[~np.isnan(row)] for row in values]
    freedom = sum(len(row) - 1 for row in rows[1:])
    shared = sum((len(row) - 1) * row.var(ddof=1) for row in rows[1:]) / freedom
    base = rows[0].var(ddof=1) / 10
    error = np.sqrt(base + shared / np.array([10, 7, 10, 10]))
    np.testing.assert_allclose(ours.error[1:], error)
    np.testing.assert_allclose(ours.df[1:], error**4 / (base**2 / 9 + (error**2 - base) ** 2 / freedom), atol=0.1)
    # the limit of the largest |t|, drawn: the variants share the baseline's mean and both estimates of a variance
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200_000, 4)) * (error**2 - base) ** 0.5 + rng.normal(size=(200_000, 1)) * base**0.5
    scale = np.sqrt(rng.chisquare(ours.df[1], 200_000) / ours.df[1])
    limit = np.quantile(np.abs(z / error).max(1) / scale, 0.95)
    assert ours.half_width[1] / ours.error[1] == pytest.approx(limit, rel=0.02)


@pytest.mark.parametrize("place", [0, -1])
def test_one_row_three_times_as_variable_raises_no_more_than_eight_per_cent_alarms(place: int) -> None:
    rng, rows = np.random.default_rng(5), np.zeros(21, dtype=np.intp)
    values = rng.normal(size=(250, 21, 5))
    values[:, place] *= 3
    alarms = {
        model: np.mean([joint.compare(one, rows, rows, model).excludes_zero.any() for one in values])
        for model in ("joint", "pooled")
    }
    assert alarms["joint"] < 0.08 < alarms["pooled"]


def test_a_variant_that_shares_no_seed_with_the_rest_is_not_compared_within_seeds() -> None:
    values = np.full((4, 9), np.nan)
    values[:3, :5] = table(3, 5) + 9 * np.arange(5)
    values[3, 5:] = table(1, 4)
    ours = one_group(values)
    assert ours.blocked[1]
    assert np.isfinite(ours.half_width[1:3]).all()
    assert np.isnan(ours.mean[3])
    assert np.isnan(ours.half_width[3])


def test_the_mean_effect_over_nets_is_that_of_statsmodels() -> None:
    effects, errors = np.array([-0.8, -0.3, -1.4, -0.6]), np.array([0.2, 0.15, 0.3, 0.1])
    theirs = combine_effects(effects, errors**2, method_re="iterated", use_t=True)
    mean, half, spread = joint.pooled_effect(effects, errors)
    low, high = theirs.conf_int(use_t=True)[3][:2]
    assert mean == pytest.approx(theirs.mean_effect_re, rel=1e-4)
    assert half == pytest.approx((high - low) / 2, rel=1e-3)
    assert spread**2 == pytest.approx(theirs.tau2, rel=1e-3)


@pytest.mark.parametrize(("variants", "seeds", "shared"), [(2, 5, 0.0), (6, 3, 0.0), (6, 3, 1.0)])
def test_intervals_hold_together_in_simulated_tables(variants: int, seeds: int, shared: float) -> None:
    rng = np.random.default_rng(4)
    rows = np.zeros(variants, dtype=np.intp)
    alarms = 0
    for _ in range(400):
        values = rng.normal(size=(variants, seeds)) + shared * rng.normal(size=seeds)
        alarms += joint.compare(values, rows, rows).excludes_zero.any()
    assert alarms / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_a_variant_without_a_finished_seed_costs_a_contrast_nothing():
    errors = np.random.default_rng(0).normal(2, 0.4, (4, 2))
    empty = np.full((2, 2), np.nan)
    group = np.zeros(6, dtype=int)
    for model in ("pooled", "joint"):
        alone = joint.contrast(errors, (1, 2), group[:4], model, 0.95)
        beside = joint.contrast(np.vstack([errors, empty]), (1, 2), group, model, 0.95)
        assert beside.half_width == pytest.approx(alone.half_width) and beside.df == pytest.approx(alone.df)
