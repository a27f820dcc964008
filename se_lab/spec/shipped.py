"""Find the files that come with SE-Lab: sweep specs, recipes and analysis scripts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from se_lab.spec.reading import expand_path

SHIPPED = {"sweeps": ".yaml", "recipes": ".yaml", "analysis": ".py"}
"""The suffix of each kind of shipped file."""


def find_sweep(name: str | Path) -> Path:
    """Return the path of a sweep spec, given as a path or as a shipped spec's name.

    The name of a shipped spec takes precedence over a folder of that name; write ./demo for the folder.
    """
    path = expand_path(name)
    return path if path.is_file() else shipped("sweeps").get(str(name), path)


def shipped(kind: str) -> dict[str, Path]:
    """Return the shipped files of one kind (a key of SHIPPED) as {name without suffix: path}."""
    package = Path(str(resources.files("se_lab")))
    # a wheel has sweeps and analysis as package data, a checkout has them beside the package
    folders = (package / "spec" / kind, package.parent / kind)
    folder = next((path for path in folders if path.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob(f"*{SHIPPED[kind]}")) if file.stem != "__init__"}
