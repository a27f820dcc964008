"""The record of a trial, written when the trial ends."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from se_lab.spec import SpecError
from se_lab.store.files import digest_of_file, read_bytes, read_sealed, write_sealed
from se_lab.store.marker import is_trial_id

SCHEMA = 1
"""The version of record.json, increased when a field changes its meaning. Fields of later versions are kept."""
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")
RESULTS = ("metrics.csv", "predictions.npz")


@dataclass
class RunRecord:
    """The record of a trial that has ended.

    Examples:
        >>> from pathlib import Path
        >>> from se_lab.store import read_record
        >>> folder = load_records("sweeps/demo.yaml")["folder"].iloc[0]
        >>> read_record(Path(folder)).status
        'finished'
    """

    trial_id: str
    status: str
    """finished, failed, or stopped (ended early by its sweep)."""
    spec: dict[str, Any]
    """The fields as {dotted key: value}; SE fields without effect are None."""
    execution: dict[str, Any]
    recipe: dict[str, Any] | None = None
    """The recipe's name and, under `changed`, the fields that differ: {key: [recipe's, trial's]}."""
    sites: list[dict[str, Any]] = field(default_factory=list)
    complexity: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Errors in %, losses in nats."""
    timings: dict[str, float] = field(default_factory=dict)
    """seconds (the total); step_ms (the median training step); images_per_s in training; peak_memory_bytes on a GPU."""
    data: dict[str, Any] = field(default_factory=dict)
    """The data digest and the number of images in each split."""
    provenance: dict[str, str] = field(default_factory=dict)
    """What can affect results outside the spec: versions, sources, device, threads, git, images."""
    segments: list[dict[str, Any]] = field(default_factory=list)
    """The first epoch and step, and the provenance, of each part of a trial that was resumed with another provenance;
    otherwise empty."""
    host: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    """ISO 8601, UTC."""
    error: str | None = None
    """The traceback of a failed trial."""
    error_kind: str | None = None
    """The kind of the failure (see se_lab.training.failures): out of memory, NaN loss, disk full, lost process, …"""
    files: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of metrics.csv, predictions.npz and the checkpoints when the record was written."""
    schema: int = SCHEMA
    unknown: dict[str, Any] = field(default_factory=dict)
    """Fields from another version of SE-Lab, which are kept as they are."""


_FIELDS = {one.name for one in dataclasses.fields(RunRecord)} - {"unknown"}


def trial_folder(store: str | Path, trial_id: str) -> Path:
    """Return the path of a trial's folder, which need not exist."""
    return Path(store) / trial_id


def write_record(folder: Path, record: RunRecord) -> RunRecord:
    """Write record.json with the digests of the trial's files; return the record as read back."""
    record.files = {
        name: digest_of_file(folder / name) for name in (*RESULTS, *CHECKPOINTS) if (folder / name).is_file()
    }
    values = asdict(record)
    write_sealed(folder / "record.json", values.pop("unknown") | values)
    return parse_record(folder)


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a trial, or None if it has none yet.

    Raises:
        SpecError: if record.json is damaged, or belongs to another trial.
    """
    try:
        return parse_record(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise broken_record(folder, error) from error


def parse_record(folder: Path) -> RunRecord:
    """Return the record of a trial.

    Raises ValueError or TypeError if it is invalid, FileNotFoundError if it is missing.
    """
    values = read_sealed(folder / "record.json")
    check_owner(folder.name, values.get("trial_id"))
    fields = {key: values.pop(key) for key in list(values) if key in _FIELDS}
    return RunRecord(**fields, unknown=values)


class _Files(msgspec.Struct, frozen=True):
    status: str = ""
    files: dict[str, str] = {}


_FILES_DECODER = msgspec.json.Decoder(_Files)


def read_result(folder: str | Path, name: str) -> bytes:
    """Return the content of a trial's metrics.csv or predictions.npz.

    Raises:
        SpecError: if the trial is finished and the file's digest is not the one in its record.
        FileNotFoundError: if the file does not exist.
    """
    content = read_bytes(f"{folder}/{name}")
    try:
        record = _FILES_DECODER.decode(read_bytes(f"{folder}/record.json"))
        digest = record.files.get(name) if record.status == "finished" else None
    except (OSError, ValueError, msgspec.MsgspecError):  # reported when the record itself is read
        digest = None
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise SpecError(
            f"{folder}/{name} was damaged or changed after its trial ended (se-lab verify lists all such files); "
            "delete it to leave the trial out of figures"
        )
    return content


def check_owner(folder: str, trial_id: object) -> None:
    """Raise ValueError if a record names another trial than its folder."""
    if trial_id is not None and trial_id != folder and is_trial_id(folder):
        raise ValueError(f"it is the record of trial {trial_id}")


def broken_record(folder: Path, error: Exception) -> SpecError:
    """Return the error to raise for a record.json that cannot be read."""
    return SpecError(f"{folder / 'record.json'} is not a valid record ({error}); delete it to resume the trial")
