"""Functions shared by benchmarks: interleaved timing, ratios, Markdown tables and sections.

The sides of a comparison run in turn within each round, and ratios are computed within rounds, so that other load on
the machine affects all sides equally.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles over rounds of the ratio of two times."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}–{self.high:.3f})"


def interleave(
    sides: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run every side once per round, and return seconds by round, after a warm-up round.

    A side on a GPU must synchronize at its end.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            began = clock()
            side()
            if number:
                times[name].append(clock() - began)
    return times


def ratio(times: Mapping[str, Sequence[float]], side: str, base: str) -> Ratio:
    """Return the ratio of the times of a side and the base, computed within rounds."""
    ratios = sorted(a / b for a, b in zip(times[side], times[base], strict=True))
    quarter = len(ratios) // 4
    return Ratio(statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with padded columns, for terminals."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def with_section(text: str, name: str, section: str, place: int) -> str:
    """Replace the section between comments with its name in a text, or insert it at `place`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = f"{start}\n{section}\n{end}\n"
    if start in text and end in text:
        before, after = text.partition(start)[0], text.partition(end)[2]
        return before + whole + after.removeprefix("\n")
    return f"{text[:place]}\n{whole}{text[place:]}"
