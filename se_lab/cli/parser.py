"""What the parsers of all verbs have in common: a mistake is one line, with the nearest flag, and status 2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from se_lab.spec import SpecError, nearest


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are SpecErrors that name the nearest flag or choice."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse flags; --data_root is --data-root, since the fields of a trial are written with underscores."""
        return super().parse_known_args([self._as_ours(token) for token in args or ()], namespace)

    def _as_ours(self, token: str) -> str:
        flag, equals, value = token.partition("=")
        ours = flag.replace("_", "-")
        return f"{ours}{equals}{value}" if ours in self._option_string_actions else token

    def error(self, message: str, others: Iterable[str] = ()) -> NoReturn:
        """Raise SpecError; flags that another parser takes for this verb count as well."""
        close = ""
        if found := re.search(r"unrecognized arguments: .*?(--?[\w.-]+)", message):
            close = nearest(found[1], [*self._option_string_actions, *others])
        elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            close = nearest(found[1], re.findall(r"[\w.-]+", found[2]))
        raise SpecError(f"{message}{close}; {self.prog} --help lists what there is")
