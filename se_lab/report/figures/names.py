"""Fit names into limited space: on one line, on several lines, or as numbers with a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Measure = Callable[[str], float]
"""Returns the width of a text in pixels."""
_SPACES = r"(?<=\s)(?=\S)"
_BREAKS = r"(?<=[\s_/])(?=[^\s_./-])|(?<=[.-])(?=[^\s_./0-9-])"


class Names:
    """Fits the names in a figure, and numbers those that are too long."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def fit(self, names: Sequence[str], room: float, measure: Measure, lines: int = 1) -> list[str]:
        """Return the names wrapped to at most `lines` lines of width `room`, or numbers for all."""
        wrapped_names = [wrap(name, room, measure) for name in names]
        if all(name.count("\n") < lines and widest(name, measure) <= room for name in wrapped_names):
            return wrapped_names
        return [self.numbers.setdefault(name, str(len(self.numbers) + 1)) if name else "" for name in names]

    def key(self, room: float, measure: Measure) -> list[str]:
        """Return the key of numbered names, wrapped to width `room`."""
        return [
            wrap(f"{number}  {name}", room, measure).replace("\n", "\n     ") for name, number in self.numbers.items()
        ]


def widest(text: str, measure: Measure) -> float:
    """Return the width of the longest line."""
    return max(map(measure, text.split("\n")))


def wrap(text: str, room: float, measure: Measure) -> str:
    """Wrap a text to width `room`, at spaces or after _ . - /.

    Lines break only at spaces if this takes no more lines; numbers are not broken after . or -.
    """
    if measure(text) <= room:
        return text
    broken = _break(text, _BREAKS, room, measure)
    at_spaces = _break(text, _SPACES, room, measure)
    words_fit = all(measure(word) <= room for word in text.split())
    return at_spaces if words_fit and at_spaces.count("\n") <= broken.count("\n") else broken


def _break(text: str, breaks: str, room: float, measure: Measure) -> str:
    lines, line = [], ""
    for piece in re.split(breaks, text):
        if line and measure((line + piece).rstrip()) > room:
            lines.append(line.rstrip())
            line = ""
        line += piece
        while len(line) > 1 and measure(line.rstrip()) > room:
            end = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or measure(line[:n]) <= room)
            lines.append(line[:end])
            line = line[end:]
    return "\n".join([*lines, line.rstrip()] if line.strip() else lines)
