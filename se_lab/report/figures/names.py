"""Names that fit their room: whole, in several lines, or as numbers with a key below the figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Measure = Callable[[str], float]
"""Returns the width of a text in pixels."""


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
    """Break a text into lines no wider than the room, after spaces and _ . - / where it has them."""
    if measure(text) <= room:
        return text
    lines, line = [], ""
    for piece in re.findall(r"[^\s_./-]*[\s_./-]*", text):
        if line and measure((line + piece).rstrip()) > room:
            lines.append(line.rstrip())
            line = ""
        line += piece
        while len(line) > 1 and measure(line.rstrip()) > room:
            end = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or measure(line[:n]) <= room)
            lines.append(line[:end])
            line = line[end:]
    return "\n".join([*lines, line.rstrip()] if line.strip() else lines)
