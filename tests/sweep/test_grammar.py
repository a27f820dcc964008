"""A W&B sweep spec to trials: what W&B's agent would run, in its order."""

import itertools

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from se_lab.flags import parse_trial
from se_lab.spec import SESpec, SpecError
from se_lab.sweep import read_sweep


@pytest.fixture
def write(tmp_path):
    def make(**spec):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"program": "se-lab", "method": "grid", **spec}))
        return path

    return make


def agent_arguments(point):
    """What W&B's agent hands over for ${args}: one --key=value a parameter, sorted by name."""
    return [f"--{name}={value}" for name, value in sorted(point.items())]


def test_grid_is_the_product_of_the_values_sorted_by_name(write):
    axes = {"seed": [0, 1], "model.se.reduction": [16, 4], "data.batch_size": [32, 64]}
    sweep = read_sweep(write(parameters={name: {"values": values} for name, values in axes.items()}))
    got = [(t.data.batch_size, t.model.se.reduction, t.seed) for t in sweep.trials]
    assert got == list(itertools.product([32, 64], [16, 4], [0, 1]))


def test_a_mapping_is_one_value_of_an_axis_and_gives_the_baseline_once(write):
    axis = {"values": [{"insertion": "none"}, {"reduction": 2}, {"squeeze": "max", "stages": [2, 3]}]}
    sweep = read_sweep(write(parameters={"model.se": axis}))
    expected = [SESpec(insertion="none"), SESpec(reduction=2), SESpec(squeeze="max", stages=(2, 3))]
    assert [trial.model.se for trial in sweep.trials] == expected


@pytest.mark.parametrize("values", [[{"insertion": "none"}, {"reduction": 2}, {"stages": [2, 4], "bias": True}]])
@pytest.mark.parametrize("command", [["--recipe=digits"], ["--train.epochs=7", "--model.se.excitation", "tanh"], []])
def test_trials_here_are_those_that_the_agents_arguments_give(write, values, command):
    parameters = {"model.se": {"values": values}, "seed": {"values": [0, 3]}, "optim.lr": {"value": "1e-2"}}
    tokens = ["${env}", "se-lab", "train", *command, "${args}"]
    sweep = read_sweep(write(parameters=parameters, command=tokens))
    points = [{"model.se": se, "seed": seed, "optim.lr": "1e-2"} for se in values for seed in (0, 3)]
    assert sweep.trials == [parse_trial(command + agent_arguments(point))[0] for point in points]


def test_points_that_are_one_trial_run_once(write):
    parameters = {"model.se.insertion": {"value": "none"}, "model.se.reduction": {"values": [2, 4, 8]}}
    sweep = read_sweep(write(parameters=parameters))
    assert (len(sweep.trials), sweep.repeated) == (1, 2)


def test_run_cap_ends_a_grid(write):
    assert len(read_sweep(write(parameters={"seed": {"values": [0, 1, 2]}}, run_cap=2)).trials) == 2


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_draws_lie_within_their_distributions_and_repeat(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("random") / "s.yaml"
    parameters = {
        "optim.lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1e-1},
        "optim.weight_decay": {"min": 0.0, "max": 0.1},
        "data.batch_size": {"min": 16, "max": 64},
        "model.se.reduction": {"values": [2, 4], "probabilities": [0.0, 1.0]},
    }
    path.write_text(yaml.safe_dump({"method": "random", "run_cap": 5, "parameters": parameters}))
    trials = read_sweep(path, seed=seed).trials
    assert trials == read_sweep(path, seed=seed).trials != read_sweep(path, seed=seed + 1).trials
    for trial in trials:
        assert 1e-3 <= trial.optim.lr <= 1e-1 and 0 <= trial.optim.weight_decay <= 0.1
        assert 16 <= trial.data.batch_size <= 64 and trial.model.se.reduction == 4


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"parameters": {"model.se.redction": {"value": 2}}}, "did you mean 'model.se.reduction'"),
        ({"parameters": {"seed": {"values": []}}}, "at least one value"),
        ({"parameters": {"seed": 3}}, "must be {value: …}"),
        ({"parameters": {"seed": {"vales": [3]}}}, "did you mean 'values'"),
        ({"parameters": {"seed": {"min": 0, "max": 3}}}, "a grid takes value or values"),
        ({"parameters": {}}, "parameters is missing"),
        ({"parameters": {"seed": {"value": 1}}, "methd": "grid"}, "did you mean 'method'"),
        ({"parameters": {"seed": {"value": 1}}, "method": "gird"}, "did you mean 'grid'"),
        ({"parameters": {"seed": {"value": 1}}, "method": "random"}, "run_cap is None"),
        ({"parameters": {"seed": {"value": 1}}, "command": ["python", "other.py"]}, "are run by se-lab train"),
        ({"parameters": {"seed": {"value": 1}}, "command": ["se-lab", "train", "--cfg=${args_json_file}"]}, "whole token"),
        ({"parameters": {"seed": {"value": 1}}, "command": ["se-lab", "train", "--optm.lr=1"]}, "mean '--optim.lr'"),
        ({"parameters": {"model.se": {"value": {"reduction": 2}}, "model.se.bias": {"value": True}}}, "given twice")
    ],
)  # fmt: skip
def test_wrong_specs_are_refused_with_the_file_and_the_nearest(write, spec, said):
    path = write(**spec)
    with pytest.raises(SpecError) as caught:
        read_sweep(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_missing_or_no_yaml_is_said(tmp_path):
    with pytest.raises(SpecError, match="no such sweep spec"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "torn.yaml").write_text("parameters: {")
    with pytest.raises(SpecError, match="is no YAML"):
        read_sweep(tmp_path / "torn.yaml")
