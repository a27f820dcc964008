"""Records as columns, and a file of them beside the trials, so that a second reading opens only what has changed.

The file is a cache and nothing else: each trial's row is kept under the size and the time of its record.json as the
file system has them, and is read anew where they differ. Deleted, torn or stale it costs time, never a wrong number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
        columns = {key: _packed(values) for key, values in self.columns.items()}
        whole = {"version": VERSION, "trials": self.trials, "stamps": self.stamps, "columns": columns}
        return json.dumps(whole, separators=(",", ":")).encode()


def load_index(store: Path) -> Index:
    """Read the index of a store; an empty one where there is none that can be read."""
    try:
        whole = json.loads((store / FILE).read_bytes())
        if whole["version"] != VERSION:
            return Index()
        trials = whole["trials"]
        columns = {key: _unpacked(values, len(trials)) for key, values in whole["columns"].items()}
        index = Index(trials, [(time, size) for time, size in whole["stamps"]], columns)
    except (OSError, ValueError, KeyError, TypeError):
        return Index()
    lengths = {len(index.trials), len(index.stamps), *map(len, index.columns.values())}
    return index if len(lengths) == 1 else Index()


def stamp_of(record: str) -> Stamp | None:
    """Return the stamp of a record.json, None where there is none."""
    try:
        found = os.stat(record)  # noqa: PTH116 (of ten thousand, a Path costs more than the question itself)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


def take(columns: Columns, places: Sequence[int]) -> Columns:
    """Return the rows at those places, in that order."""
    if list(places) == list(range(len(next(iter(columns.values()), [])))):
        return columns
    if len(places) < 2:
        return {key: [values[place] for place in places] for key, values in columns.items()}
    chosen = itemgetter(*places)
    return {key: list(chosen(values)) for key, values in columns.items()}


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


def _packed(values: list[Any]) -> list[Any] | dict[str, Any]:
    """Return a column as the file has it: most are the same all through, and are kept once."""
    same = len(set(map(type, values))) == 1 and values.count(values[0]) == len(values)
    return {"all": values[0]} if same else values


def _unpacked(values: list[Any] | dict[str, Any], length: int) -> list[Any]:
    return [values["all"]] * length if isinstance(values, dict) else values


def _ranks(values: list[Any]) -> NDArray[np.intp]:
    """Return each value's place among the distinct ones: nothing first, then by type, as numbers or as text."""
    try:
        codes, distinct = pd.factorize(pd.Series(values, dtype=object), use_na_sentinel=False)
    except TypeError:  # lists and mappings have no hash
        return _ranks([str(value) for value in values])
    keys = [("", "") if value is None or value != value else (type(value).__name__, value) for value in distinct]
    rank = np.empty(len(keys), dtype=np.intp)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return rank[codes]
