"""From command-line flags to specs: jsonargparse over the dataclasses, for the command and for sweep specs alike."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from se_lab.spec import ExecSpec, RunSpec, SESpec, SpecError, check_choice, fields_of, leaves, moot_fields, run_spec
from se_lab.spec.mistakes import as_known, told

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def trial_parser(**options: Any) -> ArgumentParser:
    """Return a parser with every field of RunSpec and ExecSpec under its dotted key, --config and --recipe."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument("--config", action="config", help="YAML file of fields, read before the flags.")
    parser.add_argument("--recipe", metavar="NAME", help=f"A recipe of SE-Lab's, read first: {', '.join(recipes())}.")
    parser.add_class_arguments(RunSpec)
    parser.add_class_arguments(ExecSpec, skip={"recipe"})
    return parser


def parse_trial(
    arguments: Sequence[str], parser: ArgumentParser | None = None, *, beside: Collection[str] = ()
) -> tuple[RunSpec, ExecSpec]:
    """Read a trial from flags; `beside` are those that the verb has taken itself, which an unknown one may mean.

    A recipe and configuration files count before all flags, wherever they stand: W&B's agent sorts what it hands over.
    Plugins are imported before names are checked.

    Raises:
        SpecError: saying which flag or value is wrong, what is allowed, and the nearest.
    """
    for value in [*_values_of("--plugins", arguments), *map(_plugins_in, _values_of("--config", arguments))]:
        import_plugins(value)
    parser, recipe = parser or trial_parser(), "".join(_values_of("--recipe", arguments)[-1:])
    arguments = as_known(_files_first(arguments), parser._option_string_actions)
    try:
        parsed = parser.parse_args(arguments)
        if "WANDB_SWEEP_ID" in os.environ:  # the flags are a point of a grid, in which a unit's moot details stay usual
            for name in moot_fields(parsed.model.se.insertion, parsed.model.se.unit):
                parsed.model.se[name] = getattr(SESpec(), name)
        instance = parser.instantiate(parsed)
    except ArgumentError as error:
        raise _mistake(error, [*parser._option_string_actions, *beside], arguments) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"a configuration file is no text: {error}") from None
    except RecursionError:
        raise SpecError(
            "a value of a flag or of a configuration file contains itself, or is nested too deeply"
        ) from None
    run = RunSpec(**{name: getattr(instance, name) for name, _ in fields_of(RunSpec())})
    return run, _execution_of(instance, recipe)


def recipe_changes(name: str, spec: RunSpec) -> dict[str, Any] | None:
    """Return a recipe's name and what of it a trial has otherwise, as {key: [the recipe's, the trial's]}.

    A recipe is all of its data, optim and train sections, whether its file names a field or leaves it at its default;
    of the other sections, what its file names. None stands for no recipe.
    """
    if not name:
        return None
    values = leaves(yaml.safe_load(Path(_recipe_file(name)).read_text(encoding="utf-8")))
    before, now = run_spec(values).flat(), spec.flat()
    its_own = {key for key in before if key in values or key.startswith(("data.", "optim.", "train."))}
    changed = {key: [before[key], now[key]] for key in before if key in its_own and before[key] != now[key]}
    return {"name": name, "changed": changed}


def execution_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser with every field of ExecSpec."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(ExecSpec, skip={"recipe"})
    return parser


def parse_execution(
    parser: ArgumentParser, arguments: Sequence[str], defaults: ExecSpec | None = None
) -> tuple[Any, ExecSpec]:
    """Read flags with a parser from `execution_parser`, and return all of them and the ExecSpec among them.

    Raises:
        SpecError: saying which flag or value is wrong.
    """
    defaults = defaults or ExecSpec()
    parser.set_defaults({name: value for name, value in fields_of(defaults) if name != "recipe"})
    try:
        arguments = as_known(arguments, parser._option_string_actions)
        parsed = parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise _mistake(error, parser._option_string_actions, arguments) from None
    return parsed, _execution_of(parsed, recipe=defaults.recipe)


def import_plugins(names: str) -> None:
    """Import a user's modules, separated by commas, which may lie in the current folder, before any name is checked.

    Raises:
        SpecError: for a module that is not there or cannot be imported.
    """
    if names and "" not in sys.path:
        sys.path.append("")  # last: a folder of the project must not stand in for an installed package
    for name in filter(None, names.split(",")):
        try:
            importlib.import_module(name.strip())
        except Exception as error:  # a user's module can raise anything
            raise SpecError(f"plugins has {name!r}: {type(error).__name__}: {error}") from error


