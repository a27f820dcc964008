"""Flags shared by several verbs."""

from __future__ import annotations

import argparse
from typing import Any

SHARED: dict[str, dict[str, Any]] = {
    "data_root": {
        "metavar": "DIR",
        "help": "Folder for relative data paths; by default SE_LAB_DATA, else the current.",
    },
    "overwrite": {"action": "store_true", "help": "Replace files that SE-Lab did not write."},
    "plugins": {"default": "", "help": "Modules to import first, separated by commas."},
    "store": {"help": "The store of the trials; by default SE_LAB_STORE, else runs."},
    "sweep_seed": {"type": int, "default": 0, "metavar": "N", "help": "Seed of a random or Bayesian search."},
    "trust_plugins": {"action": "store_true", "help": "Import the plugins that a trial's record names."},
}


def add_flags(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add flags of SHARED, with changes to their arguments."""
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name] | changes)
