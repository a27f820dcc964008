"""Specs: what is refused, and what a trial id depends on."""

import dataclasses
import datetime
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from se_lab.spec import (
    INSERTIONS,
    UNIT_FIELDS,
    DataSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    SESpec,
    SpecError,
    label,
    run_spec,
    seed_of,
    trial_of,
)
from se_lab.training import run as train  # noqa: F401  (train: the whole package is loaded, as for a user)

se_specs = st.builds(
    SESpec,
    insertion=st.sampled_from(INSERTIONS),
    reduction=st.integers(1, 64),
    squeeze=st.sampled_from(["avg", "max", "none"]),
    excitation=st.sampled_from(["sigmoid", "tanh", "relu"]),
    stages=st.one_of(st.just("all"), st.lists(st.integers(2, 6), min_size=1).map(tuple)),
    bias=st.booleans(),
)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model.se.insertion": "standrd"}, "did you mean 'standard'"),
        ({"model.se.squeeze": "averge"}, "allowed are avg, max, none"),
        ({"model.se.excitation": "sigmod"}, "did you mean 'sigmoid'"),
        ({"model.se.unit": "see"}, "did you mean 'se'"),
        ({"model.se.redction": 4}, "did you mean 'model.se.reduction'"),
        ({"model.se.reduction": 0}, "at least 1"),
        ({"model.se.reduction": 2.5}, "must be an integer"),
        ({"model.se.stages": []}, "list of stages from 2 on"),
        ({"model.se.stages": [1, 2]}, "stage 1 is the stem"),
        ({"model.se": 3}, "takes a mapping"),
        ({"model.se": {"reduction": 2}, "model.se.reduction": 4}, "given twice"),
        ({"model.existing_se": "keeep"}, "did you mean 'keep'"),
        ({"optim.lr": "fast"}, "must be a finite number"),
        ({"optim.lr": 0}, "must be above 0"),
        ({"optim.schedule": "multistep"}, "needs milestones"),
        ({"optim.schedule": "multistep", "optim.milestones": [5, 3]}, "increasing epochs"),
        ({"data.name": "digist"}, "did you mean 'digits'"),
        ({"data.val_fraction": 0, "train.select": "best"}, "test images are never used"),
        ({"data.val_fraction": 0, "optim.schedule": "plateau"}, "test images are never used"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**64}, "at most 18446744073709551615"),
        ({"data.split_seed": 10**22}, "at most 18446744073709551615"),
        ({"data.split_seed": -(10**22)}, "at least -9223372036854775808"),
        ({"train.epochs": 10**30}, "at least 1 and at most 18446744073709551615"),
        ({"optim.lr": 10**400}, "must be a finite number"),
        ({"train.epochs": True}, "must be an integer"),
        ({"optim.warmup_epochs": 10}, "must end before the training does"),
        ({"train.precision": "fp46"}, "did you mean 'fp64'"),
        ({"train.ema": 1}, "at most 1"),
        (
            {"model.kwargs": {"since": datetime.date(2020, 1, 2)}},
            "kwargs.since is 2020-01-02 (a date); it must be",
        ),
        ({"model.kwargs": {"rates": [0.1, math.nan]}}, "model.kwargs.rates[1] is nan (a float); it must be a finite"),
        ({"model.fused": "onn"}, "did you mean 'on'"),
        ({"model.existing_se": True}, "allowed are refuse, keep, replace"),
    ],
)
def test_wrong_value_is_refused_with_what_is_allowed(values, said):
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        run_spec(values)
    given = [key.rpartition(".")[2] for key in values] + [str(value) for value in values.values()]
    assert any(part in str(caught.value) for part in given)


def test_a_seed_may_be_any_that_pytorch_takes():
    torch.Generator().manual_seed(2**64 - 1)
    assert run_spec({"seed": 2**64 - 1}).seed == 2**64 - 1
    with pytest.raises(ValueError, match="Overflow"):
        torch.Generator().manual_seed(2**64)


NAMES = """
import copy, sys
from se_lab.spec import DATA_SETS, OPERATORS, UNIT_FIELDS
names = copy.deepcopy([DATA_SETS, OPERATORS, UNIT_FIELDS])
assert "torch" not in sys.modules
from se_lab import DATASETS, EXCITATION, SQUEEZE, UNITS
assert names[0] == {"table": tuple(DATASETS)}, names[0]
assert names[1] == {"squeeze": tuple(SQUEEZE), "excitation": tuple(EXCITATION)}, names[1]
assert names[2] == {name: unit.fields for name, unit in UNITS.items()}, names[2]
"""


