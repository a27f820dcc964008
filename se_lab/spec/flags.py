"""Convert flags, configuration files and recipes to specs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from se_lab.spec.build import leaves, run_spec
from se_lab.spec.checks import SpecError, check_choice, nearest
from se_lab.spec.execution import ExecSpec
from se_lab.spec.fields import RunSpec, moot_fields
from se_lab.spec.ids import dotted, fields_of
from se_lab.spec.parser import Parser, add_fields, add_key, pair
from se_lab.spec.reading import expand_path, read_yaml
from se_lab.spec.trainer_flags import SET_ELSEWHERE, TRAINER_FLAGS

_OWN = {one.name for one in dataclasses.fields(ExecSpec)} - {"recipe"}
"""The fields of ExecSpec that flags and files can set."""

Pairs = Sequence[tuple[str, Any]]
"""Flags as (key, value) pairs in the order of the command line."""


def add_trial_flags(parser: Parser, *, listed: bool = True) -> None:
    """Add --config, --recipe, and a flag for each field of RunSpec and ExecSpec."""
    for name, help_text in (
        ("config", "YAML file of fields; flags override it."),
        ("recipe", f"A recipe to start from: {', '.join(recipes())}."),
    ):
        add_key(parser, name, partial(_named, name), help_text)
    add_fields(parser, RunSpec, listed=listed)
    add_execution_flags(parser, listed=listed)


def add_execution_flags(parser: Parser, *, listed: bool = True) -> None:
    """Add --wandb, and a flag for each field of ExecSpec and each flag of L.Trainer."""
    add_fields(parser, ExecSpec, only=_OWN, listed=listed)
    for name in (*TRAINER_FLAGS, *SET_ELSEWHERE):
        add_key(parser, f"trainer.{name}", partial(pair, f"trainer.{name}", Any), argparse.SUPPRESS)
    help_text = "Short for --logger=wandb (true) and --logger=none (false)." if listed else argparse.SUPPRESS
    add_key(parser, "wandb", _logger_of, help_text, metavar="{true or false}")


def parse_trial(arguments: Sequence[str]) -> tuple[RunSpec, ExecSpec]:
    """Return the trial that command-line arguments describe; see `trial_from`."""
    parser = Parser("se-lab train")
    add_trial_flags(parser)
    return trial_from(parser.parse_args(arguments).given)


def trial_from(pairs: Pairs) -> tuple[RunSpec, ExecSpec]:
    """Return the trial that flags describe.

    The recipe is applied first, then configuration files, then flags; their order does not matter, since W&B's agent
    sorts them. Plugins are imported before names are checked.

    Raises:
        SpecError: for an unknown flag or an invalid value.
    """
    recipe = "".join([name for key, name in pairs if key == "recipe"][-1:])
    values = _file_values(_recipe_file(recipe)) if recipe else {}
    for file in (file for key, file in pairs if key == "config"):
        values |= _file_values(expand_path(file))
    for key, value in pairs:
        if key not in ("recipe", "config"):
            values |= _leaves({key: value})
    execution = _with_values(ExecSpec(recipe=recipe), values)
    values = {key: value for key, value in values.items() if key.partition(".")[0] not in _OWN}
    import_plugins(execution.plugins)
    if os.environ.get("WANDB_SWEEP_ID"):  # the flags are a point of a grid, in which moot details keep their defaults
        moot = moot_fields(values.get("model.se.insertion", "standard"), values.get("model.se.unit", "se"))
        values = {key: value for key, value in values.items() if key.removeprefix("model.se.") not in moot}
    return run_spec(values), execution


def execution_of(pairs: Pairs, defaults: ExecSpec | None = None) -> ExecSpec:
    """Return the ExecSpec that flags describe, with `defaults` for the other fields."""
    return _with_values(defaults or ExecSpec(), dict(pairs))


def _with_values(execution: ExecSpec, values: Mapping[str, Any]) -> ExecSpec:
    """Return a copy of an ExecSpec, updated with the values of its fields and trainer flags."""
    changes = {name: value for name, value in values.items() if name in _OWN}
    flags = {key.removeprefix("trainer."): value for key, value in values.items() if key.startswith("trainer.")}
    if flags:
        changes["trainer"] = changes.get("trainer", execution.trainer) | flags
    return dataclasses.replace(execution, **changes)


def recipe_changes(name: str, spec: RunSpec) -> dict[str, Any] | None:
    """Return a recipe's name and the fields that a trial changes, {key: [recipe's, trial's]}.

    A recipe consists of the data, optim and train sections, defaults included, and of the other fields that its file
    sets. The result is None without a recipe.
    """
    if not name:
        return None
    values = _file_values(_recipe_file(name))
    base, flat = run_spec(values).flat(), spec.flat()
    recipe_keys = {key for key in base if key in values or key.startswith(("data.", "optim.", "train."))}
    changes = {key: [base[key], flat[key]] for key in base if key in recipe_keys and base[key] != flat[key]}
    return {"name": name, "changed": changes}


def recipes() -> list[str]:
    """Return the names of the recipes that come with SE-Lab."""
    folder = resources.files("se_lab.spec") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def import_plugins(names: str, key: str = "plugins") -> None:
    """Import a user's modules, separated by commas, from the current folder or sys.path.

    Raises:
        SpecError: for a module that does not exist or cannot be imported.
    """
    if names and "" not in sys.path:
        sys.path.append("")  # last: a folder of the project must not shadow an installed package
    for name in filter(None, names.split(",")):
        try:
            importlib.import_module(name.strip())
        except Exception as error:  # a user's module can raise anything
            raise SpecError(f"{key} has {name!r}: {type(error).__name__}: {error}") from error


def import_recorded_plugins(names: str, origin: str | Path, trusted: bool) -> None:
    """Import the plugins that a file names, if the user trusts the file.

    Args:
        names: Modules, separated by commas.
        origin: The file that names the modules.
        trusted: Whether the user trusts the file.

    Raises:
        SpecError: if the file is not trusted and names modules that are not imported yet.
    """
    modules = [name for name in map(str.strip, names.split(",")) if name and name not in sys.modules]
    if modules and not trusted:
        raise SpecError(
            f"{origin} names plugins, whose code would be run: {', '.join(modules)}; if you trust the file, "
            "import them with --trust_plugins (in Python: trust_plugins=True)"
        )
    import_plugins(",".join(modules))


def _logger_of(text: str) -> tuple[str, str]:
    choices = {"true": "wandb", "false": "none"}
    if text.lower() not in choices:
        raise SpecError(f"wandb is {text!r}; it must be true or false")
    return "logger", choices[text.lower()]


def _named(key: str, text: str) -> tuple[str, str]:
    return key, text


def _recipe_file(name: str) -> Path:
    check_choice("recipe", name, recipes())
    return Path(str(resources.files("se_lab.spec") / "recipes" / f"{name}.yaml"))


def _file_values(file: Path) -> dict[str, Any]:
    """Return the fields in a configuration file as {dotted key: value}."""
    try:
        values = read_yaml(file.read_text(encoding="utf-8"), as_flags=True)
    except FileNotFoundError:
        raise SpecError(f"config is {str(file)!r}, which does not exist") from None
    except OSError as error:
        raise SpecError(f"config is {str(file)!r}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"config is {str(file)!r}, which is not UTF-8 text") from None
    except SpecError as error:
        raise SpecError(f"config is {str(file)!r}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"config is {str(file)!r}, which is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SpecError(f"config is {str(file)!r}, which contains {type(values).__name__}; it must map keys to values")
    return _leaves({str(key): value for key, value in values.items()})


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of RunSpec and ExecSpec with one dotted key each."""
    sections = {name for name, _ in fields_of(RunSpec())}
    for key in values:
        if key.partition(".")[0] not in _OWN | sections:
            raise SpecError(f"unknown field {key!r}{nearest(key, (*dotted(RunSpec()), *sorted(_OWN)))}")
    execution = {key: value for key, value in values.items() if key in _OWN or key.startswith("trainer.")}
    return leaves({key: value for key, value in values.items() if key not in execution}) | execution
