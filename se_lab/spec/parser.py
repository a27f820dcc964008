"""An argparse parser that suggests the nearest flag, and flags made from dataclass fields."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib.util
import types
import typing
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml

from se_lab.spec.checks import SpecError, check_choice, describe, hints_of, nearest
from se_lab.spec.reading import expand_text, read_yaml

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises SpecErrors, and accepts - in place of _ in flags."""

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    @property
    def flags(self) -> list[str]:
        """All flags of the parser."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments; return the options and the unknown arguments."""
        return super().parse_known_args(_with_underscores(args or (), self.flags), namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments; raise SpecError for an unknown flag."""
        options, rest = self.parse_known_args(args, namespace)
        unknown = [word.partition("=")[0] for word in rest if word.startswith("-")]
        if unknown:
            raise SpecError("; ".join(f"unknown flag {flag!r}{nearest(flag, self.flags)}" for flag in unknown))
        if rest:
            raise SpecError(f"unexpected argument {' '.join(rest)!r}; see {self.prog} --help")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise SpecError with argparse's message."""
        raise SpecError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # a shell does not expand ~ in `--store=~/runs`; values that are not paths contain no ~ or $
        kind = action.type if callable(action.type) else expand_text
        try:
            return kind(arg_string)
        except SpecError:
            raise
        except ValueError:
            raise SpecError(f"{_name_of(action)} is {arg_string!r}; it must be {describe(kind)}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            check_choice(_name_of(action), value, list(action.choices))


def add_fields(
    parser: Parser, cls: type, section: str = "", *, only: Collection[str] = (), listed: bool = True
) -> None:
    """Add a flag for each field of a dataclass, nested ones included; `values_of` reads them.

    Args:
        parser: The parser.
        cls: The dataclass.
        section: The dotted key of the dataclass, which prefixes the flags.
        only: The fields that get a flag; all by default.
        listed: Whether --help lists the flags.
    """
    docs = _docstrings(cls.__module__)[cls.__name__]
    group = parser.add_argument_group(section or cls.__name__, docs[""])
    for field in dataclasses.fields(cast(Any, cls)):
        hint, key = hints_of(cast(Hashable, cls))[field.name], f"{section}.{field.name}" if section else field.name
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        if nested:
            add_fields(parser, cast(type, hint), key, listed=listed)
        if only and field.name not in only:
            continue
        default = "" if nested or field.default in (dataclasses.MISSING, "") else f" (default: {field.default})"
        text = f"{docs[field.name]}{default}".replace("%", "%%") if listed else argparse.SUPPRESS
        add_key(group, key, functools.partial(pair, key, hint), text, metavar=f"{{{describe(hint)}}}")


def add_key(
    parser: argparse._ActionsContainer, key: str, kind: Callable[[str], Any], about: str, *, metavar: str | None = None
) -> None:
    """Add a flag whose (key, value) pairs are appended to the option `given`."""
    parser.add_argument(f"--{key}", dest="given", action="append", default=[], type=kind, metavar=metavar, help=about)


def values_of(pairs: Sequence[tuple[str, Any]], cls: type, section: str = "") -> dict[str, Any]:
    """Return the values for the fields of a dataclass, without those of its sections."""
    names = {f"{section}.{f.name}" if section else f.name: f.name for f in dataclasses.fields(cast(Any, cls))}
    return {names[key]: value for key, value in pairs if key in names}


def pair(key: str, hint: Any, text: str) -> tuple[str, Any]:
    """Return a field's key and the value of its flag: text as it is, other types read as YAML."""
    kinds = _options_of(hint)
    if kinds == {str}:
        return key, text
    if text == "None":  # as W&B's agent writes null
        return key, None
    try:
        value = read_yaml(text, as_flags=True)
    except SpecError as error:
        raise SpecError(f"{key} is {text!r}: {error}") from None
    except (yaml.YAMLError, ValueError):
        return key, text
    return key, text if str in kinds and not isinstance(value, bool) else value


def _options_of(hint: Any) -> set[Any]:
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return set(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else {hint}


@functools.cache
def _docstrings(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return {class: {'': its docstring, field: its docstring}} for the classes of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    texts: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            docs = texts[node.name] = {"": (ast.get_docstring(node) or "").partition("\n")[0]}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
                    docs[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _with_underscores(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return command-line arguments with - replaced by _ in known flags."""

    def rename(word: str) -> str:
        flag, equals, value = word.partition("=")
        name = "--" + flag[2:].replace("-", "_")
        return f"{name}{equals}{value}" if word.startswith("--") and name in flags else word

    return [rename(word) for word in words]


def _name_of(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
