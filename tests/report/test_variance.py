"""Sources of variance: against statsmodels, chi squared by SciPy, and what must be said where nothing varies."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import yaml
from scipy import stats

from se_lab.report import ablation_table, variance_table
from se_lab.report.columns import ReportError
from se_lab.report.variance import SOURCES, component
from se_lab.spec.shipped import shipped
from tests.report.conftest import trial

TOP1 = "test/top1_error"
KEYS = ["model.init_seed", "data.order_seed", "data.split_seed", "model.rounding"]


@pytest.fixture
def grid() -> pd.DataFrame:
    """Make trials of a 3 × 2 × 2 × 2 grid of seeds, whose errors have an effect of each key and noise."""
    rng = np.random.default_rng(0)
    effects = [rng.normal(0, spread, 3) for spread in (0.6, 0.8, 0.3, 0.1)]
    rows = []
    for point in itertools.product(range(3), range(2), range(2), range(2)):
        error = 10 + sum(effect[at] for effect, at in zip(effects, point, strict=True)) + rng.normal(0, 0.2)
        rows.append(trial({"reduction": 4, **dict(zip(KEYS, point, strict=True))}, 0, error))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("key", KEYS)
def test_a_variance_is_the_residual_one_of_a_model_with_a_mean_for_each_set(grid: pd.DataFrame, key: str) -> None:
    rest = grid[[k for k in KEYS if k != key]].astype(str).agg("-".join, axis=1)
    fit = smf.ols("y ~ C(rest)", data=grid.assign(y=grid[TOP1], rest=rest)).fit()
    found = component(grid, TOP1, key)
    assert found.variance == pytest.approx(fit.mse_resid)
    assert found.df == fit.df_resid and found.trials == 24


def test_the_interval_covers_the_true_spread_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        errors = rng.normal(5.0, 0.7, 6)
        records = pd.DataFrame([trial({"model.init_seed": i}, 0, error) for i, error in enumerate(errors)])
        low, high = component(records, TOP1, "model.init_seed").limits()
        assert low == pytest.approx(np.sqrt(5 * errors.var(ddof=1) / stats.chi2.ppf(0.975, 5)))
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_shares_leave_floating_point_out_of_what_moves_with_it(grid: pd.DataFrame) -> None:
    table = variance_table(grid)
    rows = table.data.set_index("variant")
    variances = {name: component(grid, TOP1, key).variance for name, key in SOURCES.items()}
    floor = variances["floating point"]
    net = {name: max(value - floor, 0) if name != "floating point" else floor for name, value in variances.items()}
    assert rows["sd"][list(variances)].tolist() == pytest.approx(np.sqrt(list(variances.values())))
    assert rows["share"][list(net)].tolist() == pytest.approx([100 * v / sum(net.values()) for v in net.values()])
    assert "floating point" in table.render("terminal") and "share of variance" in table.render("markdown")


def test_test_images_add_the_variance_of_a_mean_over_images(
    grid: pd.DataFrame, write_predictions: Callable[..., str]
) -> None:
    right = np.arange(200) >= 20
    records = grid.iloc[:2].assign(folder=[write_predictions(f"t{i}", right) for i in range(2)])
    rows = variance_table(records).data.set_index("variant")
    assert rows.loc["test images", "sd"] == pytest.approx(stats.sem(100.0 * ~right))


def test_seeds_alone_are_no_sources(reduction_study: pd.DataFrame) -> None:
    with pytest.raises(ReportError, match=r"data\.order_seed, model\.init_seed"):
        variance_table(reduction_study)


def test_a_failed_trial_counts_nothing(grid: pd.DataFrame) -> None:
    lost = grid.assign(status=["failed", *grid["status"][1:]])
    assert component(lost[lost["status"] == "finished"], TOP1, KEYS[0]).df == variance_table(lost).data["df"][1] == 15


def test_keys_at_their_defaults_are_not_in_a_table(study: Callable[..., pd.DataFrame]) -> None:
    records = study(
        [({"insertion": "none"}, [8.0, 8.1]), ({"reduction": 4}, [7.0, 7.2])],
        **{"model.init_seed": None, "data.order_seed": None, "model.rounding": 0},
    )
    text = ablation_table(records).render("terminal")
    assert not any(word in text for word in ("init seed", "init_seed", "order seed", "order_seed", "rounding"))


def test_the_shipped_sweep_varies_every_source() -> None:
    spec = yaml.safe_load(shipped("sweeps")["variance_digits"].read_text())
    varied = {key for key, axis in spec["parameters"].items() if len(axis.get("values", ())) > 1}
    assert varied == set(SOURCES.values())
