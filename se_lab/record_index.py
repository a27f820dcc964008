"""Records as columns, and a file of them beside the trials, so that a second reading opens only what has changed.

The file is a cache and nothing else: each trial's row is kept under the size and the time of its record.json as the
file system has them, and is read anew where they differ. Deleted, torn or stale it costs time, never a wrong number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FILE = ".index.json"
VERSION = 1
"""Part of the file: another is not read. It goes up when the columns of a row change their meaning."""

Stamp = tuple[int, int]
"""Time of last change in ns, and size in bytes."""
Columns = dict[str, list[Any]]


@dataclass
class Index:
    """Rows of records that are over, as columns of equal length, each trial with the stamp of its record."""

    trials: list[str] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)

    def take(self, places: Sequence[int]) -> Index:
        """Return the index of the trials at those places."""
        trials, stamps = [self.trials[place] for place in places], [self.stamps[place] for place in places]
        return Index(trials, stamps, take(self.columns, places))

    def add(self, stamps: Mapping[str, Stamp], rows: Sequence[dict[str, Any]]) -> None:
        """Put trials in with the stamps of their records and their rows."""
        self.trials += stamps
        self.stamps += stamps.values()
        self.columns = append(self.columns, rows)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        whole = {"version": VERSION, "trials": self.trials, "stamps": self.stamps, "columns": self.columns}
        return json.dumps(whole, separators=(",", ":")).encode()


def load_index(store: Path) -> Index:
    """Read the index of a store; an empty one where there is none that can be read."""
    try:
        whole = json.loads((store / FILE).read_bytes())
        if whole["version"] != VERSION:
            return Index()
        index = Index(whole["trials"], [tuple(stamp) for stamp in whole["stamps"]], whole["columns"])
    except (OSError, ValueError, KeyError, TypeError):
        return Index()
    lengths = {len(index.trials), len(index.stamps), *map(len, index.columns.values())}
    return index if len(lengths) == 1 else Index()


def stamp_of(record: Path) -> Stamp | None:
    """Return the stamp of a record.json, None where there is none."""
    try:
        found = record.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


def take(columns: Columns, places: Sequence[int]) -> Columns:
    """Return the rows at those places, in that order."""
    return {key: [values[place] for place in places] for key, values in columns.items()}


def append(columns: Columns, rows: Iterable[dict[str, Any]]) -> Columns:
    """Return the columns with more rows; a key that a row does not have is None."""
    added = list(rows)
    if not added:
        return columns
    before = len(next(iter(columns.values()), []))
    keys = dict.fromkeys([*columns, *(key for row in added for key in row)])
    return {key: columns.get(key, [None] * before) + [row.get(key) for row in added] for key in keys}


def order_by(columns: Columns, keys: Sequence[str]) -> list[int]:
    """Return the order of the rows by those columns, the first above all, numbers as numbers."""
    ranks = [_ranks(columns[key]) for key in keys if columns[key].count(columns[key][0]) < len(columns[key])]
    if not ranks:
        return list(range(len(next(iter(columns.values())))))
    return [int(place) for place in np.lexsort(ranks[::-1])]


def _ranks(values: list[Any]) -> list[int]:
    """Return each value's place among the distinct ones: by type, then as numbers or as text."""
    sortable = [(type(v).__name__, v if isinstance(v, (int, float, str)) else str(v)) for v in values]
    rank = {value: number for number, value in enumerate(sorted(set(sortable)))}
    return [rank[value] for value in sortable]
