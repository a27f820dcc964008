"""se-lab init."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from se_lab.spec.parser import Parser
from se_lab.spec.shipped import SHIPPED, shipped
from se_lab.spec.text import counted


def init(arguments: Sequence[str]) -> int:
    """Copy the shipped sweep specs, recipes and analysis scripts into a folder."""
    parser = Parser(
        prog="se-lab init",
        description="Copy the shipped sweep specs, recipes and analysis scripts into a folder, for editing. "
        "Existing files are kept.",
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="The folder; by default the current one.")
    root = Path(parser.parse_args(arguments).folder)
    for kind in SHIPPED:
        files = shipped(kind)
        target = root / kind
        target.mkdir(parents=True, exist_ok=True)
        new_files = [file for file in files.values() if not os.path.lexists(target / file.name)]
        for file in new_files:
            shutil.copyfile(file, target / file.name)
        suffix = f", {len(files) - len(new_files)} kept" if len(new_files) < len(files) else ""
        print(f"{target}: {counted(len(new_files), 'file')} copied{suffix}")
    print(f"Try: se-lab sweep {root / 'sweeps' / 'demo.yaml'} --dry_run")
    return 0