def test_names_known_to_specs_are_the_tables():
    """In a process of its own: here the tables have replaced the names, and other tests add to them."""
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def plain_unit(monkeypatch):
    """Let specs know a unit whose only detail is its bias."""
    monkeypatch.setitem(UNIT_FIELDS, "plain", ("bias",))


def test_a_detail_that_a_unit_lacks_is_refused(plain_unit):
    said = r"model.se.reduction is 8, .* model.se.unit=plain; leave it at 16 \(plain takes bias\)"
    with pytest.raises(SpecError, match=said):
        run_spec({"model.se": {"unit": "plain", "reduction": 8}})
    assert run_spec({"model.se": {"unit": "plain", "reduction": 16, "bias": True}}).model.se.bias


def test_a_detail_that_a_unit_lacks_is_in_no_id_label_or_flat_form(plain_unit):
    trial = run_spec({"model.se.unit": "plain"})
    assert trial.flat()["model.se.reduction"] is None and trial.flat()["model.se.bias"] is False
    assert run_spec(json.loads(json.dumps(trial.flat()))) == trial
    assert label(trial) == "resnet50 plain standard, seed 0"


def test_points_of_a_grid_over_units_and_a_detail_are_one_trial_where_the_unit_lacks_it(plain_unit):
    points = [{"model.se.unit": unit, "model.se.reduction": r} for unit in ("se", "plain") for r in (2, 4, 8)]
    assert [len({trial_of(RunSpec(), p).trial_id for p in part}) for part in (points[:3], points[3:])] == [3, 1]
    with pytest.raises(SpecError, match="leave it at 16"):  # who writes both together has mistaken the unit
        trial_of(RunSpec(), {"model.se": {"unit": "plain", "reduction": 8}})


def test_baseline_is_one_trial_whatever_the_unit_would_have_been():
    baseline = run_spec({"model.se": {"insertion": "none", "reduction": 4}})
    other = run_spec({"model.se": {"insertion": "none", "reduction": 8, "squeeze": "max", "stages": [2], "bias": True}})
    assert baseline.trial_id == other.trial_id
    assert baseline.flat() == other.flat()
    assert baseline.flat()["model.se.reduction"] is None


def test_trial_ids_do_not_change():
    """Ids name folders that users have: an id that changes loses them. These are sha256sum's, of spec version 2."""
    assert RunSpec().trial_id == "c3b773bed0d4"
    assert (
        run_spec({"model.backbone": "cifar_resnet20", "model.se": {"reduction": 8}, "seed": 3}).trial_id
        == "d680b1e1e21f"
    )


@given(se_specs, st.integers(0, 5))
def test_flat_form_gives_the_trial_back(se, seed):
    spec = RunSpec(model=ModelSpec(se=se), seed=seed)
    again = run_spec(json.loads(json.dumps(spec.flat())))
    assert again.trial_id == spec.trial_id
    if se.insertion != "none":
        assert again == spec


@given(se_specs, se_specs)
def test_trials_differ_exactly_where_a_field_that_matters_differs(left, right):
    def matters(se):
        return "none" if se.insertion == "none" else dataclasses.astuple(se)

    ids = {RunSpec(model=ModelSpec(se=se)).trial_id for se in (left, right)}
    assert (len(ids) == 1) == (matters(left) == matters(right))


def test_yaml_and_numpy_values_come_to_the_declared_types():
    spec = run_spec({"optim.lr": "1e-3", "optim.weight_decay": 0, "seed": np.int64(3), "model.se.stages": [3, 2, 3]})
    assert spec.optim.lr == 0.001
    assert isinstance(spec.optim.weight_decay, float)
    assert spec.seed == 3 and type(spec.seed) is int
    assert spec.model.se.stages == (2, 3)
    spec = run_spec(
        {"model.fused": False, "model.se.stages": 3, "optim.decay_epochs": "7"}
    )  # YAML 1.1 reads off as false
    assert (spec.model.fused, spec.model.se.stages, spec.optim.decay_epochs) == ("off", (3,), 7)


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptimSpec().lr = 1.0  # type: ignore[misc]


def test_streams_are_keyed_apart():
    keys = [
        (0, "order", 0),
        (0, "order", 1),
        (1, "order", 0),
        (0, "augment", 0),
        (0, "se", "SE_2_1"),
        (0, "se", "SE_2_11"),
    ]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(*key) < 2**63 for key in keys)


def test_sections_can_be_given_whole():
    spec = run_spec({"model": {"backbone": "resnet18", "se": {"reduction": 4}}, "data": {"batch_size": 8}})
    assert (spec.model.backbone, spec.model.se.reduction, spec.data) == ("resnet18", 4, DataSpec(batch_size=8))
