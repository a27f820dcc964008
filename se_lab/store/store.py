"""The store: one folder a trial, claimed by one worker at a time, its record put in place whole or not at all.

<store>/<trial_id>/record.json       status, spec, costs, metrics, timings, where and with what it ran
                   metrics.csv       a row an epoch
                   predictions.npz   per test image: key, label, top5, correct
                   last.ckpt, previous.ckpt, best.ckpt
                   claims/           who worked on it, in turn
<store>/.index.safetensors           rows of records that are over, to be read at once (record_index)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from se_lab.spec import SpecError
from se_lab.store.index import FILE as INDEX
from se_lab.store.index import Columns, Stamp, append, load_index, order_of, stamp_of, take
from se_lab.store.marker import aside_of, identity_in, is_written_aside, mark_store
from se_lab.store.rows import row_of

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0
"""A claim whose heart has not beaten for this long is dead. On the worker's own host its death is seen at once."""


_PART = 1 << 16


class TrialBusyError(RuntimeError):
    """Another worker holds the trial."""


class ClaimLostError(RuntimeError):
    """This worker was taken for dead and another has claimed the trial: stop, and write nothing more."""


@dataclass
class RunRecord:
    """What is known of a trial when it is over. `metrics` repeats to the bit on one machine, `timings` does not."""

    trial_id: str
    status: str
    """finished, failed, or stopped (given up early by its sweep)."""
    spec: dict[str, Any]
    """Flat, under dotted keys; None where an SE field cannot matter."""
    execution: dict[str, Any]
    recipe: dict[str, Any] | None = None
    """The recipe's name and, under changed, what the trial has otherwise: {key: [the recipe's, the trial's]}."""
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
    host: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    """ISO 8601, UTC."""
    error: str | None = None
    """The traceback of a failed trial."""
    error_kind: str | None = None
    """Why it failed, as se_lab.training.failures has it: out of memory, NaN loss, disk full, lost process, …"""


def trial_folder(store: str | Path, trial_id: str) -> Path:
    """Return the folder of a trial, whether or not it is there."""
    return Path(store) / trial_id


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file aside, bring it to the disk, and rename it into place: nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            write(file)
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def put_in_place(aside: Path, path: Path) -> None:
    """Bring a file that was written aside to the disk, and rename it over its name."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can: a crash then loses no rename."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed worker had written aside; only the holder of the trial may."""
    for path in folder.glob(".*"):
        if is_written_aside(path) and path.is_file():
            path.unlink(missing_ok=True)


def read_bytes(path: str) -> bytes:
    """Read a small file; of ten thousand, opening them as Python does takes twice as long as this."""
    file = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(file, _PART)]
        while len(parts[-1]) == _PART:
            parts.append(os.read(file, _PART))
        return b"".join(parts)
    finally:
        os.close(file)


