"""A W&B sweep spec, as it stands, to trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from se_lab.flags import parse_trial
from se_lab.spec import ExecSpec, RunSpec, SpecError, check_choice, dotted, leaves, run_spec, seed_of

TOP_LEVEL = (
    "program", "command", "method", "metric", "parameters", "name", "description", "project", "entity",
    "early_terminate", "run_cap",
)  # fmt: skip
METHODS = ("grid", "random")
MACROS = (
    "${env}",
    "${interpreter}",
    "${program}",
    "${args}",
    "${args_no_hyphens}",
    "${args_json}",
    "${args_json_file}",
)


@dataclass(frozen=True)
class Sweep:
    """A sweep spec, read: its trials in W&B's order, each once."""

    name: str
    description: str
    trials: list[RunSpec]
    execution: ExecSpec
    """Defaults from the spec's own command."""
    repeated: int
    """Points of the spec that are trials it already has, such as r=4 and r=8 without SE units."""


def read_sweep(path: str | Path, *, seed: int = 0) -> Sweep:
    """Read a W&B sweep spec and enumerate its trials.

    Fixed flags in `command` count for every trial, as they do under W&B's agent. Grid: parameters sorted by name, the
    last varying fastest, as W&B's engine has it. Random: `run_cap` draws from a stream keyed by `seed`.

    Raises:
        SpecError: naming the file, the key, what is allowed, and the nearest.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such sweep spec") from None
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is no YAML: {error}") from None
    try:
        return _read(spec, path.stem, seed)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _read(spec: Any, stem: str, seed: int) -> Sweep:
    if not isinstance(spec, Mapping):
        raise SpecError("a sweep spec is a mapping with method and parameters")
    for key in spec:
        check_choice("a top-level key", key, TOP_LEVEL)
    check_choice("method", spec.get("method"), METHODS)
    parameters = spec.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise SpecError("parameters is missing; it maps dotted keys to {value: …}, {values: […]} or a distribution")
    flags = _fixed_flags(spec.get("command") or [])
    common, execution = parse_trial(flags) if flags else (RunSpec(), ExecSpec())
    base = dotted(common)
    points = _grid(parameters) if spec["method"] == "grid" else _random(parameters, spec.get("run_cap"), seed)
    if spec["method"] == "grid" and spec.get("run_cap") is not None:
        points = points[: spec["run_cap"]]
    trials: dict[str, RunSpec] = {}
    for point in points:
        trial = run_spec(base | leaves(point))
        trials.setdefault(trial.trial_id, trial)
    return Sweep(
        name=str(spec.get("name") or stem),
        description=str(spec.get("description") or ""),
        trials=list(trials.values()),
        execution=execution,
        repeated=len(points) - len(trials),
    )


def _fixed_flags(command: Sequence[Any]) -> list[str]:
    """Return the flags in a spec's command, which every trial of it gets."""
    tokens = [str(token) for token in command if str(token) not in MACROS]
    for token in tokens:
        if "${" in token:
            raise SpecError(f"command has {token!r}; W&B expands a macro only where it is a whole token")
    if tokens[:2] == ["se-lab", "train"]:
        tokens = tokens[2:]
    elif tokens[:3] == ["-m", "se_lab.cli", "train"]:
        tokens = tokens[3:]
    elif tokens[:1] == ["train"]:  # after ${program}
        tokens = tokens[1:]
    if tokens and not tokens[0].startswith("--"):
        raise SpecError(f"command runs {' '.join(tokens)!r}; SE-Lab's trials are run by se-lab train and its flags")
    return tokens


def _grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes: list[list[Any]] = []
    names = sorted(parameters)
    for name in names:
        axis = _axis(name, parameters[name])
        if "values" not in axis:
            raise SpecError(f"parameters.{name} is {axis!r}; a grid takes value or values")
        axes.append(axis["values"])
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*axes)]


def _random(parameters: Mapping[str, Any], run_cap: Any, seed: int) -> list[dict[str, Any]]:
    if not isinstance(run_cap, int) or run_cap < 1:
        raise SpecError(f"run_cap is {run_cap!r}; a random search needs the number of its trials")
    axes = {name: _axis(name, parameters[name]) for name in sorted(parameters)}
    points = []
    for number in range(run_cap):
        points.append(
            {n: _draw(n, axis, np.random.default_rng(seed_of(seed, "sweep", number, n))) for n, axis in axes.items()}
        )
    return points


def _axis(name: str, axis: Any) -> dict[str, Any]:
    """Return a parameter's axis with `values`, or as a distribution."""
    if not isinstance(axis, Mapping):
        raise SpecError(f"parameters.{name} is {axis!r}; it must be {{value: …}}, {{values: […]}} or a distribution")
    for key in axis:
        check_choice(f"parameters.{name}: a key", key, ("value", "values", "probabilities", "distribution", *_BOUNDS))
    if "value" in axis:
        return {"values": [axis["value"]]}
    if "values" in axis:
        values = axis["values"]
        if not isinstance(values, list) or not values:
            raise SpecError(f"parameters.{name}.values is {values!r}; it must be a list of at least one value")
        return dict(axis)
    if "min" not in axis and "mu" not in axis:
        raise SpecError(f"parameters.{name} is {dict(axis)!r}; it needs value, values, or min and max")
    return dict(axis)


_BOUNDS = ("min", "max", "mu", "sigma", "q")


def _draw(name: str, axis: dict[str, Any], rng: np.random.Generator) -> Any:
    if "values" in axis:
        return axis["values"][rng.choice(len(axis["values"]), p=axis.get("probabilities"))]
    whole = isinstance(axis.get("min"), int) and isinstance(axis.get("max"), int)
    distribution = axis.get("distribution", "int_uniform" if whole else "uniform")
    check_choice(f"parameters.{name}.distribution", distribution, tuple(_DISTRIBUTIONS))
    try:
        return _DISTRIBUTIONS[distribution](axis, rng)
    except KeyError as error:
        raise SpecError(f"parameters.{name}: {distribution} needs {error.args[0]}") from None


def _quantised(draw: Any) -> Any:
    return lambda a, rng: float(round(draw(a, rng) / a.get("q", 1)) * a.get("q", 1))


_CONTINUOUS = {
    "uniform": lambda a, rng: float(rng.uniform(a["min"], a["max"])),
    "log_uniform": lambda a, rng: math.exp(rng.uniform(a["min"], a["max"])),  # W&B: the bounds are exponents
    "log_uniform_values": lambda a, rng: math.exp(rng.uniform(math.log(a["min"]), math.log(a["max"]))),
    "inv_log_uniform": lambda a, rng: 1 / math.exp(rng.uniform(a["min"], a["max"])),
    "inv_log_uniform_values": lambda a, rng: 1 / math.exp(rng.uniform(math.log(1 / a["max"]), math.log(1 / a["min"]))),
    "normal": lambda a, rng: float(rng.normal(a.get("mu", 0.0), a.get("sigma", 1.0))),
    "log_normal": lambda a, rng: float(rng.lognormal(a.get("mu", 0.0), a.get("sigma", 1.0))),
}
_DISTRIBUTIONS: dict[str, Any] = {
    "int_uniform": lambda a, rng: int(rng.integers(a["min"], a["max"], endpoint=True)),
    **_CONTINUOUS,
    **{f"q_{name}": _quantised(_CONTINUOUS[name]) for name in ("uniform", "log_uniform", "normal", "log_normal")},
}
