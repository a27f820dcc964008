"""Read the trials of a W&B sweep spec."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from se_lab.spec import ExecSpec, RunSpec, SpecError, dotted, find_sweep, leaves, nearest, read_yaml, seed_of, trial_of
from se_lab.spec.flags import parse_trial
from se_lab.spec.shipped import shipped
from se_lab.sweep.axes import Finding, axis_findings, draw, grid_size, grid_values
from se_lab.sweep.bayes import BayesSearch
from se_lab.sweep.early_stop import VALIDATION_METRICS, Hyperband, Metric, early_stop_problems, hyperband_of

TOP_LEVEL = (
    "program", "command", "method", "metric", "parameters", "name", "description", "project", "entity",
    "early_terminate", "run_cap",
)  # fmt: skip
METHODS = ("grid", "random", "bayes")
MOST_POINTS = 100_000
"""Maximum number of points of a grid or search; more would exhaust the memory."""
LAUNCHERS = ("${env}", "${interpreter}", "${program}")
MACROS = (*LAUNCHERS, "${args}", "${args_no_equals}", "${args_json_file}")
"""Macros of W&B's agent that `se-lab train` supports."""
ENTRIES = (["se-lab", "train"], ["-m", "se_lab.cli", "train"], ["train"])


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep spec."""

    name: str
    description: str
    trials: list[RunSpec]
    """The trials in W&B's order, without duplicates; for a bayes search, those proposed so far."""
    execution: ExecSpec
    """Defaults from the spec's command."""
    repeats: int
    """Number of points that repeat the trial of an earlier one, such as r=4 and r=8 without SE units."""
    search: BayesSearch | None = None
    early_stop: Hyperband | None = None

    @property
    def validation_use(self) -> str | None:
        """The part of the sweep that uses a validation metric, for messages; None without any."""
        if self.search is not None:
            return f"method=bayes on {self.search.metric.name}"
        return f"early_terminate on {self.early_stop.metric.name}" if self.early_stop is not None else None


def read_sweep(path: str | Path, *, seed: int = 0, store_folder: str | Path | None = None) -> Sweep:
    """Read a W&B sweep spec and enumerate its trials.

    Fixed flags in `command` apply to every trial, as under W&B's agent. In a grid, parameters are sorted by name, and
    the last varies fastest, as in W&B's engine. A random search has `run_cap` points, drawn from a stream keyed by
    `seed`. A bayes search has the trials proposed so far. `run_cap` counts points, before duplicates are removed.

    Args:
        path: The spec.
        seed: Seed of a random or bayes search.
        store_folder: The store of a bayes search; by default that of the spec's command, or the environment variable
            SE_LAB_STORE, else runs/.

    Raises:
        SpecError: listing the problems of the file: keys, allowed values and the nearest ones.
    """
    spec = load_spec(path)
    if findings := list(problems(spec)):
        lines = "".join(f"\n  {finding}" for finding in findings)
        raise SpecError(f"{path}: {findings[0]}" if len(findings) == 1 else f"{path}: {len(findings)} problems:{lines}")
    try:
        common, execution = common_of(spec)
        metric = metric_of(spec)
        search = None
        if spec["method"] == "bayes":
            assert metric is not None
            search = BayesSearch(spec["parameters"], common, metric, spec["run_cap"], seed)
            points = [dotted(trial) for trial in search.proposed_trials(store_folder or execution.store)]
            search.corners()
        else:
            points = points_of(spec, seed)
        trials: dict[str, RunSpec] = {}
        for point in points:
            trial = trial_of(common, point)
            trials.setdefault(trial.trial_id, trial)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    return Sweep(
        name=str(spec.get("name") or Path(path).stem),
        description=str(spec.get("description") or ""),
        trials=list(trials.values()),
        execution=execution,
        repeats=len(points) - len(trials),
        search=search,
        early_stop=hyperband_of(spec, metric) if metric is not None and "early_terminate" in spec else None,
    )


