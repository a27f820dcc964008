"""Ranks of variants, P(best), P(better) and rliable's quantities: against SciPy, and against draws made one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from se_lab.report import ablation_table
from se_lab.report.columns import ReportError
from se_lab.report.ranks import bootstrap_means, interquartile_mean, probability_of_improvement, summarize

Make = Callable[..., pd.DataFrame]
COLUMNS = ["rank", "p_best", "p_better", "p_improvement", "iqm"]


def test_the_probability_of_improvement_counts_the_pairs_of_trials_with_ties_as_halves() -> None:
    ours, base = np.array([7.0, 7.5, np.nan, 8.0]), np.array([8.0, 7.5, 9.0])
    pairs = [1.0 if a < b else 0.5 if a == b else 0.0 for a in ours[[0, 1, 3]] for b in base]
    assert probability_of_improvement(ours, base) == pytest.approx(np.mean(pairs))
    assert probability_of_improvement([1.0, 1.0], [1.0]) == 0.5
    assert np.isnan(probability_of_improvement([np.nan], [1.0]))


def test_the_interquartile_mean_leaves_out_a_quarter_on_each_side() -> None:
    values = np.array([1.0, 50.0, 3.0, 2.0, np.nan, 4.0, 5.0, 6.0, 7.0])
    middle = np.sort(values[~np.isnan(values)])[2:6]
    assert interquartile_mean(values) == pytest.approx(middle.mean())
    assert np.isnan(interquartile_mean([1.0, 2.0, 3.0]))


def test_drawn_means_are_spread_as_draws_of_seeds_and_images_made_one_by_one() -> None:
    rng = np.random.default_rng(0)
    trials = [100.0 * (rng.random((seeds, 60)) < rate) for seeds, rate in ((3, 0.2), (5, 0.3))]
    drawn = bootstrap_means(trials, rng, draws=6_000)
    single = []
    for _ in range(6_000):
        images = rng.integers(60, size=60)
        row = []
        for own in trials:
            by_seed = own[:, images].mean(axis=1)
            chosen = by_seed[rng.integers(len(own), size=len(own))].mean()
            row.append(by_seed.mean() + np.sqrt(len(own) / (len(own) - 1)) * (chosen - by_seed.mean()))
        single.append(row)
    assert drawn.mean(axis=0) == pytest.approx([own.mean() for own in trials], abs=0.3)
    assert drawn.std(axis=0) == pytest.approx(np.std(single, axis=0), rel=0.05)
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(np.corrcoef(np.transpose(single))[0, 1], abs=0.06)


def test_means_of_one_image_are_spread_as_the_standard_error_over_seeds() -> None:
    seeds = np.array([7.0, 7.9, 7.4, 8.2])[:, None]
    drawn = bootstrap_means([seeds], np.random.default_rng(0), draws=20_000)
    assert drawn.std() == pytest.approx(stats.sem(seeds[:, 0]), rel=0.03)


def test_ranks_and_probabilities_are_shares_of_the_draws_with_ties_shared() -> None:
    means = np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [1.0, 1.0, 3.0], [3.0, 2.0, 1.0]])
    low, high, best, better = summarize(means, baseline=0)
    ranks = np.array([stats.rankdata(row, method="min") for row in means])
    assert best == pytest.approx([(1 + 0 + 0.5 + 0) / 4, (0 + 1 + 0.5 + 0) / 4, 1 / 4])
    assert np.isnan(better[0]) and better[1:] == pytest.approx([(0 + 1 + 0.5 + 1) / 4, 1 / 4])
    assert (low == ranks.min(axis=0)).all() and (high == ranks.max(axis=0)).all()


def test_a_table_ranks_a_clear_winner_first_and_leaves_out_one_seed(study: Make) -> None:
    records = study([
        ({"insertion": "none"}, [8.0, 8.1, 8.2]), ({"reduction": 2}, [8.0, 8.1, 8.2]),
        ({"reduction": 4}, [5.0, 5.1, 5.2]), ({"reduction": 8}, [1.0]),
    ])  # fmt: skip
    table = ablation_table(records, columns=["test/top1_error", *COLUMNS])
    rows = table.data.set_index("variant")
    assert rows.loc["r=4", ["rank", "p_best", "p_better", "p_improvement"]].tolist() == ["1", 1.0, 1.0, 1.0]
    assert rows.loc["r=2", "rank"] == "2–3" and rows.loc["r=2", "p_better"] == pytest.approx(0.5, abs=0.03)
    assert rows.loc["r=8", "rank"] == "–" and np.isnan(rows.loc["r=8", "p_best"])
    assert any("bootstrap over seeds alone" in note for note in table.notes)
    assert "P(best)" in table.render("markdown")


def test_images_are_drawn_where_all_trials_have_the_same_ones(study: Make, write_predictions: Callable) -> None:
    right = np.ones((2, 200), dtype=bool)
    right[0, :10] = right[1, 10:18] = False  # no SE misses ten images, r=4 eight others, whatever the seed
    records = study([({"insertion": "none"}, [5.0, 5.0]), ({"reduction": 4}, [4.0, 4.0])])
    folders = [write_predictions(f"t{i}", right[i // 2], shuffle=i) for i in range(4)]
    with_images = ablation_table(records.assign(folder=folders), columns=["p_better"])
    missed = np.random.default_rng(0).multinomial(200, [10 / 200, 8 / 200, 182 / 200], size=100_000)
    expected = np.mean((missed[:, 1] < missed[:, 0]) + 0.5 * (missed[:, 1] == missed[:, 0]))
    assert with_images.data["p_better"][1] == pytest.approx(expected, abs=0.025)
    assert any("seeds and test images" in note for note in with_images.notes)
    alone = ablation_table(records.assign(folder=[*folders[:3], ""]), columns=["p_better"])
    assert alone.data["p_better"][1] == 1.0 and any("seeds alone" in note for note in alone.notes)


def test_a_metric_without_a_better_direction_has_no_ranks(study: Make) -> None:
    records = study([({"insertion": "none"}, [8.0, 8.1]), ({"reduction": 2}, [8.0, 8.2])], **{"test/odd": 1.0})
    with pytest.raises(ReportError, match="No ranks"):
        ablation_table(records, metric="test/odd", columns=["rank"])
