"""Records as columns, and a file of them beside the trials, so that a second reading opens only what has changed.

The file is a cache and nothing else: each trial's row is kept under the size and the time of its record.json as the
file system has them, and is read anew where they differ. Deleted, torn or stale it costs time, never a wrong number.

It is safetensors: (N, 2) stamps, and of each column (N,) numbers, which are the values themselves or places in the
list of its distinct values that the header has. The rows stand in the order in which a reading gives them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FILE = ".index.safetensors"
VERSION = 2
"""Part of the file: another is not read. It goes up when the columns of a row change their meaning."""

STAMPS = ".stamps"

_AT_ONCE = 1_000  # rows that are packed together: more would leave the processor's cache

Stamp = tuple[int, int]
"""Time of last change in ns, and size in bytes."""


@dataclass(frozen=True)
class Values:
    """A column: plain numbers, or places in a list of distinct values of any kind that JSON has."""

    numbers: NDArray[Any]
    """(N,)"""
    distinct: list[Any] | None = None

    def take(self, places: NDArray[np.intp]) -> Values:
        """Return the column of the rows at those places; a value that no row has any more is dropped."""
        if self.distinct is None:
            return Values(self.numbers[places])
        left, numbers = np.unique(self.numbers[places], return_inverse=True)
        return Values(numbers.astype(np.int32), [self.distinct[code] for code in left])

    def to_list(self) -> list[Any]:
        """Return the values one by one."""
        if self.distinct is None:
            return list(self.numbers.tolist())
        return [self.distinct[code] for code in self.numbers]

    def to_array(self) -> Any:
        """Return the values as pandas would keep them in a column of its own."""
        return self.numbers if self.distinct is None else pd.Series(self.distinct).array.take(self.numbers)


Columns = dict[str, Values]


@dataclass(frozen=True)
class Index:
    """Rows of records that are over, each trial with the stamp of its record."""

    trials: list[str] = field(default_factory=list)
    stamps: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    columns: Columns = field(default_factory=dict)

    def take(self, places: Sequence[int]) -> Index:
        """Return the index of the trials at those places."""
        if list(places) == list(range(len(self.trials))):
            return self
        trials = [self.trials[place] for place in places]
        return Index(trials, self.stamps[np.asarray(places, np.intp)], take(self.columns, places))

    def add(self, stamps: Mapping[str, Stamp], rows: Iterable[dict[str, Any]]) -> Index:
        """Return the index with more trials, the stamps of their records and their rows, in order."""
        seen = np.concatenate([self.stamps, np.array(list(stamps.values()), np.int64).reshape(-1, 2)])
        whole = replace(self, trials=[*self.trials, *stamps], stamps=seen, columns=append(self.columns, rows))
        return whole.take(order_of(whole.columns))

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        from safetensors.numpy import save

        kept = {key: values for key, values in self.columns.items() if not _is_constant(values)}
        distinct = [[key, values.distinct] for key, values in self.columns.items()]
        header = json.dumps({"version": VERSION, "trials": self.trials, "distinct": distinct}, separators=(",", ":"))
        tensors = {key: np.ascontiguousarray(values.numbers) for key, values in kept.items()}
        return bytes(save({**tensors, STAMPS: self.stamps}, metadata={"header": header}))


def load_index(store: Path) -> Index:
    """Read the index of a store; an empty one where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(store / FILE, "np") as file:
            header = json.loads((file.metadata() or {})["header"])
            if header["version"] != VERSION:
                return Index()
            trials, there = header["trials"], set(file.keys())
            same = np.zeros(len(trials), np.int32)
            columns = {
                key: Values(file.get_tensor(key) if key in there else same, distinct)
                for key, distinct in header["distinct"]
            }
            index = Index(trials, file.get_tensor(STAMPS), columns)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return Index()
    lengths = {len(index.trials), len(index.stamps), *(len(values.numbers) for values in columns.values())}
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
    chosen = np.asarray(places, np.intp)
    return {key: values.take(chosen) for key, values in columns.items()}


def append(columns: Columns, rows: Iterable[dict[str, Any]]) -> Columns:
    """Return the columns with more rows; a key that a row does not have is None."""
    left = iter(rows)
    parts = [columns] if columns else []
    while some := list(islice(left, _AT_ONCE)):
        parts.append(_packed(some))
    if len(parts) == 1:
        return parts[0]
    nothing = [Values(np.zeros(_length(part), np.int32), [None]) for part in parts]
    keys = dict.fromkeys(chain.from_iterable(parts))
    return {key: _joined([part.get(key, blank) for part, blank in zip(parts, nothing, strict=True)]) for key in keys}


def order_of(columns: Columns) -> list[int]:
    """Return the order of the rows by spec and trial, the first key above all, numbers as numbers."""
    keys = [*(key for key in columns if "." in key or key == "seed"), "trial_id"]
    ranks = [_ranks(columns[key]) for key in keys if not _is_constant(columns[key])]
    return [int(place) for place in np.lexsort(ranks[::-1])] if ranks else list(range(_length(columns)))


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())).numbers) if columns else 0


def _is_constant(values: Values) -> bool:
    return values.distinct is not None and len(values.distinct) == 1


def _packed(rows: Sequence[dict[str, Any]]) -> Columns:
    shapes = dict.fromkeys(map(tuple, rows))
    blank = dict.fromkeys(chain.from_iterable(shapes))
    cells = zip(*(row.values() if len(shapes) == 1 else (blank | row).values() for row in rows), strict=True)
    return {key: _coded(values) for key, values in zip(blank, cells, strict=True)}


def _coded(values: Sequence[Any]) -> Values:
    """Pack a column: most are the same all through, and the others numbers or a few words."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and values.count(values[0]) == len(values):
        return Values(np.zeros(len(values), np.int32), list(values[:1]))
    if len(kinds) == 1 and kinds <= {int, float, bool}:
        numbers = np.array(values)
        if numbers.dtype.kind in "ifb":  # an integer beyond 64 bits is none of these
            return Values(numbers)
    return _in_places(values)


def _in_places(values: Sequence[Any]) -> Values:
    keys = values if set(map(type, values)) <= {str, type(None)} else list(map(repr, values))  # 1, 1.0, True are equal
    known = dict(zip(keys, values, strict=True))
    place = dict(zip(known, range(len(known)), strict=True))
    return Values(np.fromiter(map(place.__getitem__, keys), np.int32, len(keys)), list(known.values()))


def _joined(parts: Sequence[Values]) -> Values:
    kinds = {part.numbers.dtype if part.distinct is None else None for part in parts}
    if len(kinds) == 1 and None not in kinds:
        return Values(np.concatenate([part.numbers for part in parts]))
    lists = [part.distinct for part in parts if part.distinct is not None]
    if len(lists) < len(parts):
        return _coded([value for part in parts for value in part.to_list()])
    every = _in_places([value for distinct in lists for value in distinct])
    places = np.split(every.numbers, np.cumsum([len(distinct) for distinct in lists])[:-1])
    numbers = [place[part.numbers] for place, part in zip(places, parts, strict=True)]
    return Values(np.concatenate(numbers), every.distinct)


def _ranks(values: Values) -> NDArray[Any]:
    """Return each value's place among the distinct ones: nothing first, then by type, as numbers or as text."""
    if values.distinct is None:
        return values.numbers
    plain = [value if isinstance(value, (int, float, str, type(None))) else str(value) for value in values.distinct]
    keys = [("", "") if value is None else (type(value).__name__, value) for value in plain]
    rank = np.empty(len(keys), dtype=np.intp)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return np.asarray(rank[values.numbers])
