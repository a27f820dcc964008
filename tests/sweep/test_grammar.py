"""A W&B sweep spec to trials: what W&B's agent would run, in its order."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from se_lab.spec import SESpec, SpecError
from se_lab.spec.flags import parse_trial
from se_lab.sweep.axes import draw
from se_lab.sweep.grammar import points_of, problems, read_sweep

SEED = {"seed": {"value": 1}}


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
    assert (len(sweep.trials), sweep.repeats) == (1, 2)


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
        ({"parameters": {"optim.lr": {"min": 0.1, "max": 0.3}}}, "a grid needs value, values"),
        ({"parameters": {}}, "parameters is missing"),
        ({"parameters": {"seed": {"value": 1}}, "methd": "grid"}, "did you mean 'method'"),
        ({"parameters": {"seed": {"value": 1}}, "method": "gird"}, "did you mean 'grid'"),
        ({"parameters": {"seed": {"value": 1}}, "method": "random"}, "run_cap is missing"),
        ({"parameters": SEED, "run_cap": "10"}, "it must be a positive integer"),
        ({"parameters": {"model.init_seed": {"values": [None, 1]}}, "command": 5}, "command"),
        ({"parameters": {"seed": {"value": 1}}, "command": ["python", "other.py"]}, "must run se-lab train"),
        ({"parameters": SEED, "command": ["se-lab", "train", "--cfg=${args_json_file}"]}, "whole token"),
        ({"parameters": SEED, "command": ["se-lab", "train", "--optm.lr=1", "${args}"]}, "mean '--optim.lr'"),
        ({"parameters": {"model.se": {"value": {"reduction": 2}}, "model.se.bias": {"value": True}}}, "given twice")
    ],
)  # fmt: skip
def test_wrong_specs_are_refused_with_the_file_and_the_nearest(write, spec, said):
    path = write(**spec)
    with pytest.raises(SpecError) as caught:
        read_sweep(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"parameters": {"seed": {"min": 0, "max": 10**9}}}, "the grid has 1,000,000,001 points"),
        ({"parameters": {"seed": {"min": 0, "max": 10**9}}, "run_cap": 3}, "1,000,000,001 points"),
        (
            {"parameters": {key: {"values": list(range(99))} for key in ("seed", "train.epochs", "data.batch_size")}},
            "the grid has 970,299 points; at most 100,000 are allowed",
        ),
        ({"parameters": SEED, "method": "random", "run_cap": 10**9}, "the random search has 1,000,000,000 points"),
        ({"parameters": {"seed": {"min": 0, "max": 9}}, "method": "random", "run_cap": 3}, "the luckiest seed"),
    ],
)
def test_grids_of_millions_and_searches_for_a_seed_are_refused_before_they_are_built(write, spec, said):
    with pytest.raises(SpecError, match=said):
        read_sweep(write(**spec))
    capped = write(
        parameters={"seed": {"values": list(range(99))}, "train.epochs": {"min": 1, "max": 10**4}}, run_cap=3
    )
    assert len(read_sweep(capped).trials) == 3


def test_a_file_that_is_missing_or_no_yaml_is_said(tmp_path):
    with pytest.raises(SpecError, match="no such sweep spec"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "torn.yaml").write_text("parameters: {")
    with pytest.raises(SpecError, match="is not valid YAML"):
        read_sweep(tmp_path / "torn.yaml")


GRIDS = [
    {"seed": {"values": [0, 1]}, "model.se.reduction": {"values": [16, 4]}, "data.batch_size": {"values": [32, 64]}},
    {"model.se": {"values": [{"insertion": "none"}, {"reduction": 2}, {"stages": [2, 3]}]}, "seed": {"values": [2, 0]}},
    {
        "seed": {"min": 0, "max": 3},
        "optim.lr": {"value": 0.5},
        "train.epochs": {"distribution": "constant", "value": 3},
    },
    {"optim.lr": {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1}, "seed": {"values": [1, 1, 0]}},
    {"optim.lr": {"distribution": "q_uniform", "min": 1, "max": 4}, "Z": {"values": [1]}, "a": {"values": [2, 3.0, 3]}},
]


def test_a_grid_has_the_points_of_the_engine_in_its_order(engine):
    specs = [{"method": "grid", "parameters": parameters} for parameters in GRIDS]
    theirs = engine([{"grid": spec, "n": 100} for spec in specs])
    assert [points_of(spec, 0) for spec in specs] == theirs
    assert [len(points) for points in theirs] == [8, 6, 4, 8, 6]  # np.arange leaves 0.5 out, and 3.0 is 3
    capped = [points_of(spec | {"run_cap": 3}, 0) for spec in specs]
    assert capped == [points[:3] for points in theirs]


AXES = [
    {"value": 3},
    {"values": ["a", "b", "c"]},
    {"distribution": "categorical", "values": [1, 2]},
    {"values": ["a", "b", "c"], "probabilities": [0.2, 0.5, 0.3]},
    {"min": 16, "max": 64},
    {"min": 0.0, "max": 0.1},
    {"distribution": "uniform", "min": 0, "max": 4},
    {"distribution": "log_uniform", "min": -9.0, "max": -2.0},
    {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
    {"distribution": "inv_log_uniform", "min": 1, "max": 4},
    {"distribution": "inv_log_uniform_values", "min": 0.001, "max": 0.1},
    {"distribution": "normal"},
    {"distribution": "normal", "mu": 3, "sigma": 0.5},
    {"distribution": "log_normal", "mu": -3.0, "sigma": 0.5},
    {"distribution": "beta", "a": 2, "b": 5},
    {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
    {"distribution": "q_uniform", "min": 0, "max": 64, "q": 8},
    {"distribution": "q_uniform", "min": 0.0, "max": 9.0},
    {"distribution": "q_log_uniform", "min": 0, "max": 5, "q": 2},
    {"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 5},
    {"distribution": "q_normal", "mu": 10, "sigma": 3, "q": 2},
    {"distribution": "q_log_normal", "mu": 1.0, "sigma": 0.5, "q": 0.5},
    {"distribution": "q_beta", "a": 2, "b": 5, "q": 0.1},
]
SHARES = np.linspace(0.0137, 0.9871, 41).tolist()  # none on the edge between two values


def test_every_distribution_is_the_engines_at_every_quantile(engine):
    theirs = engine([{"axis": axis, "u": SHARES} for axis in AXES])
    for axis, (kind, values) in zip(AXES, theirs, strict=True):
        ours = [draw(axis, u) for u in SHARES]
        expected = values if isinstance(values[0], str) else pytest.approx(values, rel=1e-9, abs=1e-12)
        assert ours == expected, (kind, axis)


def test_draws_are_spread_evenly_over_the_quantiles():
    parameters = {"seed": {"min": 0, "max": 9}, "optim.lr": {"min": 0.0, "max": 1.0}}
    points = points_of({"method": "random", "parameters": parameters, "run_cap": 2000}, 0)
    counts = np.bincount([point["seed"] for point in points])
    assert len(counts) == 10 and ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, 9 degrees, 99.9 %
    rates = np.sort([point["optim.lr"] for point in points])
    assert np.abs(rates - np.linspace(0, 1, 2000)).max() < 1.95 / 2000**0.5  # Kolmogorov-Smirnov, 99.9 %
    assert abs(np.corrcoef([p["seed"] for p in points], [p["optim.lr"] for p in points])[0, 1]) < 0.08


REFUSED = [
    {"seed": {"values": []}},
    {"seed": {"vales": [1]}},
    {"seed": {"min": 1, "max": 1}},
    {"seed": {"min": 3, "max": 1}},
    {"seed": {"min": 1}},
    {"seed": {"values": [1, 2], "probabilities": [0.5]}},
    {"seed": {"values": [1, 2], "probabilities": [0.5, 0.6]}},
    {"seed": {"values": [1, 2], "probabilities": [-0.5, 1.5]}},
    {"seed": {"distribution": "categorical", "values": [1, 2], "probabilities": [0.5, 0.5]}},
    {"optim.lr": {"min": "1e-3", "max": 0.1}},
    {"optim.lr": {"distribution": "log_uniform_values", "min": 0, "max": 1}},
    {"optim.lr": {"distribution": "norml"}},
    {"optim.lr": {"distribution": "normal", "min": 0.0, "max": 1.0}},
    {"optim.lr": {"distribution": "normal", "sigma": -1}},
    {"optim.lr": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}},
    {"optim.lr": {"distribution": "int_uniform", "min": 0.5, "max": 2}},
    {"optim lr": {"value": 1}},
]


def test_what_the_engines_schema_refuses_is_refused(engine):
    specs = [{"method": "random", "run_cap": 1, "parameters": parameters} for parameters in REFUSED]
    specs += [
        {"method": "random", "run_cap": 1, "parameters": {"seed": {"value": 1}}} | change
        for change in ({"run_cap": 0}, {"run_cap": 1.5}, {"method": "gird"}, {"nme": "x"}, {"command": "se-lab"})
    ]
    specs += [{"method": "grid", "parameters": {"seed": {"value": 1}}, "metric": {"goal": "minimize"}}]
    for spec, violations in zip(specs, engine([{"spec": spec} for spec in specs]), strict=True):
        assert violations, spec
        assert list(problems(spec)), (spec, violations)


def test_what_is_accepted_here_the_engine_accepts(engine):
    parameters = {f"p{number}": axis for number, axis in enumerate(AXES)}
    spec = {"method": "random", "run_cap": 3, "name": "n", "description": "d", "program": "se-lab", "command": ["x"]}
    deprecated = list(engine([{"spec": spec | {"parameters": parameters}}])[0])
    assert len(deprecated) == 3 and all("specify base-e exponents" in violation for violation in deprecated)
    shipped = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
    assert engine([{"spec": yaml.safe_load(path.read_text())} for path in shipped]) == [[]] * len(shipped)
