"""Convert specs from and to flat mappings with dotted keys, and name trials and variants."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar, cast

from se_lab.spec.checks import SpecError, hints_of, nearest
from se_lab.spec.fields import RunSpec, SESpec, moot_fields
from se_lab.spec.ids import dotted

NAME_LENGTH = 128
"""Maximum length of the name of a W&B run or group."""
T = TypeVar("T")


def label(trial: RunSpec) -> str:
    """Return a short description of a trial, such as 'cifar_resnet20 standard r=4, seed 1'."""
    return f"{_net(trial)}, seed {trial.seed}"


def variant_name(trial: RunSpec, max_length: int = NAME_LENGTH) -> str:
    """Return a variant's name: its backbone, its units, and all other non-default fields.

    A name of more than `max_length` characters is cut, and ends in a hash.
    """
    defaults = RunSpec().flat()
    parts = [
        f"{key if key.endswith('.name') else key.rpartition('.')[2]}={value}"
        for key, value in trial.flat().items()
        if not key.startswith(("model.backbone", "model.se.", "seed")) and value is not None and value != defaults[key]
    ]
    name = ", ".join([_net(trial), *parts])
    if len(name) <= max_length:
        return name
    return f"{name[: max_length - 14]}… {dataclasses.replace(trial, seed=0).trial_id}"


def run_name(trial: RunSpec) -> str:
    """Return the name of a trial's W&B run: the variant's name and the seed."""
    seed = f", seed {trial.seed}"
    return variant_name(trial, NAME_LENGTH - len(seed)) + seed


def _net(trial: RunSpec) -> str:
    """Return the backbone and the non-default settings of its units as text."""
    se, flat = trial.model.se, trial.flat()
    if se.insertion == "none":
        return f"{trial.model.backbone} no SE"
    words = [trial.model.backbone, *([] if se.unit == "se" else [se.unit]), se.insertion]
    if flat["model.se.reduction"] is not None:
        words.append(f"r={se.reduction}")
    words += [value for value, default in ((se.squeeze, "avg"), (se.excitation, "sigmoid")) if value != default]
    if se.stages != "all":
        words.append(f"stages {','.join(map(str, se.stages))}")
    details = {name: flat[f"model.se.{name}"] for name in ("bias", "units", "start")}
    words += [f"{name}={value}" for name, value in details.items() if value not in (None, getattr(SESpec(), name))]
    return " ".join(words)


def run_spec(values: Mapping[str, Any]) -> RunSpec:
    """Build a RunSpec from dotted keys (`model.se.reduction`) and sections (`model.se: {…}`).

    Raises:
        SpecError: for an unknown key, an invalid value, or a section given both ways.
    """
    nested: dict[str, Any] = {}
    for key, value in leaves(values).items():
        *path, name = key.split(".")
        target = nested
        for part in path:
            target = target.setdefault(part, {})
        target[name] = value
    return _build(RunSpec, nested)


def trial_of(common: RunSpec, point: Mapping[str, Any]) -> RunSpec:
    """Return the trial at a point of a sweep: `common` updated with the values of `point`.

    In a grid over `model.se.unit` and a detail, such as the reduction ratio, a unit without that detail keeps the
    default, so that all these points are one trial. A section that sets both is an error.

    Raises:
        SpecError: for an invalid value or conflicting values.
    """
    fields = leaves(point)
    values = dotted(common) | fields
    sections = [key for key in point if key not in fields]
    source = {key: next((section for section in sections if key.startswith(f"{section}.")), key) for key in values}
    for name in moot_fields(values["model.se.insertion"], values["model.se.unit"]):
        key = f"model.se.{name}"
        if values["model.se.insertion"] != "none" and source[key] != source["model.se.unit"]:
            values[key] = getattr(SESpec(), name)
    return run_spec(values)


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten dotted keys and sections to one dotted key per field.

    Raises:
        SpecError: for an unknown key, or a section given both ways.
    """
    keys, sections = _keys()
    fields: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if key in sections:
            if not isinstance(value, Mapping):
                raise SpecError(f"{key} is {value!r}; it takes a mapping of its fields, or dotted keys such as {key}.…")
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
        elif key not in keys:
            raise SpecError(f"unknown field {key!r}{nearest(key, keys)}")
        else:
            fields[key] = value

    for key, value in values.items():
        if parents := [section for section in values if key.startswith(f"{section}.")]:
            raise SpecError(f"{key} is given twice: its section {parents[0]} is given as well; remove one of the two")
        add(key, value)
    return fields


@functools.cache
def _keys() -> tuple[set[str], set[str]]:
    """Return the dotted keys of all fields, and those of all sections."""
    keys = set(dotted(RunSpec()))
    return keys, {key[:end] for key in keys for end in range(len(key)) if key[end] == "."}


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = hints_of(cast(Hashable, cls))
    if cls is SESpec:  # flat() gives moot fields as None
        moot = moot_fields(values.get("insertion", "standard"), values.get("unit", "se"))
        values = {key: value for key, value in values.items() if value is not None or key not in moot}
    return cls(**{k: _build(hints[k], v) if dataclasses.is_dataclass(hints[k]) else v for k, v in values.items()})
