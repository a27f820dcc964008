"""Files that come with SE-Lab: sweep specs, recipes and analysis scripts, in a checkout and in an installed wheel."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SHIPPED = {"sweeps": ".yaml", "recipes": ".yaml", "analysis": ".py"}
"""Each kind of shipped file, with its suffix."""


def shipped(kind: str) -> dict[str, Path]:
    """Return the shipped files of a kind of SHIPPED, by name without suffix."""
    package = Path(str(resources.files("se_lab")))
    # a wheel has sweeps and analysis as package data, a checkout has them beside the package
    folders = (package / "spec" / kind, package.parent / kind)
    folder = next((one for one in folders if one.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob(f"*{SHIPPED[kind]}")) if file.stem != "__init__"}
