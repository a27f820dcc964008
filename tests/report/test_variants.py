"""Trials become variants: told apart, pooled over seeds, filtered, and each beside its own baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import ablation_table, filter_records

Make = Callable[..., pd.DataFrame]


TOP1 = "test/top1_error"


def row(table, variant: str) -> pd.Series:
    return table.data.set_index("variant").loc[variant]


def test_each_group_has_its_own_baseline(study: Make) -> None:
    records = study(
        [
            ({"insertion": "none", "model.backbone": "a"}, [8.0, 8.1]),
            ({"reduction": 4, "model.backbone": "a"}, [7.0, 7.2]),
            ({"insertion": "none", "model.backbone": "b"}, [6.0, 6.1]),
            ({"reduction": 4, "model.backbone": "b"}, [5.5, 5.8]),
        ]
    )
    table = ablation_table(records)
    assert list(table.data["variant"]) == ["a, no SE", "a, standard", "b, no SE", "b, standard"]
    assert row(table, "a, standard")[f"{TOP1}:difference"] == pytest.approx(-0.95)
    assert row(table, "b, standard")[f"{TOP1}:difference"] == pytest.approx(-0.4)


def test_the_first_varied_se_key_says_no_se_for_the_baseline(study: Make) -> None:
    records = study(
        [
            ({"insertion": "none"}, [8.0]),
            ({"reduction": 4, "squeeze": "max"}, [7.0]),
            ({"reduction": 8, "squeeze": "avg"}, [7.1]),
        ]
    )
    table = ablation_table(records)
    headings = [col.column.label for col in table.columns]
    assert headings[:2] == ["reduction", "squeeze"]
    assert "insertion" not in headings
    cells = [cell.strip() for cell in table.render("markdown").splitlines()[4].split("|")[1:3]]
    assert cells == ["no SE", ""]


def test_a_single_variant_beside_the_baseline_is_told_by_its_insertion(study: Make) -> None:
    table = ablation_table(study([({"insertion": "none"}, [8.0]), ({}, [7.0])]))
    assert list(table.data["variant"]) == ["no SE", "standard"]


def test_lists_are_values_like_any_other(study: Make) -> None:
    records = study([({"insertion": "none"}, [8.0]), ({"stages": [2, 3]}, [7.0]), ({"stages": (4,)}, [7.5])])
    assert list(ablation_table(records).data["variant"]) == ["no SE", "stages 2, 3", "stages 4"]


def test_a_baseline_is_one_variant_whatever_its_idle_se_fields_say(study: Make) -> None:
    records = study(
        [({"insertion": "none", "reduction": 4}, [8.0]), ({"reduction": 4}, [7.0]), ({"reduction": 8}, [7.0])]
    )
    other = study([({"insertion": "none", "reduction": 8}, [8.3])]).assign(seed=1)
    table = ablation_table(pd.concat([records, other]))
    assert list(table.data["variant"]) == ["no SE", "r=4", "r=8"]
    assert row(table, "no SE")["n"] == 2


def test_trials_whose_spec_is_not_known_yet_are_counted_in_a_note(reduction_study: pd.DataFrame) -> None:
    running = pd.DataFrame([{"trial_id": "abcdef", "status": "running", "error": None, "folder": "x"}])
    table = ablation_table(pd.concat([reduction_study, running], ignore_index=True))
    assert len(table.data) == 5
    assert any("1 trial running" in note and "abcdef" in note for note in table.notes)
    with pytest.raises(ValueError, match="1 running"):
        ablation_table(running)


def test_a_trial_of_two_stores_counts_once(reduction_study: pd.DataFrame) -> None:
    copy = reduction_study.assign(status="interrupted", **{TOP1: np.nan})
    table = ablation_table(pd.concat([copy, reduction_study], ignore_index=True))
    assert list(table.data["n"]) == [3] * 5
    assert not any("interrupted" in note for note in table.notes)


def test_two_trials_of_one_variant_and_seed_are_refused(reduction_study: pd.DataFrame) -> None:
    twin = reduction_study.iloc[[3]].assign(trial_id="twin")
    with pytest.raises(ValueError, match="the same spec and seed"):
        ablation_table(pd.concat([reduction_study, twin]))


def test_rows_that_would_pool_different_variants_are_refused(study: Make) -> None:
    records = study([({"reduction": 4, "squeeze": squeeze}, [7.0]) for squeeze in ("avg", "max")])
    with pytest.raises(ValueError, match=r"also differ in model\.se\.squeeze"):
        ablation_table(records, rows=["model.se.reduction"])
    with pytest.raises(ValueError, match="seed cannot"):
        ablation_table(records, rows=["seed"])
    with pytest.raises(ValueError, match=r"did you mean 'model\.se\.squeeze'"):
        ablation_table(records, rows=["model.se.squeze"])


def test_rows_may_leave_out_a_key_that_follows_from_another(study: Make) -> None:
    records = study(
        [({"model.backbone": "a", "optim.lr": 0.1}, [7.0]), ({"model.backbone": "b", "optim.lr": 0.2}, [6.0])]
    )
    assert list(ablation_table(records).data["variant"]) == ["a, lr=0.1", "b, lr=0.2"]
    assert list(ablation_table(records, rows=["model.backbone"]).data["variant"]) == ["a", "b"]


def test_where_takes_values_as_they_are_typed(study: Make) -> None:
    records = study(
        [({"insertion": "none"}, [8.0]), ({"stages": [2, 3], "reduction": 4}, [7.0]), ({"reduction": 8}, [7.5])]
    )
    for wanted in ({"model.se.stages": "[2, 3]"}, {"model.se.stages": [2, 3]}, {"model.se.reduction": "4"}):
        assert list(ablation_table(filter_records(records, wanted)).data[TOP1]) == [8.0, 7.0]
    both = ablation_table(filter_records(records, {"model.se.reduction": [4, 8], "model.se.insertion": "standard"}))
    assert list(both.data[TOP1]) == [7.0, 7.5]
    with pytest.raises(ValueError, match=r"value of model\.se\.reduction '5'.*4, 8"):
        ablation_table(filter_records(records, {"model.se.reduction": "5"}))


def test_where_on_an_se_key_keeps_the_baseline(study: Make) -> None:
    records = study([({"insertion": "none"}, [8.0]), ({"squeeze": "max"}, [7.0]), ({"squeeze": "avg"}, [7.5])])
    table = ablation_table(filter_records(records, {"model.se.squeeze": "max"}))
    assert list(table.data["is_baseline"]) == [True, False]
    assert row(table, "standard")[f"{TOP1}:difference"] == -1.0
