"""Files that come with SE-Lab: sweep specs, recipes and analysis scripts, in a checkout and in an installed wheel."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from se_lab.spec.reading import expand_path

SHIPPED = {"sweeps": ".yaml", "recipes": ".yaml", "analysis": ".py"}
"""Each kind of shipped file, with its suffix."""


def find_sweep(name: str | Path) -> Path:
    """Return the path of a sweep spec: a file, or one of the shipped specs by its name, such as demo.

    The name precedes a folder of that name, such as that of the demo's figures; write ./demo for a store in it.
    """
    path = expand_path(name)
    return path if path.is_file() else shipped("sweeps").get(str(name), path)


def shipped(kind: str) -> dict[str, Path]:
    """Return the shipped files of a kind of SHIPPED, by name without suffix."""
    package = Path(str(resources.files("se_lab")))
    # a wheel has sweeps and analysis as package data, a checkout has them beside the package
    folders = (package / "spec" / kind, package.parent / kind)
    folder = next((path for path in folders if path.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob(f"*{SHIPPED[kind]}")) if file.stem != "__init__"}