def write_record(folder: Path, record: RunRecord) -> RunRecord:
    """Put record.json in place, NaN as null, and return it as it will be read."""
    text = json.dumps(_without_nan(asdict(record)), indent=2, allow_nan=False)
    write_whole(folder / "record.json", lambda file: file.write(text.encode()))
    return RunRecord(**json.loads(text))


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a trial, or None where it is not over.

    Raises:
        SpecError: for a file that is no record, which SE-Lab never leaves behind.
    """
    path = folder / "record.json"
    try:
        return RunRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise _no_record(folder, error) from error


def _no_record(folder: Path, error: Exception) -> SpecError:
    return SpecError(f"{folder / 'record.json'} is no record ({error}); remove it, and the trial goes on")


def read_records(store: str | Path, wanted: Mapping[str, dict[str, Any]] | None = None) -> pd.DataFrame:
    """Read a store, one row a trial; records that have not changed since the last reading come from its index.

    Columns: trial_id, status (finished, stopped, failed, running, interrupted, not started), error, folder, the flat
    spec, metrics, params, params_se, macs, macs_se, elementwise, timings, code_version, data_digest.

    Args:
        store: The folder of trials.
        wanted: The trials to read, in this order, each with its flat spec for when it has no record; else all.

    Raises:
        FileNotFoundError: where the store is no folder, or holds no trial and none is asked for by id.
    """
    store = Path(store)
    if wanted is None and not store.is_dir():
        raise FileNotFoundError(f"{store} is no folder of trials")
    names = os.listdir(store) if wanted is None else wanted
    stamps = {name: stamp_of(f"{store}/{name}/record.json") for name in names}
    if wanted is None:
        stamps = {name: stamp for name, stamp in stamps.items() if stamp or (store / name / "claims").is_dir()}
        if not stamps:
            raise FileNotFoundError(f"{store} holds no trial")
    trials, columns = _read_columns(store, stamps, wanted)
    if wanted is not None:
        place = {trial: number for number, trial in enumerate(trials)}
        order = [place[trial] for trial in wanted]
        trials, columns = [trials[number] for number in order], take(columns, order)
    arrays = {key: values.to_array() for key, values in columns.items()}
    folders = [f"{store}{os.sep}{trial}" for trial in trials]
    first = ("trial_id", "status", "error")
    table: pd.DataFrame = pd.DataFrame({**{key: arrays.pop(key, []) for key in first}, "folder": folders, **arrays})
    return table


def _read_columns(
    store: Path, stamps: Mapping[str, Stamp | None], wanted: Mapping[str, dict[str, Any]] | None
) -> tuple[list[str], Columns]:
    """Return trials and their rows, in order: of the index where its stamp is the record's, else read and kept in it.

    Besides the trials with stamps there may be others, whose rows the index has and `wanted` has not.
    """
    index = load_index(store)
    seen = zip(index.trials, map(tuple, index.stamps.tolist()), strict=True)
    known = {trial for trial, stamp in seen if stamps.get(trial) == stamp}
    # of what was not asked for, a whole reading has seen that it is gone
    stay = [n for n, trial in enumerate(index.trials) if trial in known or (wanted is not None and trial not in stamps)]
    index = index.take(stay)
    fresh = sorted(stamps.keys() - known)
    over = {trial: stamp for trial in fresh if (stamp := stamps[trial])}
    few = len(over) * 20 < len(index.trials)  # to read a twentieth again costs less than to write the index anew
    if over and not few:
        index = index.add(over, (_row(store, trial, {}) for trial in over))
        with contextlib.suppress(OSError):  # a store that cannot be written is read all the same
            write_whole(store / INDEX, lambda file: file.write(index.to_bytes()))
        fresh = [trial for trial in fresh if trial not in over]
    if not fresh:
        return index.trials, index.columns
    columns = append(index.columns, (_row(store, trial, (wanted or {}).get(trial, {})) for trial in fresh))
    order, trials = order_of(columns), [*index.trials, *fresh]
    return [trials[number] for number in order], take(columns, order)


def _row(store: Path, trial_id: str, spec: dict[str, Any]) -> dict[str, Any]:
    try:
        return row_of(trial_id, read_bytes(f"{store}/{trial_id}/record.json"))
    except ValueError as error:
        raise _no_record(trial_folder(store, trial_id), error) from error
    except (FileNotFoundError, NotADirectoryError):
        folder = trial_folder(store, trial_id)
        status = "not started"
        if folder.is_dir():
            status = "interrupted" if holder_of(folder) is None else "running"
        return {"trial_id": trial_id, "status": status, "error": None, **spec}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


# Claims. Claim n of a trial is the file claims/<n>, and taking the trial means creating claim n + 1, which a file
# system lets exactly one worker do. No claim is ever deleted or renamed, so a number is given out once: whoever holds a
# lower one has lost the trial and finds out before it writes. No lock is held, so none can be left behind.


class Claim:
    """The right to work on a trial, while `check` does not raise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise ClaimLostError if another worker has taken the trial since."""
        latest = _latest(self.path.parent)
        if latest is None or latest.name != self.path.name:
            raise ClaimLostError(f"{self.path.parent.parent.name} was claimed by another worker")

    def release(self) -> None:
        """Let the next worker have the trial at once."""
        self._stop.set()
        self._heart.join()
        with contextlib.suppress(OSError):  # a dead worker's claim ends without it
            self.path.with_suffix(".released").touch()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[Claim]:
    """Hold a trial.

    Raises:
        TrialBusyError: where another worker holds it.
    """
    with contextlib.suppress(SpecError):  # a folder that others use stays unmarked, and gc and sweeps refuse it
        mark_store(folder.parent)
    claims = folder / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    latest = _latest(claims)
    if latest is not None and _is_held(latest):
        raise TrialBusyError(f"{folder.name} is being worked on by {describe_holder(folder)}")
    path = claims / f"{int(latest.name) + 1 if latest else 1:06d}"
    if not create_once(path, json.dumps(_identity())):
        raise TrialBusyError(f"{folder.name} was claimed by another worker a moment ago")
    held = Claim(path)
    try:
        yield held
    finally:
        held.release()


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Return who is at work on a trial (host, pid, start; nothing where that was lost in a crash), or None."""
    latest = _latest(folder / "claims")
    if latest is None or not _is_held(latest):
        return None
    return identity_in(latest)


def describe_holder(folder: Path) -> str:
    """Return 'process 123 on host', 'an unknown process' or 'nobody'; and since when the worker has been silent.

    A worker on this host that is frozen holds its trial for as long as it lives: silence is how that is seen.
    """
    holder, latest = holder_of(folder), _latest(folder / "claims")
    if holder is None or latest is None:
        return "nobody"
    name = f"process {holder['pid']} on {holder['host']}" if holder else "an unknown process"
    silent = _now_on(latest.parent) - latest.stat().st_mtime
    return name if silent < LEASE_SECONDS else f"{name}, silent for {silent / 60:.0f} min"


def _latest(claims: Path) -> Path | None:
    """Return the claim with the highest number, released or not."""
    try:
        names = [name for name in os.listdir(claims) if name.isdigit()]
    except FileNotFoundError:
        return None
    return claims / max(names) if names else None


def create_once(path: Path, text: str) -> bool:
    """Create a file with its content, and return whether it was this call that did: of many that try, one does.

    A hard link is atomic on every file system, NFS included.
    """
    aside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost, and then finds its own success in the way
        return aside.stat().st_nlink == 2
    finally:
        aside.unlink(missing_ok=True)
    return True


def _is_held(path: Path) -> bool:
    if path.with_suffix(".released").exists():
        return False
    holder = identity_in(path)  # opened before it is asked for its time, which NFS then asks of the server
    beat = path.stat().st_mtime
    if holder and holder["machine"] == _identity()["machine"]:
        return bool(_start_of(holder["pid"]) == holder["start"])
    return _now_on(path.parent) - beat < LEASE_SECONDS


def _now_on(folder: Path) -> float:
    """Return the time by the file system's clock, the one that stamps the heartbeats; by ours where it is read only."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _identity() -> dict[str, Any]:
    """Name this process so that another on the same machine can tell whether it lives."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):  # a reboot or a container counts as another
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text(encoding="utf-8").strip())
    pid = os.getpid()
    return {"host": parts[0], "machine": "/".join(parts), "pid": pid, "start": _start_of(pid), "claimed": time.time()}


def _start_of(pid: int) -> str | None:
    """Return when a process started, or None when it is no more: a number that is used again does not pass for it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if stat[0] in "ZX" else stat[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc: whether it lives is all that can be known
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
