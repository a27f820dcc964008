"""How flags may be written, and how a mistake in one is told: what was given, what is allowed, the nearest."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from se_lab.spec import nearest

_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "dict": "a mapping"}


def as_known(tokens: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return the words of a command line with each flag as its parser has it: - and _ are alike, --data_root too."""
    known = {_plain(flag): flag for flag in flags if flag.startswith("--")}

    def renamed(token: str) -> str:
        flag, equals, value = token.partition("=")
        return f"{known[_plain(flag)]}{equals}{value}" if token.startswith("--") and _plain(flag) in known else token

    return [renamed(token) for token in tokens]


def told(message: str, flags: Collection[str]) -> str:
    """Return what argparse or jsonargparse says of a wrong command line in SE-Lab's words, in one line.

    Args:
        message: Their message.
        flags: Every flag there is.
    """
    text = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (.*)", text):
        unknown = [token.partition("=")[0] for token in found[1].split() if token.startswith("-")]
        if not unknown:
            return f"nothing takes {found[1]!r}"
        return "; ".join(f"no flag is called {flag!r}{nearest(flag, flags)}" for flag in unknown)
    if found := re.search(r"(?:Group '([\w.]+)' does not accept o|O)ption '([\w.-]+)'", text):
        key = ".".join(filter(None, found.groups()))
        return f"no field is called {key!r}{nearest(key, [flag.lstrip('-') for flag in flags])}"
    if found := re.search(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", text):
        flag, given, allowed = found[1], found[2], re.findall(r"[\w.-]+", found[3])
        return f"{flag} is {given!r}; allowed are {', '.join(allowed)}{nearest(given, allowed)}"
    if found := re.search(r"argument (\S+): invalid (\w+) value: '(.*)'", text):
        return f"{found[1]} is {found[3]!r}; it must be {_KINDS.get(found[2], found[2])}"
    if found := re.search(r'Parser key "([\w.]+)":.*Expected an? <class \'(\w+)\'>.*value: (.*)', text):
        return f"{found[1]} is {found[3]!r}; it must be {_KINDS.get(found[2], found[2])}"
    if found := re.search(r'Parser key "(\w+)": File does not exist: \'(.*)\'', text):
        return f"{found[1]} is {found[2]!r}, and there is no such file"
    return text


def _plain(flag: str) -> str:
    return flag.replace("-", "_")
