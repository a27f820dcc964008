"""The ablation table: who is compared with whom, and that every number is right or said to be missing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import special, stats

from se_lab.report import Evidence, ablation_table, filter_records, pivot_table
from se_lab.report.dunnett import dunnett_quantile

Make = Callable[..., pd.DataFrame]
TOP1 = "test/top1_error"
BASE, R4 = [8.0, 8.4, 8.2], [7.0, 7.5, 7.2]  # errors of the reduction study in conftest


def row(table, variant: str) -> pd.Series:
    return table.data.set_index("variant").loc[variant]


def test_variants_come_in_the_specs_order_with_the_baseline_first(study: Make) -> None:
    records = study([({"reduction": 8}, [7.0]), ({"reduction": 2}, [7.1]), ({"insertion": "none"}, [8.0])])
    assert list(ablation_table(records).data["variant"]) == ["no SE", "r=8", "r=2"]


def test_mean_and_interval_are_those_of_scipy(reduction_study: pd.DataFrame) -> None:
    r4 = row(ablation_table(reduction_study), "r=4")
    share = np.mean(R4) / 100
    low, high = stats.t.interval(0.95, 2, special.logit(share), stats.sem(R4) / 100 / (share * (1 - share)))
    assert r4[TOP1] == pytest.approx(np.mean(R4))
    assert r4[[f"{TOP1}:low", f"{TOP1}:high"]].tolist() == pytest.approx(100 * special.expit([low, high]))
    assert r4[f"{TOP1}:std"] == pytest.approx(np.std(R4, ddof=1))
    assert r4["n"] == 3


def test_the_standard_deviation_may_stand_beside_a_mean_and_another_word_is_refused(
    reduction_study: pd.DataFrame,
) -> None:
    table = ablation_table(reduction_study, evidence=Evidence(spread="std"))
    assert f"7.23 ± {np.std(R4, ddof=1):.2f}" in table.render("markdown")
    assert "Means are given with standard deviations over seeds." in table.notes
    with pytest.raises(ValueError, match="did you mean 'std'"):
        ablation_table(reduction_study, evidence=Evidence(spread="sd"))


@pytest.mark.parametrize("images", [359, None])
def test_equal_errors_have_the_interval_of_the_images_they_are_counted_on(study: Make, images: int | None) -> None:
    zero, some = [0.0] * 3, [100 * k / 359 for k in (2, 2, 3)]
    table = ablation_table(study([({"insertion": "none"}, some), ({}, zero)], test_images=images))
    low, high = row(table, "standard")[[f"{TOP1}:low", f"{TOP1}:high"]]
    if images is None:
        assert np.isnan([low, high]).all()
    else:
        exact = stats.binomtest(0, images).proportion_ci(method="exact")
        assert [low, high] == pytest.approx([100 * exact.low, 100 * exact.high])
    assert "0.00 ± 0.00" not in table.render("markdown")
    assert any(note.startswith("Equal for all seeds") and "standard (test top-1 error)" in note for note in table.notes)


def test_the_difference_and_its_interval_are_those_of_statsmodels_with_seeds_as_blocks(
    reduction_study: pd.DataFrame,
) -> None:
    long = reduction_study.assign(y=reduction_study[TOP1], r=reduction_study["model.se.reduction"].fillna(0))
    fit = smf.ols("y ~ C(r) + C(seed)", long).fit()
    for records in (reduction_study, reduction_study.sample(frac=1, random_state=3)):
        table = ablation_table(records)
        r4 = row(table, "r=4")
        assert r4[f"{TOP1}:difference"] == pytest.approx(np.mean(R4) - np.mean(BASE))
        # 3.02: Dunnett's two-sided 5 % point for 4 comparisons and 8 degrees of freedom (1964)
        assert r4[f"{TOP1}:difference:ci95"] == pytest.approx(3.02 * fit.bse["C(r)[T.4.0]"], rel=0.003)
        assert any("a common variance (Dunnett); seeds as blocks" in note for note in table.notes)


def test_the_other_models_are_a_flag_and_a_wrong_one_is_refused(reduction_study: pd.DataFrame) -> None:
    r4 = row(ablation_table(reduction_study, evidence=Evidence(model="paired")), "r=4")
    pairs = np.subtract(R4, BASE)
    sidak = stats.t.isf((1 - 0.95 ** (1 / 4)) / 2, 2)
    assert r4[f"{TOP1}:difference:ci95"] == pytest.approx(sidak * stats.sem(pairs))
    with pytest.raises(ValueError, match="did you mean 'paired'"):
        ablation_table(reduction_study, evidence=Evidence(model="pared"))


def test_a_margin_gives_verdicts_and_a_contrast_compares_two_variants(reduction_study: pd.DataFrame) -> None:
    table = ablation_table(reduction_study, evidence=Evidence(margin=1.0, contrasts=[("r=8", "r=2")]))
    verdict = table.data.set_index("variant")["verdict"]
    assert verdict["r=4"] == "better"
    assert verdict["r=2"] == "equivalent"
    assert verdict["no SE"] == ""
    without = ablation_table(reduction_study, columns=["verdict"]).data.set_index("variant")["verdict"]
    assert without["r=2"] == "undecided"
    # by hand: (7.6 + 8.3 + 7.7 − 7.9 − 8.5 − 7.8)/3 = −0.2
    note = next(note for note in table.notes if note.startswith("r=8 against r=2"))
    assert "−0.20 ± " in note
    assert note.endswith("points, equivalent at 1.")
    with pytest.raises(ValueError, match="Unknown variant 'r=9'"):
        ablation_table(reduction_study, evidence=Evidence(contrasts=[("r=8", "r=9")]))


def test_the_table_of_a_sweep_that_grew_keeps_the_level_of_its_last_look(reduction_study: pd.DataFrame) -> None:
    usual, grew = (ablation_table(records) for records in (reduction_study, reduction_study.assign(look_level=0.0158)))
    half = [row(table, "r=4")[f"{TOP1}:difference:ci95"] for table in (usual, grew)]
    dunnett = [dunnett_quantile(level, 8.0, (0.707,), (4,)) for level in (0.95, 1 - 0.0158)]
    assert half[1] / half[0] == pytest.approx(dunnett[1] / dunnett[0], rel=1e-3)
    assert any("± is a simultaneous 98.42 % interval for all differences" in note for note in grew.notes)
    assert any("Seeds were added until" in note and "0.016, not 0.05" in note for note in grew.notes)


def test_ties_share_the_bold_of_the_best(study: Make) -> None:
    errors = [7.0, 7.1, 7.2]
    records = study(
        [({"insertion": "none"}, [8.0, 8.1, 8.2]), ({"reduction": 4}, errors), ({"reduction": 8}, errors[::-1])]
    )
    assert list(ablation_table(records).data[f"{TOP1}:best"]) == [False, True, True]


def test_a_missing_seed_leaves_the_other_pairs_and_is_named(reduction_study: pd.DataFrame) -> None:
    records = reduction_study[~((reduction_study["model.se.reduction"] == 4) & (reduction_study["seed"] == 1))]
    table = ablation_table(records)
    r4 = row(table, "r=4")
    assert (r4["n"], r4[f"{TOP1}:pairs"]) == (2, 2)
    # Seeds are no block here (F test, p > 0.01), so all three of the baseline count.
    assert r4[f"{TOP1}:difference"] == pytest.approx((7.0 + 7.2) / 2 - np.mean(BASE))
    assert any("Missing seeds" in note and "r=4 (1)" in note for note in table.notes)


def test_a_failed_trial_is_left_out_and_named_with_its_error(reduction_study: pd.DataFrame) -> None:
    failed = (reduction_study["model.se.reduction"] == 2) & (reduction_study["seed"] == 2)
    reduction_study.loc[failed, ["status", "error", TOP1]] = ["failed", "RuntimeError: boom", 99.0]
    table = ablation_table(reduction_study)
    assert row(table, "r=2")[TOP1] == pytest.approx((7.9 + 8.5) / 2)
    assert any("failed" in note and "r=2, seed 2 (RuntimeError: boom)" in note for note in table.notes)
    assert "2/3 finished" in next(line for line in table.render("markdown").splitlines() if line.startswith("| 2 "))
    # the worst finished trial of the table has 8.6: (7.9 + 8.5 + 8.6)/3
    assert row(table, "r=2")[f"{TOP1}:bound"] == pytest.approx(25 / 3)
    assert any("r=2 (2/3 finished): 8.20, bound 8.33" in note for note in table.notes)


def test_a_variant_whose_failed_seeds_could_undo_its_lead_is_not_bold(reduction_study: pd.DataFrame) -> None:
    r4 = reduction_study["model.se.reduction"] == 4
    assert row(ablation_table(reduction_study), "r=4")[f"{TOP1}:best"]
    more = reduction_study[r4].assign(seed=[3, 4, 5], status="failed", trial_id=["a", "b", "c"], **{TOP1: np.nan})
    table = ablation_table(pd.concat([reduction_study, more], ignore_index=True))
    assert row(table, "r=4")[f"{TOP1}:bound"] == pytest.approx((7.0 + 7.5 + 7.2 + 3 * 8.6) / 6)  # 7.92, still better
    assert row(table, "r=4")[f"{TOP1}:best"]
    worse = pd.concat([reduction_study, *(more.assign(seed=more["seed"] + k, trial_id=more["trial_id"] + str(k))
                                          for k in range(0, 12, 3))], ignore_index=True)  # fmt: skip
    assert row(ablation_table(worse), "r=4")[f"{TOP1}:bound"] > np.mean(BASE)
    assert not row(ablation_table(worse), "r=4")[f"{TOP1}:best"]


def test_a_baseline_without_a_seed_costs_every_variant_that_pair(reduction_study: pd.DataFrame) -> None:
    records = reduction_study.drop(index=0)
    table = ablation_table(records)
    assert row(table, "r=4")["n"] == 3
    assert row(table, "r=4")[f"{TOP1}:pairs"] == 2
    assert any("r=4 (2 of 3)" in note for note in table.notes)


def test_a_variant_of_which_nothing_finished_stays_as_an_empty_row(reduction_study: pd.DataFrame) -> None:
    r8 = reduction_study["model.se.reduction"] == 8
    reduction_study.loc[r8, ["status", TOP1, "test/top5_error", "test/loss"]] = ["not started", np.nan, np.nan, np.nan]
    table = ablation_table(reduction_study)
    assert row(table, "r=8")["n"] == 0
    assert "–" in next(line for line in table.render("markdown").splitlines() if line.startswith("| 8 "))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_metric_that_is_not_finite_is_left_out_and_named(reduction_study: pd.DataFrame, value: float) -> None:
    reduction_study.loc[reduction_study["model.se.reduction"].eq(4) & reduction_study["seed"].eq(0), TOP1] = value
    table = ablation_table(reduction_study)
    assert row(table, "r=4")[TOP1] == pytest.approx((7.5 + 7.2) / 2)
    assert any(TOP1 in note and "r=4, seed 0" in note for note in table.notes)


def test_one_seed_has_no_interval_and_says_so(study: Make) -> None:
    table = ablation_table(study([({"insertion": "none"}, [8.0]), ({"reduction": 4}, [2.0])]))
    assert np.isnan(table.data[f"{TOP1}:low"]).all()
    assert not table.data[f"{TOP1}:best"].any()
    assert "±" not in table.render("markdown")
    assert any(note.startswith("One seed") for note in table.notes)


def test_without_a_baseline_there_are_no_differences_and_a_note(study: Make) -> None:
    table = ablation_table(study([({"reduction": 4}, [7.0, 7.1]), ({"reduction": 8}, [7.2, 7.3])]))
    assert "Δ" not in table.render("markdown")
    assert any("there is no baseline" in note for note in table.notes)


def test_only_a_best_whose_interval_excludes_zero_is_bold(reduction_study: pd.DataFrame) -> None:
    bold = ablation_table(reduction_study).data.set_index("variant")[f"{TOP1}:best"]
    assert list(bold[bold].index) == ["r=4"]
    uncertain = reduction_study[reduction_study["model.se.reduction"] != 4]  # r=8 then leads, −0.33 ± 0.52
    assert not ablation_table(uncertain).data[f"{TOP1}:best"].any()


def test_top5_is_left_out_where_it_was_not_measured(reduction_study: pd.DataFrame) -> None:
    assert "top-5 error" in ablation_table(reduction_study).render("markdown")
    for records in (
        reduction_study.drop(columns="test/top5_error"),
        reduction_study.assign(**{"test/top5_error": None}),
    ):
        assert "top-5" not in ablation_table(records).render("markdown")


def test_costs_are_the_variants_and_time_is_the_median_of_its_trials(reduction_study: pd.DataFrame) -> None:
    reduction_study.loc[reduction_study["seed"] == 2, "step_ms"] = 100.0
    data = ablation_table(reduction_study).data.set_index("variant")
    assert data.at["r=4", "params"] == 272_474 + 16_384
    assert data.at["r=4", "step_ms"] == 13.5  # of 12.5, 13.5 and 100


def test_a_cost_that_differs_between_seeds_is_a_warning(reduction_study: pd.DataFrame) -> None:
    reduction_study.loc[4, "params"] += 1
    assert any("params differs between the seeds of r=2" in note for note in ablation_table(reduction_study).notes)


def test_several_code_versions_are_a_warning(reduction_study: pd.DataFrame) -> None:
    assert not any("code versions" in note for note in ablation_table(reduction_study).notes)
    reduction_study.loc[3, "code_version"] = "def5678"
    notes = ablation_table(reduction_study).notes
    assert any("2 code versions" in note and "def5678 (1)" in note for note in notes)


def test_two_versions_of_a_data_set_are_refused(reduction_study: pd.DataFrame) -> None:
    reduction_study.loc[3:5, "data_digest"] = "another"
    with pytest.raises(ValueError, match=r"mix 2 versions of the data of digits.*another \(3 trials\)"):
        ablation_table(reduction_study)
    assert len(ablation_table(filter_records(reduction_study, {"data_digest": "another"})).data) == 1


def test_two_data_sets_are_two_groups_and_each_has_its_baseline(study: Make) -> None:
    errors = {"digits": (BASE, R4), "mnist": ([1.0, 1.2, 1.1], [0.9, 1.3, 0.8])}
    records = study(
        [
            ({"data.name": name, **se}, values)
            for name, both in errors.items()
            for se, values in zip(({"insertion": "none"}, {"reduction": 4}), both, strict=True)
        ]
    )
    table = ablation_table(records.assign(data_digest="of " + records["data.name"]))
    assert list(table.data["variant"]) == ["digits, no SE", "digits, standard", "mnist, no SE", "mnist, standard"]
    gains = [np.mean(se) - np.mean(base) for base, se in errors.values()]
    np.testing.assert_allclose(table.data[f"{TOP1}:difference"].dropna(), gains)
    assert any(f"standard, mean over 2 groups: {np.mean(gains):.2f}".replace("-", "−") in note for note in table.notes)


def test_empty_records_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        ablation_table(pd.DataFrame())


def test_no_finished_trial_is_refused_with_what_there_is(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="15 running"):
        ablation_table(reduction_study.assign(status="running"))


def test_an_unknown_metric_or_column_is_refused_with_what_there_is(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"'test/top2_error'.*test/top1_error"):
        ablation_table(reduction_study, metric="test/top2_error")
    with pytest.raises(ValueError, match="did you mean 'params'"):
        ablation_table(reduction_study, columns=["parms"])
    with pytest.raises(ValueError, match=r"Unknown column 'status'\.(?!.*status)"):  # one of records, not of tables
        ablation_table(reduction_study, columns=["status"])
    with pytest.raises(ValueError, match="is a setting"):
        ablation_table(reduction_study, columns=["optim.lr"])
    # a known column that these records do not have
    with pytest.raises(ValueError, match=r"No trial has the column .*images_per_s.* p_holm"):
        ablation_table(reduction_study, columns=["images_per_s"])


def test_a_metric_that_is_nan_everywhere_is_refused(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="No finished trial has a value of 'test/top1_error'"):
        ablation_table(reduction_study.assign(**{TOP1: np.nan}))


def test_p_values_say_the_smallest_that_the_seeds_allow(reduction_study: pd.DataFrame) -> None:
    table = ablation_table(reduction_study, columns=[TOP1, "difference", "p", "p_holm"])
    r4 = row(table, "r=4")
    assert r4["p"] == 0.25  # 2 of 2^3 sign patterns: all three differences have one sign
    assert r4["p_holm"] == 1.0  # 4 comparisons × 0.25
    assert np.isnan(row(table, "no SE")["p"])
    assert any("is at least 0.25, so no difference can reach 0.05" in note for note in table.notes)


def test_detect_says_how_many_seeds_a_difference_needs(reduction_study: pd.DataFrame) -> None:
    from statsmodels.stats.power import TTestPower

    table = ablation_table(reduction_study, evidence=Evidence(detect=0.3, model="paired"))
    pairs = np.subtract([7.6, 8.3, 7.7], BASE)  # r=8 against the baseline
    sds = np.std(pairs, ddof=1) * np.sqrt([1, 2 / stats.chi2.ppf(0.95, 2), 2 / stats.chi2.ppf(0.05, 2)])
    expected = [np.ceil(TTestPower().solve_power(effect_size=0.3 / sd, power=0.8, alpha=0.05)) for sd in sds]
    assert row(table, "r=8")[["seeds_needed", "seeds_needed:low", "seeds_needed:high"]].tolist() == expected
    assert f"{expected[0]:.0f} ({expected[1]:.0f}–{expected[2]:.0f})" in table.render("markdown")
    # the joint model has the variance of all rows: 4 · (n − 1) degrees of freedom for its five variants and seeds
    joint = row(ablation_table(reduction_study, evidence=Evidence(detect=0.3)), "r=8")
    long = reduction_study.assign(y=reduction_study[TOP1], r=reduction_study["model.se.reduction"].fillna(0))
    sd = np.sqrt(2 * smf.ols("y ~ C(r) + C(seed)", long).fit().mse_resid)
    power = {n: stats.nct.sf(stats.t.ppf(0.975, 4 * (n - 1)), 4 * (n - 1), 0.3 / sd * np.sqrt(n)) for n in range(2, 60)}
    assert joint["seeds_needed"] == next(n for n, share in power.items() if share >= 0.8)
    with pytest.raises(ValueError, match="detect="):
        ablation_table(reduction_study, columns=[TOP1, "seeds_needed"])


def test_a_difference_that_is_the_same_for_every_seed_is_not_beyond_doubt(study: Make) -> None:
    records = study([({"insertion": "none"}, [8.0, 8.2, 8.1]), ({"reduction": 4}, [7.9, 8.1, 8.0])])
    table = ablation_table(records, evidence=Evidence(detect=0.1, model="paired"))
    assert not table.data[f"{TOP1}:best"].any()
    assert table.data["seeds_needed"].isna().all()  # no spread was seen to tell them from
    assert any(
        note.startswith("No number of seeds, as all seeds have the same difference") and note.endswith("standard.")
        for note in table.notes
    )


def test_a_higher_is_better_metric_has_its_best_at_the_top(study: Make) -> None:
    records = study(
        [({"insertion": "none"}, [8.0, 8.1]), ({"reduction": 4}, [9.0, 9.12]), ({"reduction": 8}, [8.0, 8.2])]
    )
    records["test/accuracy"] = records[TOP1]
    best = ablation_table(records, metric="test/accuracy").data.set_index("variant")["test/accuracy:best"]
    assert list(best[best].index) == ["r=4"]


def test_a_pivot_has_one_key_down_and_one_across(study: Make) -> None:
    variants = [
        ({"model.backbone": name, **se}, [base + step, base + 1.02 * step + 0.2])
        for name, base in (("a", 8.0), ("b", 6.0))
        for se, step in (({"insertion": "none"}, 0.0), ({"reduction": 4}, -1.0), ({"reduction": 8}, -0.5))
    ]
    table = pivot_table(study(variants), "model.se.reduction", "model.backbone")
    assert list(table.data["variant"]) == ["no SE", "4", "8"]
    np.testing.assert_allclose(table.data["a"], [8.1, 7.09, 7.595])
    np.testing.assert_allclose(table.data["b"], [6.1, 5.09, 5.595])
    # both seeds differ by nearly the same, −1 and −1.02, so r=4 leads beyond doubt
    assert table.render("markdown").count("**7.09 (6.03–8.32)**") == 1  # logit(0.0709) ± 12.706 · 0.0009/0.0709/0.9291
    assert table.title == "test top-1 error (%) by reduction and backbone"


def test_a_pivot_over_two_se_keys_names_the_baseline_below(study: Make) -> None:
    variants = [({"reduction": r, "squeeze": s}, [r + len(s), r + len(s) + 1]) for r in (4, 8) for s in ("avg", "max")]
    records = study([({"insertion": "none"}, [9.0, 9.0]), *variants[:3]])
    table = pivot_table(records, "model.se.reduction", "model.se.squeeze")
    assert list(table.data["variant"]) == ["4", "8"]
    assert np.isnan(table.data["max"].iloc[1])
    assert "no SE: 9.00 %." in table.notes


def test_a_pivot_that_would_pool_variants_is_refused(study: Make) -> None:
    variants = [({"reduction": 4, "squeeze": s, "stages": t}, [7.0]) for s in ("avg", "max") for t in ("all", [2])]
    with pytest.raises(ValueError, match=r"also differ in model\.se\.stages"):
        pivot_table(study(variants), "model.se.reduction", "model.se.squeeze")


def test_costs_over_the_plain_net_are_those_of_the_units(reduction_study: pd.DataFrame) -> None:
    """ResNet-50 (published.yaml, `counted`): 25,557,032 parameters, of SE units with r = 16 2,514,944 more."""
    costs = {"params": 28_071_976, "params_se": 2_514_944, "macs": 3_867, "macs_se": 9}
    table = ablation_table(reduction_study.assign(**costs), columns=[TOP1, "params_over", "macs_over"])
    assert row(table, "r=4")["params_over"] == pytest.approx(100 * 2_514_944 / 25_557_032)
    assert row(table, "r=4")["macs_over"] == pytest.approx(100 * 9 / 3_858)
    assert "9.84" in table.render("markdown")
    with pytest.raises(ValueError, match="macs_over needs the column 'macs_se'"):
        ablation_table(reduction_study.assign(**costs).drop(columns="macs_se"), columns=[TOP1, "macs_over"])


def test_a_title_counts_one_epoch_in_the_singular(study: Callable[..., pd.DataFrame]) -> None:
    records = study([({"reduction": 4}, [8.0])], **{"train.epochs": 1})
    assert ablation_table(records).title == "cifar_resnet20 on digits, 1 epoch, 1 seed"
