"""What the parsers of all verbs have in common: a mistake is one line, with the nearest flag, and status 2."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from se_lab.spec import SpecError
from se_lab.spec.mistakes import as_known, told


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are SpecErrors that name the nearest flag or choice."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse flags, - and _ being alike in their names."""
        return super().parse_known_args(as_known(args or (), self._option_string_actions), namespace)

    def error(self, message: str) -> NoReturn:
        """Raise SpecError."""
        raise SpecError(f"{told(message, self._option_string_actions)}; {self.prog} --help lists what there is")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="Replace files that SE-Lab did not write.")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust-plugins."""
    parser.add_argument("--trust-plugins", action="store_true", help="Import the plugins that a trial's record names.")
