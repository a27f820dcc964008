"""The record of a trial: what is known of it when it is over."""

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
"""The version of record.json: goes up when a field changes its meaning. Fields of later versions are kept as read."""
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")
RESULTS = ("metrics.csv", "predictions.npz")


@dataclass
class RunRecord:
    """The record of a trial that is over. On one machine `metrics` repeat to the bit, `timings` do not.

    Examples:
        >>> from pathlib import Path
        >>> from se_lab.store import read_record
        >>> folder = load_records("sweeps/demo.yaml")["folder"].iloc[0]
        >>> read_record(Path(folder)).status
        'finished'
    """

    trial_id: str
    status: str
    """finished, failed, or stopped (given up early by its sweep)."""
    spec: dict[str, Any]
    """Flat, under dotted keys; None where an SE field cannot matter."""
    execution: dict[str, Any]
    recipe: dict[str, Any] | None = None
    """The recipe's name and, under changed, the fields that differ: {key: [the recipe's, the trial's]}."""
    sites: list[dict[str, Any]] = field(default_factory=list)
    complexity: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Errors in %, losses in nats."""
    timings: dict[str, float] = field(default_factory=dict)
    """seconds; step_ms, the median training step; images_per_s in training; peak_memory_bytes on a GPU."""
    data: dict[str, Any] = field(default_factory=dict)
    """digest, and how many images each split has."""
    provenance: dict[str, str] = field(default_factory=dict)
    """What can change a number and is not in the spec: versions, sources, device, threads, git, images."""
    segments: list[dict[str, Any]] = field(default_factory=list)
    """For a trial that was resumed under another provenance: the epoch and step that each part began at, and its
    provenance. Empty for one provenance throughout."""
    host: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    """ISO 8601, UTC."""
    error: str | None = None
    """The traceback of a failed trial."""
    error_kind: str | None = None
    """Why it failed, as se_lab.training.failures has it: out of memory, NaN loss, disk full, lost process, …"""
    files: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of metrics.csv, predictions.npz and the checkpoints as they were when the record was written."""
    schema: int = SCHEMA
    unknown: dict[str, Any] = field(default_factory=dict)
    """Fields that another version of SE-Lab wrote; they are written again as they were."""


_FIELDS = {one.name for one in dataclasses.fields(RunRecord)} - {"unknown"}


def trial_folder(store: str | Path, trial_id: str) -> Path:
    """Return the folder of a trial, whether or not it is there."""
    return Path(store) / trial_id


def write_record(folder: Path, record: RunRecord) -> RunRecord:
    """Write record.json with the digests of the trial's files, NaN as null, and return it as it will be read."""
    record.files = {
        name: digest_of_file(folder / name) for name in (*RESULTS, *CHECKPOINTS) if (folder / name).is_file()
    }
    values = asdict(record)
    write_sealed(folder / "record.json", values.pop("unknown") | values)
    return parse_record(folder)


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a trial, or None where it has none yet.

    Raises:
        SpecError: for a file that is not a record of this trial, or is damaged.
    """
    try:
        return parse_record(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise broken_record(folder, error) from error


def parse_record(folder: Path) -> RunRecord:
    """Return the record of a trial; raise ValueError or TypeError if it is invalid, FileNotFoundError if missing."""
    values = read_sealed(folder / "record.json")
    check_owner(folder.name, values.get("trial_id"))
    fields = {key: values.pop(key) for key in list(values) if key in _FIELDS}
    return RunRecord(**fields, unknown=values)


class _Files(msgspec.Struct, frozen=True):
    status: str = ""
    files: dict[str, str] = {}


_FILES_DECODER = msgspec.json.Decoder(_Files)


def read_result(folder: str | Path, name: str) -> bytes:
    """Return the content of a trial's metrics.csv or predictions.npz, as the trial wrote it.

    A trial that has not finished may be going on, and rewrite its files: they are not compared.

    Raises:
        SpecError: for a finished trial's file that is damaged, or another's: its digest is not the record's.
        FileNotFoundError: where it is not there.
    """
    content = read_bytes(f"{folder}/{name}")
    try:
        record = _FILES_DECODER.decode(read_bytes(f"{folder}/record.json"))
        digest = record.files.get(name) if record.status == "finished" else None
    except (OSError, msgspec.MsgspecError):  # what reads the record reports it
        digest = None
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise SpecError(
            f"{folder}/{name} is not what its trial wrote (se-lab verify lists all such files); remove it, and figures "
            "leave the trial out"
        )
    return content


def check_owner(folder: str, trial_id: object) -> None:
    """Raise ValueError if a record that names a trial lies in the folder of another."""
    if trial_id is not None and trial_id != folder and is_trial_id(folder):
        raise ValueError(f"it is the record of trial {trial_id}")


def broken_record(folder: Path, error: Exception) -> SpecError:
    """Return the error to raise for a record.json that cannot be read."""
    return SpecError(f"{folder / 'record.json'} is no record ({error}); remove it, and the trial resumes")
