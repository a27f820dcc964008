"""From command-line flags to specs: jsonargparse over the dataclasses, for the command and for sweep specs alike."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from se_lab.spec import ExecSpec, RunSpec, SpecError, check_choice, fields_of, nearest

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def trial_parser(**options: Any) -> ArgumentParser:
    """Return a parser with every field of RunSpec and ExecSpec under its dotted key, --config and --recipe."""
    parser = ArgumentParser(exit_on_error=False, **options)
    parser.add_argument("--config", action="config", help="YAML file of fields, read before the flags.")
    parser.add_argument("--recipe", metavar="NAME", help=f"A recipe of SE-Lab's, read first: {', '.join(recipes())}.")
    parser.add_class_arguments(RunSpec)
    parser.add_class_arguments(ExecSpec)
    return parser


def parse_trial(arguments: Sequence[str], parser: ArgumentParser | None = None) -> tuple[RunSpec, ExecSpec]:
    """Read a trial from flags.

    A recipe and configuration files count before all flags, wherever they stand: W&B's agent sorts what it hands over.
    Plugins are imported before names are checked.

    Raises:
        SpecError: saying which flag or value is wrong, what is allowed, and the nearest.
    """
    for value in _values_of("--plugins", arguments):
        import_plugins(value)
    parser = parser or trial_parser()
    try:
        parsed = parser.parse_args(_files_first(arguments))
        instance = parser.instantiate(parsed)
    except ArgumentError as error:
        raise SpecError(_explain(str(error), parser)) from None
    run = RunSpec(**{name: getattr(instance, name) for name, _ in fields_of(RunSpec())})
    execution = ExecSpec(**{name: getattr(instance, name) for name, _ in fields_of(ExecSpec())})
    return run, execution


def execution_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser with every field of ExecSpec."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_class_arguments(ExecSpec)
    return parser


def parse_execution(
    parser: ArgumentParser, arguments: Sequence[str], defaults: ExecSpec | None = None
) -> tuple[Any, ExecSpec]:
    """Read flags with a parser from `execution_parser`, and return all of them and the ExecSpec among them.

    Raises:
        SpecError: saying which flag or value is wrong.
    """
    parser.set_defaults(dict(fields_of(defaults or ExecSpec())))
    try:
        parsed = parser.instantiate(parser.parse_args(list(arguments)))
    except ArgumentError as error:
        raise SpecError(_explain(str(error), parser)) from None
    return parsed, ExecSpec(**{name: getattr(parsed, name) for name, _ in fields_of(ExecSpec())})


def import_plugins(names: str) -> None:
    """Import a user's modules, separated by commas, which may lie in the current folder, before any name is checked.

    Raises:
        SpecError: for a module that is not there or cannot be imported.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    for name in filter(None, names.split(",")):
        try:
            importlib.import_module(name.strip())
        except Exception as error:  # a user's module can raise anything
            raise SpecError(f"plugins has {name!r}: {type(error).__name__}: {error}") from error


def recipes() -> list[str]:
    """Return the names of the recipes that come with SE-Lab."""
    folder = resources.files("se_lab") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _files_first(arguments: Sequence[str]) -> list[str]:
    """Put --recipe and --config before the flags, in this order, and null for the None that W&B's agent writes."""
    recipe = [f"--config={_recipe_file(name)}" for name in _values_of("--recipe", arguments)]
    config = [f"--config={name}" for name in _values_of("--config", arguments)]
    rest = [token for token, _ in _tokens(arguments) if token.partition("=")[0] not in ("--recipe", "--config")]
    return recipe + config + [f"{token[:-4]}null" if token.endswith("=None") else token for token in rest]


def _recipe_file(name: str) -> str:
    check_choice("recipe", name, recipes())
    return str(resources.files("se_lab") / "recipes" / f"{name}.yaml")


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


def _explain(message: str, parser: ArgumentParser) -> str:
    """Add the nearest flag to jsonargparse's complaint of an unknown one."""
    head, _, flags = message.partition("unrecognized arguments: ")
    if not flags:
        return message
    given = flags.split()[0].partition("=")[0]
    return f"{head}unrecognized arguments: {flags}{nearest(given, parser._option_string_actions)}"
