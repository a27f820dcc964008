"""Claims, which ensure that one worker at a time holds a trial.

Claim n of a trial is the file claims/<n>. A worker takes the trial by creating claim n + 1, which the file system lets
exactly one worker do. Claims are never renamed, nor deleted while a worker may still create their number, so each
number is assigned once: a worker with a lower number has lost the trial, and detects that before it writes. A crash
leaves no lock behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from se_lab.spec import SpecError
from se_lab.store.files import create_once
from se_lab.store.marker import claims_in, identity_in, is_temporary, mark_store

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0
"""Time without a heartbeat after which a claim expires. On the same host, a dead process is detected at once."""
HIDDEN = "hidden"
"""The start time of a process that exists but cannot be inspected (hidepid=2, or no /proc)."""


class TrialBusyError(RuntimeError):
    """Another worker holds the trial."""


class ClaimLostError(RuntimeError):
    """Another worker has claimed the trial; this worker must stop, and write nothing more."""


class Claim:
    """A worker's hold on a trial, valid as long as `check` does not raise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise ClaimLostError if another worker has claimed the trial."""
        latest = _latest(self.path.parent)
        if latest is None or latest.name != self.path.name:
            raise ClaimLostError(f"{self.path.parent.parent.name} was claimed by another worker")

    def release(self) -> None:
        """Release the trial, so that another worker can claim it at once."""
        self._stop.set()
        self._heart.join()
        with contextlib.suppress(OSError):  # an unreleased claim expires
            self.path.with_suffix(".released").touch()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[Claim]:
    """Hold a trial in a context.

    Raises:
        TrialBusyError: if another worker holds the trial.
    """
    with contextlib.suppress(SpecError):  # a folder with other files stays unmarked, and gc and sweeps reject it
        mark_store(folder.parent)
    claims = folder / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    latest = _latest(claims)
    if latest is not None and _is_held(latest):
        raise TrialBusyError(f"{folder.name} is held by {describe_holder(folder)}")
    numbers = [int(entry.name) for entry in claims.iterdir() if entry.name.isdecimal()]  # including foreign files
    path = claims / f"{max(numbers, default=0) + 1:06d}"
    if not create_once(path, json.dumps(_identity()).encode()):
        raise TrialBusyError(f"{folder.name} was claimed by another worker a moment ago")
    new_claim = Claim(path)
    try:
        yield new_claim
    finally:
        new_claim.release()


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Return the identity of the worker that holds a trial, {} if it is unknown, or None."""
    latest = _latest(folder / "claims")
    if latest is None or not _is_held(latest):
        return None
    return identity_in(latest)


def describe_holder(folder: Path) -> str:
    """Return 'process 123 on host', 'an unknown process' or 'nobody'.

    For a worker without a recent heartbeat, the time since the last one is added: a suspended process on this host
    holds its trial as long as it exists.
    """
    holder, latest = holder_of(folder), _latest(folder / "claims")
    if holder is None or latest is None:
        return "nobody"
    name = f"process {holder['pid']} on {holder['host']}" if holder else "an unknown process"
    silence = _now_on(latest.parent) - latest.stat().st_mtime
    return name if silence < LEASE_SECONDS else f"{name}, without a heartbeat for {silence / 60:.0f} min"


def _latest(claims: Path) -> Path | None:
    """Return the claim with the highest number, released or not."""
    paths = claims_in(claims)
    return paths[-1] if paths else None


def clear_leftovers(folder: Path) -> None:
    """Delete a killed worker's temporary files; only the holder of the trial may call this."""
    for path in folder.glob(".*"):
        if is_temporary(path) and path.is_file():
            path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    if path.with_suffix(".released").exists():
        return False
    holder = identity_in(path)  # opening the file first makes NFS fetch its current time
    beat = path.stat().st_mtime
    if holder and holder["machine"] == _identity()["machine"]:
        start = _start_of(holder["pid"])
        if start != HIDDEN:
            return bool(start == holder["start"])
    return _now_on(path.parent) - beat < LEASE_SECONDS


def _now_on(folder: Path) -> float:
    """Return the file system's time, which heartbeats carry; this host's on a read-only one."""
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
    """Return this process's host, machine, pid and start time, which show if it is alive."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):  # they identify the boot and the container
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text(encoding="utf-8").strip())
    pid = os.getpid()
    return {"host": parts[0], "machine": "/".join(parts), "pid": pid, "start": _start_of(pid), "claimed": time.time()}


def _start_of(pid: int) -> str | None:
    """Return the start time of a process, which detects reused pids, or HIDDEN; None if it ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if stat[0] in "ZX" else stat[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # a number that no process can have
        return None
    except PermissionError:
        pass
    return HIDDEN
