"""Read the trials of a store as a table with one row per trial."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from se_lab.store.claims import holder_of
from se_lab.store.files import check_seal, read_bytes
from se_lab.store.provenance import merge_parts
from se_lab.store.record import broken_record, check_owner, trial_folder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


class _Costs(msgspec.Struct, frozen=True):
    params: Any = None
    params_se: Any = None
    macs: Any = None
    macs_se: Any = None
    elementwise: Any = None


class _Provenance(msgspec.Struct, frozen=True, rename={"se_lab": "se-lab"}):
    se_lab: Any = None


class _Data(msgspec.Struct, frozen=True):
    digest: Any = None
    images: dict[str, Any] = {}


class _Segment(msgspec.Struct, frozen=True):
    provenance: dict[str, str] = {}


class _Record(msgspec.Struct, frozen=True):
    status: str
    spec: dict[str, Any]
    trial_id: str | None = None
    error: str | None = None
    metrics: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    complexity: _Costs = _Costs()
    provenance: msgspec.Raw = msgspec.Raw(b"{}")
    segments: list[_Segment] = []
    data: _Data = _Data()


_DECODER = msgspec.json.Decoder(_Record)


def read_records(store: str | Path, wanted: Mapping[str, dict[str, Any]] | None = None) -> pd.DataFrame:
    """Return the trials of a store as a table with one row per trial.

    Columns: trial_id, status (finished, stopped, failed, running, interrupted, not started), error, folder, the flat
    spec, metrics, params, params_se, macs, macs_se, elementwise, timings, code_version, provenance (JSON), data_digest,
    test_images.

    Args:
        store: The folder of trials.
        wanted: The trials to read, in order: {trial id: flat spec}, used for trials without a record. None reads all.

    Raises:
        FileNotFoundError: if `wanted` is None and the store does not exist or has no trial.
    """
    import pandas as pd  # not at the top, so that commands without tables start sooner

    store = Path(store)
    if wanted is None:
        if not store.is_dir():
            raise FileNotFoundError(f"{store} is not a folder of trials")
        rows = [row for name in os.listdir(store) if (row := _row(store, name, None)) is not None]
        if not rows:
            raise FileNotFoundError(f"{store} contains no trials")
        columns = _columns_of(rows)
        table: pd.DataFrame = pd.DataFrame(columns).iloc[_order_of(columns)].reset_index(drop=True)
    else:
        rows = [row for name, spec in wanted.items() if (row := _row(store, name, spec)) is not None]
        table = pd.DataFrame(_columns_of(rows))
    return table


def _columns_of(rows: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each key, None for rows without it; keys are in order of appearance."""
    shapes = dict.fromkeys(map(tuple, rows))
    empty_row: dict[str, Any] = dict.fromkeys(key for shape in shapes for key in shape)
    full_rows = rows if len(shapes) == 1 else [empty_row | row for row in rows]
    cells = list(zip(*(row.values() for row in full_rows), strict=True))
    return dict(zip(empty_row, cells, strict=True)) or dict.fromkeys(("trial_id", "status", "error", "folder"), ())


def _row(store: Path, trial_id: str, spec: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the row of a trial, or None if no spec is given and the folder is not a trial's."""
    path = f"{store}{os.sep}{trial_id}"
    try:
        return row_of(trial_id, path, read_bytes(f"{path}/record.json"))
    except ValueError as error:
        raise broken_record(trial_folder(store, trial_id), error) from error
    except (FileNotFoundError, NotADirectoryError):
        folder = trial_folder(store, trial_id)
        if spec is None and not (folder / "claims").is_dir():
            return None
        status = "not started"
        if folder.is_dir():
            status = "interrupted" if holder_of(folder) is None else "running"
        return {"trial_id": trial_id, "status": status, "error": None, "folder": path, **(spec or {})}


def _order_of(columns: dict[str, tuple[Any, ...]]) -> NDArray[np.intp]:
    """Return the order of the rows: sorted by the fields of the spec, then by trial id."""
    import numpy as np

    keys = [key for key in columns if "." in key or key == "seed"]
    return np.lexsort([_ranks(columns[key]) for key in ("trial_id", *reversed(keys))])


def _ranks(values: tuple[Any, ...]) -> NDArray[np.intp]:
    import numpy as np

    try:
        distinct = set(values)
    except TypeError:  # lists cannot be hashed
        values = tuple(map(repr, values))
        distinct = set(values)
    rank = {value: number for number, value in enumerate(sorted(distinct, key=_rank))}
    return np.fromiter(map(rank.__getitem__, values), np.intp, len(values))


def _rank(value: Any) -> tuple[str, Any]:
    """Return a sort key: None first, then by type and value."""
    if value is None:
        return "", ""
    return type(value).__name__, value if isinstance(value, (int, float, str)) else str(value)


def row_of(trial_id: str, folder: str, record: bytes) -> dict[str, Any]:
    """Return the row of a trial from the content of its record.json.

    Its `error` is the last line of the traceback. Raises ValueError for an invalid record.
    """
    check_seal(record)
    try:
        trial = _DECODER.decode(record)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    check_owner(trial_id, trial.trial_id)
    costs = trial.complexity
    provenance = bytes(trial.provenance).decode()
    if trial.segments:
        provenance = json.dumps(merge_parts(part.provenance for part in trial.segments))
    return {
        "trial_id": trial_id,
        "status": trial.status,
        "error": trial.error.strip().rpartition("\n")[2] if trial.error else None,
        "folder": folder,
        **trial.spec,
        **trial.metrics,
        "params": costs.params,
        "params_se": costs.params_se,
        "macs": costs.macs,
        "macs_se": costs.macs_se,
        "elementwise": costs.elementwise,
        **trial.timings,
        "code_version": msgspec.json.decode(trial.provenance, type=_Provenance).se_lab,
        "provenance": provenance,
        "data_digest": trial.data.digest,
        "test_images": trial.data.images.get("test"),
    }
