"""Linter for sweep specs: find everything that W&B would refuse or silently change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from se_lab.spec import RunSpec, SpecError, find_sweep, leaves, nearest, trial_of
from se_lab.sweep.axes import Axis, Finding, draw, grid_values
from se_lab.sweep.grammar import common_of, load_spec, points_of, problems
from se_lab.units.model import create_model

METRICS = tuple(f"{split}/{what}" for split in ("val", "test") for what in ("loss", "top1_error", "top5_error"))


def sweep_remarks(path: str | Path) -> list[Finding]:
    """Return remarks on valid parts of a spec that are easily misunderstood.

    Raises:
        SpecError: if the file is missing or not YAML.
    """
    spec = load_spec(path)
    remarks = list(_agent_commands(find_sweep(path).read_text(encoding="utf-8")))
    stop = spec.get("early_terminate") if isinstance(spec, Mapping) else None
    if isinstance(stop, Mapping) and "strict" not in stop:
        what = "not given, so W&B's engine and SE-Lab use true"
        remarks.append(Finding("early_terminate.strict", what, "write strict: true or strict: false"))
    return remarks


def check_sweep(path: str | Path) -> list[Finding]:
    """Return the problems of a sweep spec; a spec without any runs the same in SE-Lab and W&B.

    Raises:
        SpecError: if the file is missing or not YAML.
    """
    spec = load_spec(path)
    text = find_sweep(path).read_text(encoding="utf-8")
    refusals = list(problems(spec))
    findings = [*_duplicate_keys(yaml.compose(text)), *refusals]
    if isinstance(spec, Mapping):
        findings += _wandb_differences(spec)
        findings += _trial_findings(spec, refusals)
    return list(dict.fromkeys(findings))


def _duplicate_keys(node: yaml.Node | None, where: str = "") -> Iterator[Finding]:
    """Yield duplicate keys of the file's mappings, of which YAML parsers silently use the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicate_keys(item, where)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            name = f"{where}.{key.value}" if where else str(key.value)
            if name in names:
                yield Finding(name, f"duplicate key in line {key.start_mark.line + 1}", "remove one of the two")
            names.add(name)
            yield from _duplicate_keys(value, name)