def load_spec(path: str | Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        SpecError: if the file is missing or not YAML.
    """
    try:
        return read_yaml(find_sweep(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such sweep spec{nearest(str(path), shipped('sweeps'))}") from None
    except IsADirectoryError:
        raise SpecError(f"{path} is a directory; a sweep spec is a YAML file") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an invalid date or number
        raise SpecError(f"{path} is not valid YAML: {error}") from None


def common_of(spec: Mapping[str, Any]) -> tuple[RunSpec, ExecSpec]:
    """Return the trial and the execution given by the fixed flags in `command`."""
    flags = fixed_flags(spec)
    return parse_trial(flags) if flags else (RunSpec(), ExecSpec())


def metric_of(spec: Mapping[str, Any]) -> Metric | None:
    """Return the metric of a valid spec, or None."""
    metric = spec.get("metric")
    if metric is None:
        return None
    goal = metric.get("goal", "minimize")
    return Metric(metric["name"], goal == "maximize", metric.get("target"), metric.get("impute", "worst"))


def points_of(spec: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return the points of a grid or a random search, each with a value for every parameter."""
    parameters = {name: spec["parameters"][name] for name in sorted(spec["parameters"])}
    cap = spec.get("run_cap")
    if spec["method"] == "grid":
        axes = [grid_values(axis) for axis in parameters.values()]
        points = itertools.islice(itertools.product(*axes), cap)
        return [dict(zip(parameters, point, strict=True)) for point in points]
    return [
        {
            name: draw(axis, np.random.default_rng(seed_of(seed, "sweep", number, name)).random())
            for name, axis in parameters.items()
        }
        for number in range(spec["run_cap"])
    ]


def problems(spec: Any) -> Iterator[Finding]:
    """Yield the parts of a spec that are invalid, or that W&B would interpret differently.

    Values of fields are not checked; `trial_of` does that.
    """
    if not isinstance(spec, Mapping):
        yield Finding("the file", f"got {type(spec).__name__}", "a sweep spec is a mapping with method and parameters")
        return
    for key in spec:
        if key not in TOP_LEVEL:
            todo = f"allowed are {', '.join(TOP_LEVEL)}{nearest(str(key), TOP_LEVEL)}"
            yield Finding(str(key), "unknown top-level key", todo)
    for key in ("program", "name", "description", "project", "entity"):
        if key in spec and not isinstance(spec[key], str):
            yield Finding(key, f"got {spec[key]!r}", "it must be text")
    yield from _method_problems(spec)
    command_findings = list(_command_problems(spec))
    yield from command_findings
    if not command_findings:
        try:
            common_of(spec)
        except SpecError as error:
            yield Finding("command", f"its fixed flags are not valid: {error}", "correct the flag")
    parameters = spec.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        todo = "it must map dotted keys to {value: …}, {values: […]} or a distribution"
        yield Finding("parameters", "parameters is missing" if not parameters else f"got {parameters!r}", todo)
        return
    findings = list(_parameter_problems(parameters, str(spec.get("method"))))
    yield from findings or _size_problems(spec)
    if not command_findings:
        yield from _fixed_and_varied(spec, fixed_flags(spec))


def _parameter_problems(parameters: Mapping[Any, Any], method: str) -> Iterator[Finding]:
    for name, axis in parameters.items():
        yield from _name_problems(str(name), parameters)
        yield from axis_findings(str(name), axis, method)
    seed_varies = isinstance(parameters.get("seed"), Mapping) and "value" not in parameters["seed"]
    if seed_varies and method in ("random", "bayes"):
        what = f"a {method} search would select the luckiest seed"
        todo = "remove seed; se-lab sweep FILE --confirm 3 --seeds 5 reruns the best variants with fresh seeds"
        yield Finding("parameters.seed", what, todo)


def _size_problems(spec: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding if a spec has more than MOST_POINTS points."""
    cap, method = spec.get("run_cap"), spec.get("method")
    sizes = [grid_size(axis) for axis in spec["parameters"].values()] if method == "grid" else [0]
    size = math.prod(sizes) if method == "grid" else cap
    if type(cap) is int and cap > 0 and isinstance(size, int):
        size = min(size, cap)
    points = max(size, *sizes) if isinstance(size, int) else 0
    if points > MOST_POINTS:
        todo = f"at most {MOST_POINTS:,} are allowed: remove values, or set run_cap"
        yield Finding("parameters", f"the {method}{'' if method == 'grid' else ' search'} has {points:,} points", todo)


def _method_problems(spec: Mapping[str, Any]) -> Iterator[Finding]:
    method, cap = spec.get("method"), spec.get("run_cap")
    if method not in METHODS:
        todo = f"allowed are {', '.join(METHODS)}{nearest(str(method), METHODS)}"
        yield Finding("method", f"got {method!r}", todo)
    consumers = [what for what in ("bayes", "early_terminate") if what in (method, *spec)]
    if "early_terminate" in spec:
        yield from early_stop_problems(spec["early_terminate"])
    if cap is None and method in ("random", "bayes"):
        yield Finding("run_cap", "run_cap is missing", f"a {method} search needs the number of its trials")
    elif cap is not None and (type(cap) is not int or cap < 1):
        yield Finding("run_cap", f"got {cap!r}", "it must be a positive integer")
    metric = spec.get("metric")
    if metric is None and not consumers:
        return
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        what = f"got {metric!r}" if metric is not None else f"{consumers[0]} needs one"
        yield Finding("metric", what, "it must be {name: val/top1_error, goal: minimize}")
        return
    if consumers and metric["name"] not in VALIDATION_METRICS:
        todo = f"allowed are {', '.join(VALIDATION_METRICS)}{nearest(metric['name'], VALIDATION_METRICS)}"
        what = f"{consumers[0]} cannot use {metric['name']!r}: test images are for reporting only"
        yield Finding("metric.name", what, todo)
    if metric.get("impute", "worst") not in ("worst", "best", "latest"):
        yield Finding("metric.impute", f"got {metric['impute']!r}", "it must be worst, best or latest")
    if isinstance(target := metric.get("target", 0), bool) or not isinstance(target, (int, float)):
        yield Finding("metric.target", f"got {target!r}", "it must be a number")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        what = f"got {metric['goal']!r}, which W&B silently treats as minimize"
        yield Finding("metric.goal", what, "it must be minimize or maximize")
    for key in metric:
        if key not in (allowed := ("name", "goal", "target", "impute", "impute_while_running")):
            yield Finding(f"metric.{key}", "unknown key", f"allowed are {', '.join(allowed)}")


def _command_problems(spec: Mapping[str, Any]) -> Iterator[Finding]:
    if (command := spec.get("command")) is None:
        return
    if not isinstance(command, list):
        yield Finding("command", f"got {command!r}", 'it must be a list: ["${env}", se-lab, train, "${args}"]')
        return
    tokens = [str(token) for token in command]
    for token in tokens:
        if "${envvar:" in token:
            todo = "write the value itself, so that trials do not depend on the machine"
            yield Finding("command", f"{token!r} depends on the environment of the agent", todo)
        elif re.fullmatch(r"\$\{.*\}", token):
            if token not in MACROS:
                what = f"{token!r} is not a macro for se-lab train, and W&B drops unknown macros"
                yield Finding("command", what, f"use {', '.join(MACROS)}{nearest(token, MACROS)}")
        elif "${" in token:
            todo = 'write separate tokens: "--config", "${args_json_file}"'
            yield Finding("command", f"{token!r}: W&B expands a macro only if it is a whole token", todo)
    if "${args_json_file}" in tokens and tokens[tokens.index("${args_json_file}") - 1] != "--config":
        yield Finding("command", "${args_json_file} is not a flag", 'write "--config", "${args_json_file}"')
    if not any(token.startswith("${args") for token in tokens):
        what = "no token passes the parameters on: W&B would repeat one trial"
        yield Finding("command", what, 'add "${args}"')
    if (flags := _after_entry(tokens)) is None or (flags and not flags[0].startswith(("--", "${"))):
        text = " ".join(token for token in tokens if token not in MACROS)
        what = f"the command runs {text!r}; it must run se-lab train with its flags"
        yield Finding("command", what, 'write ["${env}", se-lab, train, …, "${args}"]')


def _after_entry(tokens: list[str]) -> list[str] | None:
    """Return the tokens after `se-lab train` in any of its forms, or None for another command."""
    rest = [token for token in tokens if token not in LAUNCHERS]
    for entry in ENTRIES:
        if rest[: len(entry)] == entry:
            return rest[len(entry) :]
    return rest if not rest or rest[0].startswith(("--", "${")) else None


def fixed_flags(spec: Mapping[str, Any]) -> list[str]:
    """Return the flags in a spec's command, which apply to every trial."""
    tokens = _after_entry([str(token) for token in spec.get("command") or []]) or []
    if "${args_json_file}" in tokens:
        index = tokens.index("${args_json_file}")
        tokens = tokens[: index - 1] + tokens[index + 1 :]
    return [token for token in tokens if token not in MACROS]


def _name_problems(name: str, parameters: Mapping[Any, Any]) -> Iterator[Finding]:
    if sections := [str(section) for section in parameters if name.startswith(f"{section}.")]:
        what = f"{name} is given twice: the parameter {sections[0]} sets it too"
        yield Finding(f"parameters.{name}", what, "remove one of the two")
    try:
        leaves({name: {}})
    except SpecError as error:
        yield Finding(f"parameters.{name}", str(error), "it must be the name of a field, such as model.se.reduction")


def _fixed_and_varied(spec: Mapping[str, Any], flags: list[str]) -> Iterator[Finding]:
    """Yield fixed flags that are parameters too: the later one on the command line applies."""
    tokens = [str(token) for token in spec.get("command") or []]
    args_index = next((index for index, token in enumerate(tokens) if token.startswith("${args")), len(tokens))
    for flag in flags:
        key = flag.removeprefix("--").partition("=")[0].replace("-", "_")  # flags may be spelt with - or _
        for name in map(str, spec["parameters"]):
            late = tokens.index(flag) > args_index
            if flag.startswith("--") and (key == name or (late and f"{key}.".startswith(f"{name}."))):
                what = f"{flag} is fixed, and {name} is a parameter: " + (
                    "the flag comes after ${args} and overrides it" if late else "the flag has no effect"
                )
                yield Finding("command", what, f"remove {flag} or the parameter")
