"""Classify and record the failures of trials."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import signal
from collections.abc import Callable, Iterator

from se_lab import store
from se_lab.spec import ExecSpec, RunSpec

RETRYABLE = ("lost process", "data loader", "network")
"""Kinds of failure that a retry on the same machine may fix."""
OUT_OF_MEMORY, NAN_LOSS, DISK_FULL, BROKEN_DEVICE, LOST, LOADER, NETWORK, OTHER = (
    "out of memory", "NaN loss", "disk full", "broken device", "lost process", "data loader", "network", "error",
)  # fmt: skip

_WORDS: dict[str, tuple[str, ...]] = {
    OUT_OF_MEMORY: (
        "out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed",
        "cublas_status_not_initialized", "unable to find an engine to execute",  # no memory for a workspace
    ),
    LOADER: ("dataloader worker", "too many open files"),
    DISK_FULL: (
        "no space left on device", "disk quota exceeded",
        "enforce fail at inline_container", "file write failed",  # PyTorch's messages for an incomplete write
    ),
    BROKEN_DEVICE: (
        "uncorrectable ecc", "cuda error: unknown error", "unspecified launch failure", "gpu is lost", "nccl error",
        "cuda driver", "device not ready", "no cuda-capable device", "cuda-capable device(s) is/are busy",
        "hardware error", "stale file handle", "input/output error",
    ),
    NETWORK: ("connection refused", "connection reset", "name resolution", "network is unreachable", "timed out"),
}  # fmt: skip
"""Parts of messages by kind, for errors without a specific type, such as RuntimeErrors of PyTorch and CUDA."""
_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), DISK_FULL),
    **dict.fromkeys((errno.EIO, errno.ESTALE), BROKEN_DEVICE),
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT), NETWORK),
    errno.EMFILE: LOADER,
    errno.ENOMEM: OUT_OF_MEMORY,
}


def failure_kind(error: BaseException) -> str:
    """Return the kind of an error or of its causes, or 'error' if it is unknown."""
    kinds = (kind for link in _chain(error) for test in _TESTS if (kind := test(link)) is not None)
    return next(kinds, OTHER)


def reason(error: str) -> str:
    """Return the last line of a traceback: the error's type and message."""
    return error.strip().rpartition("\n")[2]


def record_failure(spec: RunSpec, execution: ExecSpec, error: str, kind: str) -> None:
    """Record a trial's error (a traceback or a line), unless its process has recorded the same."""
    folder = store.trial_folder(execution.store, spec.trial_id)
    with contextlib.suppress(store.TrialBusyError), store.claim(folder):
        record = store.read_record(folder)
        if record is None:
            record = store.RunRecord(spec.trial_id, "failed", spec.flat(), dataclasses.asdict(execution))
        if record.status != "finished" and (not record.error or reason(record.error) != reason(error)):
            record.status, record.error, record.error_kind = "failed", error, kind
            store.write_record(folder, record)


def death(exit_code: int) -> str:
    """Describe the end of a process without a record, by its exit code as in `multiprocessing`."""
    if exit_code >= 0:
        return f"its process exited with status {exit_code} and no record"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    hint = {
        "SIGKILL": " (perhaps out of memory)",
        "SIGBUS": " (perhaps a full disk or full shared memory)",
        "SIGSEGV": " (a crash outside Python)",
    }.get(name, "")
    return f"its process was killed by {name}{hint}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    ids: set[int] = set()
    while error is not None and id(error) not in ids:
        ids.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _by_type(error: BaseException) -> str | None:
    if isinstance(error, FloatingPointError):
        return NAN_LOSS
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return _ERRNO[error.errno]
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in ("CommError", "URLError"):
        return NETWORK
    return None


def _by_message(error: BaseException) -> str | None:
    if not isinstance(error, (RuntimeError, OSError)):
        return None
    text = str(error).lower()
    return next((kind for kind, words in _WORDS.items() if any(word in text for word in words)), None)


_TESTS: tuple[Callable[[BaseException], str | None], ...] = (_by_type, _by_message)
