"""One trial of a sweep in a process of its own, and how the sweep sees it: its epochs, and how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TextIO

from se_lab import store
from se_lab.spec import ExecSpec, RunSpec
from se_lab.sweep.child import end_with
from se_lab.sweep.early_stop import Hyperband
from se_lab.sweep.wandb_service import finish_run
from se_lab.training.failures import LOST, death, failure_kind, reason
from se_lab.training.run import RESUME_ME, InterruptedTrialError, StoppedEarlyError, run

BUSY, STOPPED = 76, 77
"""Exit statuses of a process whose trial another worker holds, or was given up early."""


@dataclass(frozen=True)
class Outcome:
    """How a trial of the sweep stands."""

    trial: RunSpec
    status: str
    """finished (now), skipped (over before, or by another worker), stopped (given up early), failed, interrupted, or
    not started."""
    kind: str | None = None
    """Why it failed, as se_lab.training.failures has it."""
    error: str | None = None
    """What it says of itself, in a line."""


class TrialProcess:
    """A trial in a process of its own, forked from this one, as this one sees it."""

    def __init__(
        self, trial: RunSpec, execution: ExecSpec, early_stop: Hyperband | None, peers: Callable[[], list[str]]
    ) -> None:
        """Start it; `peers` names the trials that an early stop compares it with."""
        self.trial, self.execution = trial, execution
        self._reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
        self._process = multiprocessing.get_context("fork").Process(
            target=_work, args=(trial, execution, writer, os.getpid(), early_stop, peers)
        )
        self._process.start()
        writer.close()
        self._asked = False
        self._open = True
        self._failure: tuple[str, str] | None = None

    @property
    def handles(self) -> list[Any]:
        """What becomes ready when there is something to look at."""
        return [self._process.sentinel, self._reader] if self._open else [self._process.sentinel]

    def rows(self) -> Iterator[Mapping[str, float]]:
        """Yield the epochs that ended since the last look; keep the failure that comes last."""
        try:
            while self._open and self._reader.poll():
                message = self._reader.recv()
                if isinstance(message, tuple):
                    self._failure = message
                else:
                    yield message
        except (EOFError, OSError):
            self._open = False

    def is_over(self) -> bool:
        """Tell whether the process has left."""
        return self._process.exitcode is not None

    def ask_to_stop(self) -> None:
        """Let the trial save its state and leave, after its current batch."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def outcome(self) -> Outcome:
        """Return how the trial ended; a process that died leaves a record that says so."""
        self._process.join()
        self._reader.close()
        trial, code = self.trial, self._process.exitcode or 0
        known = {0: "finished", RESUME_ME: "interrupted", BUSY: "busy", STOPPED: "stopped"}
        if code in known:
            return Outcome(trial, known[code])
        if self._failure is not None:
            return Outcome(trial, "failed", *self._failure)
        if self._asked or code == -signal.SIGTERM:
            return Outcome(trial, "interrupted")
        record = store.read_record(store.trial_folder(self.execution.store, trial.trial_id))
        if record is not None and record.status == "finished":  # it died on its way out
            return Outcome(trial, "finished")
        _record_failure(trial, self.execution, death(code), LOST)
        return Outcome(trial, "failed", LOST, death(code))


def _work(
    trial: RunSpec,
    execution: ExecSpec,
    writer: Connection,
    parent: int,
    early_stop: Hyperband | None,
    peers: Callable[[], list[str]],
) -> None:
    """Run a trial in this process, and leave with a status that says how it went."""
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal's go to the parent, which asks us by SIGTERM
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(parent)
    folder = store.trial_folder(execution.store, trial.trial_id)

    def progress(row: Mapping[str, float]) -> None:
        with contextlib.suppress(OSError):
            writer.send(dict(row))
        if early_stop is not None and row["epoch"] + 1 < trial.train.epochs:
            folders = [store.trial_folder(execution.store, peer) for peer in peers()]
            if early_stop.stops(early_stop.metric.history(folder), map(early_stop.metric.history, folders)):
                raise StoppedEarlyError

    log: TextIO = io.StringIO()
    code = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / "log.txt").open("a", buffering=1)
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        sys.stdout = sys.stderr = log  # a notebook's are no descriptors
        code = STOPPED if run(trial, execution, progress=progress).status == "stopped" else 0
    except InterruptedTrialError:
        code = RESUME_ME
    except store.TrialBusyError:
        code = BUSY
    except Exception as error:
        with contextlib.suppress(OSError):  # of a full disk, which is told all the same
            traceback.print_exc(file=log)
        kind, text = failure_kind(error), traceback.format_exc()
        if not isinstance(error, store.ClaimLostError):
            _record_failure(trial, execution, text, kind)
        with contextlib.suppress(OSError):
            writer.send((kind, reason(text)))
    finally:
        finish_run(code)
        with contextlib.suppress(OSError):
            log.flush()
        os._exit(code)  # no exit handlers: they belong to the process this one was forked from


def _record_failure(trial: RunSpec, execution: ExecSpec, error: str, kind: str) -> None:
    """Keep what ended a trial that could not write a record itself."""
    folder = store.trial_folder(execution.store, trial.trial_id)
    with contextlib.suppress(Exception), store.claim(folder):
        record = store.read_record(folder)
        if record is None or (kind == LOST and record.status != "finished"):
            flat, where = trial.flat(), dataclasses.asdict(execution)
            failed = store.RunRecord(trial.trial_id, "failed", flat, where, error=error, error_kind=kind)
            store.write_record(folder, failed)