def import_recorded_plugins(names: str, origin: str | Path, trusted: bool) -> None:
    """Import the plugins that a file names, if the user trusts them or has imported them.

    Args:
        names: Modules, separated by commas.
        origin: The file that names them.
        trusted: Whether the user said so.

    Raises:
        SpecError: naming the modules that would be imported.
    """
    unknown = [name for name in map(str.strip, names.split(",")) if name and name not in sys.modules]
    if unknown and not trusted:
        raise SpecError(
            f"{origin} names plugins, which are code that would run here: {', '.join(unknown)}; if you trust it, "
            "--trust-plugins (in Python: trust_plugins=True) imports them"
        )
    import_plugins(",".join(unknown))


def _execution_of(parsed: Any, recipe: str) -> ExecSpec:
    fields = {name: getattr(parsed, name) for name, _ in fields_of(ExecSpec()) if name != "recipe"}
    return ExecSpec(**fields, recipe=recipe)


def _plugins_in(file: str) -> str:
    """Return the plugins that a configuration file names; what is wrong with the file is said by who reads it."""
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return ""
    plugins = values.get("plugins", "") if isinstance(values, dict) else ""
    return plugins if isinstance(plugins, str) else ""


def recipes() -> list[str]:
    """Return the names of the recipes that come with SE-Lab."""
    folder = resources.files("se_lab.spec") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _files_first(arguments: Sequence[str]) -> list[str]:
    """Put --recipe and --config before the flags, in this order, and null for the None that W&B's agent writes."""
    recipe = [f"--config={_recipe_file(name)}" for name in _values_of("--recipe", arguments)]
    config = [f"--config={name}" for name in _values_of("--config", arguments)]
    for token, value in _tokens(arguments):
        if token in ("--recipe", "--config") and value is None:
            raise SpecError(
                f"{token} needs a value, such as {token} {'digits' if token == '--recipe' else 'FILE.yaml'}"
            )
    rest = [token for token, _ in _tokens(arguments) if token.partition("=")[0] not in ("--recipe", "--config")]
    return recipe + config + [f"{token[:-4]}null" if token.endswith("=None") else token for token in rest]


def _recipe_file(name: str) -> str:
    check_choice("recipe", name, recipes())
    return str(resources.files("se_lab.spec") / "recipes" / f"{name}.yaml")


def _values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    return [value for token, value in _tokens(arguments) if token.partition("=")[0] == flag and value is not None]


def _tokens(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Bring `--flag value` into the form `--flag=value`; return each token with its value."""
    tokens: list[tuple[str, str | None]] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if token.startswith("--") and "=" not in token and rest and not rest[0].startswith("--"):
            token = f"{token}={rest.pop(0)}"
        tokens.append((token, token.partition("=")[2] if "=" in token else None))
    return tokens


def _mistake(error: ArgumentError, flags: Collection[str], arguments: Sequence[str]) -> SpecError:
    """Return jsonargparse's complaint as the field's own, which says what is allowed; else in SE-Lab's words."""
    key = (re.findall(r'Parser key "([\w.]+)"', str(error)) or [""])[0]
    given = [_yaml_of(value) for value in _values_of(f"--{key}", arguments)]
    for file in _values_of("--config", arguments):
        with contextlib.suppress(OSError, yaml.YAMLError):
            given += _under(key, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    for value in given:
        try:
            if key in dict(fields_of(ExecSpec())):
                ExecSpec(**{key: value})
            else:
                run_spec({key: value})
        except SpecError as own:
            if "no field is called" not in str(own) or key.partition(".")[0] in dict(fields_of(RunSpec())):
                return own
    return SpecError(told(str(error), flags))


def _yaml_of(text: str) -> Any:
    """Return a flag's value as YAML has it, and what is no YAML as it stands."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _under(key: str, values: Any) -> list[Any]:
    """Return what a configuration file has under a dotted key, written whole or nested, or nothing."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if name == key:
            return [value]
        if key.startswith(f"{name}."):
            return _under(key.removeprefix(f"{name}."), value)
    return []
