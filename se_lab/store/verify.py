"""Check that the files of a store are readable, complete and unchanged.

No code that a file names is run or imported.
"""

from __future__ import annotations

import csv
import math
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from se_lab.store.claims import holder_of
from se_lab.store.files import check_seal, digest_of_file, read_sealed
from se_lab.store.marker import MARKER, check_store, claims_in, identity_in, is_trial_id
from se_lab.store.record import CHECKPOINTS, RESULTS, RunRecord, parse_record

_DAMAGE = (
    ValueError, RuntimeError, KeyError, IndexError, EOFError, NotImplementedError, StopIteration, AttributeError,
    zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
_NOTES = (".searches/*/[0-9]*.json", ".confirmed/*.json", ".grown/*.json", ".slurm/*.json")


@dataclass
class Findings:
    """The result of checking a store."""

    problems: list[tuple[Path, str]] = field(default_factory=list)
    """Pairs of a file and a problem."""
    trials: int = 0
    files: int = 0
    running: list[str] = field(default_factory=list)
    """Trials that a worker holds; their files are not checked, since they may change."""
    records: list[RunRecord] = field(default_factory=list)
    """The valid records."""


def verify(store: str | Path) -> Findings:
    """Check all records, metrics, predictions, checkpoints, claims and notes of a store.

    Raises:
        SpecError: if the folder contains other files and no marker.
        FileNotFoundError: if the folder does not exist.
    """
    store = Path(store)
    if not store.is_dir():
        raise FileNotFoundError(f"{store} is not a folder of trials")
    check_store(store)
    findings = Findings()
    for trial in sorted(path for path in store.iterdir() if is_trial_id(path.name)):
        if not trial.is_symlink() and trial.is_dir():
            findings.trials += 1
            _check_trial(trial, findings)
    if not (store / MARKER).is_file():
        findings.problems.append((store / MARKER, "is missing"))
    for path in sorted(path for pattern in _NOTES for path in store.glob(pattern)):
        findings.files += 1
        _note(findings, path, _problems_of_sealed(path))
    return findings


def _check_trial(trial: Path, findings: Findings) -> None:
    record: RunRecord | None = None
    if (path := trial / "record.json").exists():
        findings.files += 1
        try:
            record = parse_record(trial)
            findings.records.append(record)
            _note(findings, path, _problems_of_record(path, record))
        except (ValueError, TypeError, OSError) as error:
            _note(findings, path, iter([str(error)]))
    claims = claims_in(trial / "claims")
    for path in sorted((trial / "claims").glob("[0-9]*")):
        findings.files += 1
        if path.suffix == "" and path not in claims:
            _note(findings, path, iter(["it is not a claim: claims are files named by six or more digits"]))
        elif path.suffix == "" and path.stat().st_size and not identity_in(path):
            _note(findings, path, iter(["it does not identify a worker"]))
    if holder_of(trial) is not None:
        findings.running.append(trial.name)
        return
    finished = record is not None and record.status == "finished"
    digests = record.files if record is not None else {}
    for name in (*RESULTS, *CHECKPOINTS):
        path = trial / name
        if path.is_file():
            findings.files += 1
            _note(findings, path, _problems_of_file(path, digests.get(name), finished=finished))
        elif finished and name in RESULTS:
            _note(findings, path, iter(["it is missing"]))


def _note(findings: Findings, path: Path, problems: Iterator[str]) -> None:
    try:
        findings.problems += [(path, problem) for problem in problems]
    except OSError as error:
        findings.problems.append((path, f"it cannot be read: {error.strerror}"))


def _problems_of_sealed(path: Path) -> Iterator[str]:
    try:
        read_sealed(path)
        if not check_seal(path.read_bytes()):
            yield "it has no checksum, so its content cannot be verified"
    except ValueError as error:
        yield str(error)


def _problems_of_record(path: Path, record: RunRecord) -> Iterator[str]:
    yield from _problems_of_sealed(path)
    if record.status not in ("finished", "failed", "stopped"):
        yield f"its status is {record.status!r}; allowed are finished, failed, stopped"
    if record.status == "finished" and not record.metrics:
        yield "it has no metrics, although the trial is finished"


def _problems_of_file(path: Path, digest: str | None, *, finished: bool) -> Iterator[str]:
    if finished and digest is None:
        yield "its digest is not in the trial's record: it was written after the trial ended"
    elif finished and digest_of_file(path) != digest:
        yield "its digest differs from the trial's record: it is damaged, or was changed after the trial ended"
    check = {".csv": _problems_of_metrics, ".npz": _problems_of_predictions, ".ckpt": _problems_of_checkpoint}
    try:
        yield from check[path.suffix](path)
    except _DAMAGE as error:
        yield f"it is damaged: {error}"


def _problems_of_metrics(path: Path) -> Iterator[str]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or "epoch" not in rows[0]:
        yield "it has no column epoch"
        return
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]) or any(math.isnan(float(cell)) for cell in row if cell and cell != "nan"):
            yield f"line {number} is incomplete or invalid: {','.join(row)[:60]!r}"
    epochs = [float(row[rows[0].index("epoch")]) for row in rows[1:]]
    if epochs != list(range(len(epochs))):
        yield "its epochs are not numbered from 0 on"


def _problems_of_predictions(path: Path) -> Iterator[str]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:  # reading checks each array's CRC
        lengths = {key: len(arrays[key]) for key in arrays.files}
    if missing := {"key", "label", "top5", "correct"} - lengths.keys():
        yield f"it lacks {', '.join(sorted(missing))}"
    if len(set(lengths.values())) > 1:
        yield f"its arrays have {', '.join(f'{count} {key}' for key, count in lengths.items())}"


def _problems_of_checkpoint(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as parts:
        if (member := parts.testzip()) is not None:
            yield f"it is damaged: the checksum of {member} is wrong"
            return
        content = next(name for name in parts.namelist() if name.endswith("data.pkl"))
        with parts.open(content) as file:
            values = _Plain(file).load()
    trial_id = values.get("trial_id") if isinstance(values, dict) else None
    if trial_id not in (None, path.parent.name):
        yield f"it is a checkpoint of trial {trial_id}"


class _Plain(pickle.Unpickler):
    """Reads the plain values of a pickle; objects are replaced by stand-ins, without importing."""

    def find_class(self, module: str, name: str) -> Any:
        return _StandIn

    def persistent_load(self, pid: Any) -> Any:
        return None


class _StandIn(dict[Any, Any]):
    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *_: Any) -> _StandIn:
        return self
