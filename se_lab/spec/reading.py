"""Text from outside: YAML of flags and files, and paths with `~` and variables."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from se_lab.spec.checks import SpecError

MOST_NODES = 1_000_000
"""Values that a YAML text may have once its aliases are expanded; a few lines can otherwise expand to billions."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 in which 1e-3 is a number."""


_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def expand_path(path: str | Path, root: str | Path = "") -> Path:
    """Return a path from a flag, a variable or a file, with `~` and variables expanded, under `root` if relative.

    Every such path passes here once.
    """
    return Path(expand_text(str(root)), expand_text(str(path)))


def expand_text(text: str) -> str:
    """Return text with `~` at its start and variables expanded, as a shell does."""
    return os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111


def read_yaml(text: str, *, as_flags: bool = False) -> Any:
    """Return the content of a YAML text.

    Args:
        text: The text.
        as_flags: Read 1e-3 as a number, as flags do. W&B reads it as text, and so do its sweep specs here.

    Raises:
        yaml.YAMLError: for a text that is not YAML.
        SpecError: for one that contains itself, is nested too deeply, or grows too large when aliases are expanded.
    """
    loader = (_Loader if as_flags else yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        count = _count(node, {})
        if count > MOST_NODES:
            raise SpecError(f"its aliases expand to {count:,} values; at most {MOST_NODES:,} are allowed")
        return loader.construct_document(node)
    except RecursionError:
        raise SpecError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values under a node, each alias counted as what it stands for."""
    if id(node) in counts:
        if not (count := counts[id(node)]):
            raise SpecError("an alias in it stands within its own anchor, so that it contains itself")
        return count
    counts[id(node)] = 0  # being counted
    children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
    counts[id(node)] = 1 + (sum(_count(child, counts) for child in children) if isinstance(children, list) else 0)
    return counts[id(node)]
