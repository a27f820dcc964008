"""Flags that several verbs have."""

from __future__ import annotations

import argparse


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="Replace files that SE-Lab did not write.")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust_plugins."""
    parser.add_argument("--trust_plugins", action="store_true", help="Import the plugins that a trial's record names.")


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add --data_root."""
    parser.add_argument(
        "--data_root", metavar="DIR", help="Where relative data paths start; by default SE_LAB_DATA, else this folder."
    )
