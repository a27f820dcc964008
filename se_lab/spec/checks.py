"""Check the values of dataclass fields against the fields' annotations.

`Annotated[int, Meta(ge=1)]` adds a range to a type, `Annotated[str, ("on", "off")]` adds the allowed values.
"""

from __future__ import annotations

import difflib
import functools
import math
import types
import typing
from collections.abc import Collection, Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, cast

import msgspec

Pieces = tuple[str | dict[str, Any], ...]
"""Class names, or mappings with class_path and init_args."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""The smallest and the largest integer that a field accepts: the range of PyTorch's seeds."""
_SWITCH = {"true": "on", "false": "off"}


class SpecError(ValueError):
    """An invalid value; the message names the value, the allowed values, and the nearest.

    Examples:
        >>> try:
        ...     SESpec(squeeze="averge")
        ... except SpecError as error:
        ...     print(error)
        model.se.squeeze is 'averge'; allowed are avg, max, none...
    """


def nearest(value: str, allowed: Collection[str]) -> str:
    """Return '; did you mean …?' for a name similar to an allowed one, else an empty string.

    Dotted keys that end in the same field name are preferred.
    """
    end = value.lstrip("-").rpartition(".")[2]
    names = [name for name in allowed if name.lstrip("-").rpartition(".")[2] == end]
    matches = difflib.get_close_matches(value, names, n=1, cutoff=0) or difflib.get_close_matches(value, allowed, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise SpecError, with the nearest allowed value, unless `value` is one of `allowed`."""
    if value in allowed:
        return
    raise SpecError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}{nearest(str(value), allowed)}")


def check_fields(spec: object, section: str = "") -> None:
    """Convert a dataclass's fields to their declared types in place, such as '1e-3' to 0.001.

    Raises:
        SpecError: for a value that the field's annotation does not allow.
    """
    for f in fields(cast(Any, spec)):
        key, hint = f"{section}.{f.name}" if section else f.name, hints_of(cast(Hashable, type(spec)))[f.name]
        object.__setattr__(spec, f.name, _checked(key, getattr(spec, f.name), hint))


@functools.cache
def hints_of(cls: Hashable) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass's fields."""
    return typing.get_type_hints(cls, include_extras=True)


def _checked(key: str, value: Any, hint: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()  # a NumPy scalar, as search engines return
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
        return value
    kind, rule = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint, None)
    if isinstance(rule, tuple):
        if "on" in rule:  # YAML reads on and off as true and false, and W&B's agent writes True and False
            value = _SWITCH.get(str(value).lower(), value)
        check_choice(key, value, rule)
    if type(value) is int and any(typing.get_origin(option) is tuple for option in (kind, *typing.get_args(kind))):
        value = (value,)  # a single stage or milestone needs no brackets
    if isinstance(value, Mapping) and kind == Pieces:
        value = (value,)
    if isinstance(value, str) and kind in (Pieces, tuple[str, ...]):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        # msgspec 0.19 fails on an integer that is too large for a float
        result = msgspec.convert(float(value) if kind is float and type(value) is int else value, kind, strict=False)
    except (msgspec.ValidationError, OverflowError, TypeError):
        result = math.nan
    if isinstance(result, float) and not math.isfinite(result):
        raise SpecError(f"{key} is {value!r}; it must be {describe(kind)}")
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        _check_range(key, result, rule or msgspec.Meta())
    if isinstance(result, dict) or kind == Pieces:
        _check_json(key, result)
    return result


def _check_range(key: str, value: float, rule: msgspec.Meta) -> None:
    low, high = rule.gt if rule.ge is None else rule.ge, rule.le
    least = MIN_INTEGER if low is None else low
    most = min(math.inf if high is None else high, MAX_INTEGER if isinstance(value, int) else math.inf)
    if (value > least if rule.gt is not None else value >= least) and value <= most:
        return
    bounds = [f"{'above' if rule.gt is not None else 'at least'} {_plain(least)}"]
    bounds += [f"at most {_plain(most)}"] if high is not None or value > most else []
    raise SpecError(f"{key} is {value!r}; it must be {' and '.join(bounds)}")


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _check_json(key: str, value: Any) -> None:
    """Raise SpecError for a value that JSON cannot represent; trial ids hash fields as JSON."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_json(f"{key}.{name}", inner)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _check_json(f"{key}[{number}]", inner)
    elif not isinstance(value, (str, int, float, type(None))) or value in (math.inf, -math.inf) or value != value:
        allowed = "a finite number, text (in quotes), true, false or null"
        raise SpecError(f"{key} is {value} (a {type(value).__name__}); it must be {allowed}")


def describe(hint: Any) -> str:
    """Return the allowed values of a type as text, such as 'an integer or null'."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin is typing.Annotated:
        return ", ".join(args[1]) if isinstance(args[1], tuple) else describe(args[0])
    if origin is tuple:
        kinds = typing.get_args(args[0]) or args[:1]
        return "a list of " + " or ".join(f"{describe(kind).removeprefix('an ').removeprefix('a ')}s" for kind in kinds)
    names = {float: "a finite number", int: "an integer", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, "a mapping")
