"""Read YAML from flags and files, and expand paths with `~` and variables."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from se_lab.spec.checks import SpecError

MAX_NODES = 1_000_000
"""Maximum number of values in a YAML text after expanding aliases; a few lines could otherwise expand to billions."""


class _Loader(yaml.SafeLoader):
    """A loader of YAML 1.1 that reads 1e-3 as a number."""


_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def expand_path(path: str | Path, root: str | Path = "") -> Path:
    """Return a path with `~` and variables expanded, relative to `root`."""
    return Path(expand_text(str(root)), expand_text(str(path)))


def expand_text(text: str) -> str:
    """Return text with variables and an initial `~` expanded, as a shell does."""
    return os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111


def read_yaml(text: str, *, as_flags: bool = False) -> Any:
    """Return the content of a YAML text.

    Args:
        text: The text.
        as_flags: Read 1e-3 as a number, as in flags. In sweep specs it is text, as W&B reads it.

    Raises:
        yaml.YAMLError: for a text that is not valid YAML.
        SpecError: for recursive aliases, too deep a nesting, or too many values.
    """
    loader = (_Loader if as_flags else yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        count = _count(node, {})
        if count > MAX_NODES:
            raise SpecError(f"its aliases expand to {count:,} values; at most {MAX_NODES:,} are allowed")
        return loader.construct_document(node)
    except RecursionError:
        raise SpecError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values under a node, with aliases expanded."""
    if id(node) in counts:
        if not (count := counts[id(node)]):
            raise SpecError("an alias in it contains itself")
        return count
    counts[id(node)] = 0  # being counted
    children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
    counts[id(node)] = 1 + (sum(_count(child, counts) for child in children) if isinstance(children, list) else 0)
    return counts[id(node)]