def _wandb_differences(spec: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the parts of a spec that SE-Lab accepts and W&B would run differently."""
    if "command" not in spec:
        what = f"missing, so an agent runs: python {spec.get('program', '')} and the parameters"
        yield Finding("command", what, 'write command: ["${env}", se-lab, train, "${args}"]')
    if not spec.get("program"):
        yield Finding(
            "program", "missing; W&B's agent needs it even if the command does not use it", "write program: se-lab"
        )
    metric = spec.get("metric")
    name = metric.get("name") if isinstance(metric, Mapping) else None
    if isinstance(name, str) and name not in METRICS:
        yield Finding(
            "metric.name", f"no trial logs {name!r}", f"logged are {', '.join(METRICS)}{nearest(name, METRICS)}"
        )
    for key, axis in _parameters(spec).items():
        if not isinstance(axis, Mapping):
            continue
        if (distribution := axis.get("distribution")) in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
            todo = f"use {distribution}_values, whose bounds are values"
            yield Finding(f"parameters.{key}", f"{distribution} is deprecated: its bounds are exponents of e", todo)
        values = axis.get("values") if isinstance(axis.get("values"), list) else [axis.get("value", 0)]
        if _has_null(values) and "${args_json_file}" not in str(spec.get("command")):
            todo = 'remove the field, or use "--config", "${args_json_file}" in place of "${args}"'
            yield Finding(f"parameters.{key}", "null is passed to a trial as the text None", todo)


def _parameters(spec: Mapping[str, Any]) -> dict[str, Any]:
    parameters = spec.get("parameters")
    return {str(key): axis for key, axis in parameters.items()} if isinstance(parameters, Mapping) else {}


def _has_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_null, value.values()))
    return value is None or (isinstance(value, list) and any(map(_has_null, value)))


def _trial_findings(spec: Mapping[str, Any], refusals: list[Finding]) -> Iterator[Finding]:
    """Yield invalid values, nets that cannot be built, and points that are the same trial."""
    try:
        common, _ = common_of(spec)
    except (SpecError, TypeError, ValueError):
        common = RunSpec()  # an invalid command is reported elsewhere
    wrong_keys = {finding.where for finding in refusals} | {finding.where.rpartition(".")[0] for finding in refusals}
    axes = {name: axis for name, axis in _parameters(spec).items() if f"parameters.{name}" not in wrong_keys}
    middle = {name: draw(axis, 0.5) for name, axis in axes.items()}
    points = [] if refusals or spec["method"] == "bayes" else points_of(spec, 0)
    trials: list[RunSpec | None] = []
    for point in [*points, *(middle | {name: value} for name, axis in axes.items() for value in _extremes(axis))]:
        trial, findings = _try(common, point)
        trials.append(trial)
        yield from findings
    yield from _net_findings([trial for trial in trials if trial is not None])
    if spec.get("method") == "grid":
        yield from _repeated_points(points, trials[: len(points)])


def _extremes(axis: Axis) -> list[Any]:
    """Return all values of a parameter, or the ends of its range."""
    if "value" in axis or "values" in axis:
        return grid_values(axis)
    return [draw(axis, 0), draw(axis, 1)] if {"min", "a"} & {*axis} else []


def _try(common: RunSpec, point: Mapping[str, Any]) -> tuple[RunSpec | None, list[Finding]]:
    """Return the trial of a point, or None, and all findings, removing invalid values in turn."""
    findings: list[Finding] = []
    values = point
    try:
        fields = leaves(point)
    except SpecError as error:
        return None, [_as_finding(point, error)]
    while True:
        try:
            trial = trial_of(common, values)
            return (None if findings else trial), findings
        except SpecError as error:
            findings.append(_as_finding(point, error))
            wrong_key = next((key for key in fields if str(error).startswith(f"{key} ")), None)
            if wrong_key is None:
                return None, findings
            del fields[wrong_key]
            values = fields


def _as_finding(point: Mapping[str, Any], error: SpecError) -> Finding:
    """Convert the error of a trial into a finding."""
    what, _, todo = str(error).partition("; ")
    names = [name for name in point if re.search(rf"(^|[ '(]){re.escape(name)}\b", what)]
    return Finding(f"parameters.{names[0]}" if names else "the trials", what, todo or "choose another value")


def _net_findings(trials: list[RunSpec]) -> Iterator[Finding]:
    for model in dict.fromkeys(str(trial.model) for trial in trials):
        trial = next(trial for trial in trials if str(trial.model) == model)
        try:
            with torch.device("meta"):
                create_model(trial.model, 10, 3)
        except SpecError as error:
            yield _as_finding(dict.fromkeys(("model.se", "model.backbone", "model")), error)


def _repeated_points(points: list[dict[str, Any]], trials: list[RunSpec | None]) -> Iterator[Finding]:
    first: dict[str, dict[str, Any]] = {}
    repeats: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for point, trial in zip(points, trials, strict=True):
        if trial is not None and first.setdefault(trial.trial_id, point) is not point:
            repeats.append((first[trial.trial_id], point))
    if repeats:
        one, other = ({key: p[key] for key in p if repeats[0][0][key] != repeats[0][1][key]} for p in repeats[0])
        what = f"{len(repeats)} of {len(points)} points repeat the trial of another point, such as {one} and {other}"
        todo = "W&B would run each: remove them, or make the section one parameter with a mapping for each variant"
        yield Finding("parameters", what, todo)


def _agent_commands(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"wandb agent\b", line) and not re.search(r"\s(-f|--forward-signals)\b", line):
            what = "a stopped W&B agent leaves its trial running unless it forwards signals"
            yield Finding(f"line {number}", what, "write wandb agent -f")
