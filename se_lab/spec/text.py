"""Numbers and lists of names in messages."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun, such as '1 image' or '1,234 images'."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Iterable[object], most: int, separator: str = ", ") -> str:
    """Join up to `most` names, followed by the number of the others, such as 'a, b and 3 more'."""
    items = [str(name) for name in names]
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
