"""Compute trial ids and the seeds of random streams."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

SPEC_VERSION = 2
"""Hashed into every trial id; increased when a default or a meaning changes, so that old trials keep their ids."""


def seed_of(*key: int | str) -> int:
    """Return the 63-bit seed of the random stream with this key, such as (seed, "order", epoch).

    With a stream for each purpose, random numbers drawn for one purpose never affect another.
    """
    text = json.dumps(key, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def id_of(changed: Mapping[str, Any]) -> str:
    """Return a trial id: 12 hexadecimal digits, the hash of SPEC_VERSION and the changed fields."""
    text = json.dumps({"spec_version": SPEC_VERSION, **changed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fields_of(spec: object) -> list[tuple[str, Any]]:
    """Return the (name, value) pairs of a dataclass instance."""
    return [(f.name, getattr(spec, f.name)) for f in dataclasses.fields(cast(Any, spec))]


def dotted(spec: object, prefix: str = "") -> dict[str, Any]:
    """Return the fields of a nested dataclass as {dotted key: JSON value}."""
    flat: dict[str, Any] = {}
    for name, value in fields_of(spec):
        if dataclasses.is_dataclass(value):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
