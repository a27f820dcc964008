"""As many seeds as a comparison needs: the looks keep their error rate, and seeds are added to all variants alike."""

import dataclasses

import numpy as np
import pytest

from se_lab.report.dunnett import dunnett_quantile
from se_lab.spec import SESpec, SpecError
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from se_lab.sweep.seeds import (
    add_seeds,
    check_compared,
    grown,
    growth_of,
    look_levels,
    plan_looks,
    seeds_of,
    with_seeds,
)


def test_levels_of_equal_looks_are_near_pococks():
    # Pocock (1977), five looks at 5 %: each at 0.0158; the spending function comes close to it from the second look on
    levels = look_levels([0.2, 0.4, 0.6, 0.8, 1.0])
    assert levels == pytest.approx([0.0158] * 5, abs=0.003)
    assert look_levels([1.0]) == pytest.approx([0.05], abs=1e-4)  # one look: all of it


@pytest.mark.parametrize("variants", [2, 5])
def test_looks_after_every_seed_raise_false_alarms_in_five_per_cent_of_studies(variants):
    """Studies without any effect, looked at from 3 seeds to 12, as if each had stopped at its first alarm."""
    studies, most, rng = 4000, 12, np.random.default_rng(0)
    errors = rng.normal(size=(studies, variants, most))
    alarms = {"spent": np.zeros(studies, bool), "naive": np.zeros(studies, bool)}
    for look in plan_looks(3, most, variants - 1):
        seen = errors[:, :, : look.seeds]
        rest = seen - seen.mean(2, keepdims=True) - seen.mean(1, keepdims=True) + seen.mean((1, 2), keepdims=True)
        freedom = (variants - 1) * (look.seeds - 1)
        spread = np.sqrt(2 * (rest**2).sum((1, 2)) / freedom / look.seeds)
        largest = np.abs(seen[:, 1:].mean(2) - seen[:, :1].mean(2)).max(1) / spread
        alarms["spent"] |= largest > dunnett_quantile(1 - look.level, freedom, (0.707,), (variants - 1,))
        alarms["naive"] |= largest > dunnett_quantile(0.95, freedom, (0.707,), (variants - 1,))
    assert alarms["spent"].mean() < 0.065  # 5 % and three standard errors of the simulation, 0.0034 each
    assert alarms["naive"].mean() > 0.12  # what looking again and again costs without


@pytest.fixture
def trials(quick):
    """Return three variants with seeds 0 and 5."""
    units = (SESpec(insertion="none"), SESpec(reduction=4), SESpec(reduction=8))
    return [quick(se, seed=seed) for se in units for seed in (0, 5)]


def test_seeds_are_added_to_all_variants_alike_until_they_suffice(trials, tmp_path):
    ran = []

    def run(now):
        ran.append(len(now))
        return True

    looks = list(add_seeds(trials, 0.35, 9, run, lambda now, level: 1 / len(now) ** 0.5, tmp_path))
    assert [look.seeds for look, _ in looks] == [2, 3] and ran == [6, 9]  # 1 / √9 is the first below 0.35
    more = with_seeds(trials, 4)
    assert sorted({trial.seed for trial in more}) == [0, 5, 6, 7] and len(more) == 12
    assert {trial.trial_id for trial in trials} < {trial.trial_id for trial in more}
    # one that does not come to its end leaves the look out
    assert not list(add_seeds(trials, 0.1, 9, lambda now: False, lambda now, level: 0.0, tmp_path))
    looks = list(add_seeds(trials, 0.0, 4, run, lambda now, level: 1.0, tmp_path / "another"))
    assert [look.seeds for look, _ in looks] == [2, 3, 4]


def test_the_store_remembers_the_looks_and_refuses_others(trials, tmp_path):
    def go(target, most, done=True):
        return list(add_seeds(trials, target, most, lambda now: done, lambda now, level: 1.0, tmp_path))

    assert growth_of(trials, tmp_path) is None and grown(trials, tmp_path) == trials
    go(0.0, 4, done=False)  # stopped in its first look
    assert growth_of(trials, tmp_path).looks == plan_looks(2, 4, 2)[:1]
    go(0.0, 4)
    assert growth_of(trials, tmp_path).looks == plan_looks(2, 4, 2)
    assert [trial.seed for trial in grown(trials, tmp_path)[:4]] == [0, 5, 6, 7]
    go(2.0, 4)  # the first look would do now, but the others have been taken
    assert len(growth_of(trials, tmp_path).looks) == 3
    with pytest.raises(SpecError, match="--max_seeds is 9, but earlier looks at this sweep used --max_seeds 4"):
        go(0.0, 9)


def test_records_of_a_sweep_that_grew_have_all_seeds_and_the_level_of_its_last_look(tmp_path):
    spec = tmp_path / "sweep.yaml"
    spec.write_text(
        "program: se-lab\nmethod: grid\ncommand: ['${env}', se-lab, train, '${args}']\n"
        "parameters: {model.se.insertion: {values: [none, standard]}, seed: {values: [0, 1]}}\n"
    )
    store = tmp_path / "runs"
    assert "look_level" not in load_records(spec, store)
    list(add_seeds(read_sweep(spec).trials, 0.0, 3, lambda now: True, lambda now, level: 1.0, store))
    records = load_records(spec, store)
    assert sorted(records["seed"]) == [0, 0, 1, 1, 2, 2]
    assert set(records["look_level"]) == {plan_looks(2, 3, 1)[-1].level}


def test_what_cannot_get_more_seeds_is_refused(trials):
    with pytest.raises(SpecError, match="every variant has the same seeds"):
        seeds_of(trials[:-1])
    with pytest.raises(SpecError, match="at least 2 seeds"):
        seeds_of(trials[::2])
    with pytest.raises(SpecError, match="--max_seeds is 1; the sweep already has 2"):
        plan_looks(2, 1, 2)
    with pytest.raises(SpecError, match="every variant has the same seeds"):
        seeds_of([*trials, dataclasses.replace(trials[0], seed=9)])


def test_intervals_need_a_baseline_and_another_variant(trials):
    check_compared(trials)
    for some, missing in ((trials[2:], "no variant without units"), (trials[:2], "no variant with units")):
        with pytest.raises(SpecError, match=missing):
            check_compared(some)
