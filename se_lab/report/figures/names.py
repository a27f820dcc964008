"""Names that fit their room: whole, in several lines, or as numbers with a key below the figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Measure = Callable[[str], float]
"""Returns the width of a text in pixels."""
_SPACES = r"(?<=\s)(?=\S)"
_BREAKS = r"(?<=[\s_/])(?=[^\s_./-])|(?<=[.-])(?=[^\s_./0-9-])"


class Names:
    """Fits names into a figure and keeps the numbers of those that are too long, each name with one number."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def fit(self, names: Sequence[str], room: float, measure: Measure, lines: int = 1) -> list[str]:
        """Return the names in at most `lines` lines of width `room`, or all of them as numbers."""
        wrapped_names = [wrapped(name, room, measure) for name in names]
        if all(name.count("\n") < lines and widest(name, measure) <= room for name in wrapped_names):
            return wrapped_names
        return [self.numbers.setdefault(name, str(len(self.numbers) + 1)) if name else "" for name in names]

    def key(self, room: float, measure: Measure) -> list[str]:
        """Return the numbered names, each in as many lines as it needs."""
        return [
            wrapped(f"{number}  {name}", room, measure).replace("\n", "\n     ")
            for name, number in self.numbers.items()
        ]


def widest(text: str, measure: Measure) -> float:
    """Return the width of the longest line."""
    return max(map(measure, text.split("\n")))


def wrapped(text: str, room: float, measure: Measure) -> str:
    """Break a text into lines no wider than the room, after spaces and _ . - / where it has them.

    Only after spaces where that takes no more lines; a number is never broken after its . or -.
    """
    if measure(text) <= room:
        return text
    broken = _broken(text, _BREAKS, room, measure)
    at_spaces = _broken(text, _SPACES, room, measure)
    words_fit = all(measure(word) <= room for word in text.split())
    return at_spaces if words_fit and at_spaces.count("\n") <= broken.count("\n") else broken


def _broken(text: str, breaks: str, room: float, measure: Measure) -> str:
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
