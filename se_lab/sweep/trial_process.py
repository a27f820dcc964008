"""Run one trial of a sweep in a separate process, and receive its progress and outcome."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TextIO

from se_lab import store
from se_lab.spec import ExecSpec, RunSpec
from se_lab.sweep.bayes import BayesSearch
from se_lab.sweep.early_stop import Hyperband
from se_lab.sweep.server import BLOCKED, CONTEXT, adopt_environment, forking
from se_lab.sweep.wandb_service import finish_run
from se_lab.training.failures import LOST, death, failure_kind, reason, record_failure
from se_lab.training.stopping import RESUME_ME, InterruptedTrialError

if TYPE_CHECKING:
    from se_lab.data import Listing


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial in this sweep."""

    trial: RunSpec
    status: str
    """finished, skipped (had ended before, or another worker finished the trial), stopped (early), failed,
    interrupted, not started, or busy (another worker holds the trial; only within the schedule)."""
    kind: str | None = None
    """The kind of failure, a constant of se_lab.training.failures."""
    error: str | None = None
    """The last line of the traceback."""


@dataclass(frozen=True)
class Work:
    """The input of a trial's process."""

    trial: RunSpec
    execution: ExecSpec
    early_stop: Hyperband | None = None
    search: BayesSearch | None = None
    peers: tuple[str, ...] = ()
    """Ids of the trials for early stopping to compare, in addition to those that the search proposes."""
    listing: Listing | None = None
    """The files of the data set, listed by the sweep before its first trial."""


class TrialProcess:
    """The process of a trial, controlled by the sweep."""

    def __init__(self, work: Work) -> None:
        """Start the process."""
        self.trial, self.execution = work.trial, work.execution
        self._reader, writer = CONTEXT.Pipe(duplex=False)
        with forking():
            self._process = CONTEXT.Process(target=_work, args=(work, writer, dict(os.environ)))
            self._process.start()
        writer.close()
        self._asked = False
        self._open = True
        self._outcome: Outcome | None = None

    @property
    def handles(self) -> list[Any]:
        """The handles that become ready when a message arrives or the process ends."""
        return [self._process.sentinel, self._reader] if self._open else [self._process.sentinel]

    def rows(self) -> Iterator[Mapping[str, float]]:
        """Yield the rows that the trial has sent since the last call; store its outcome."""
        try:
            while self._open and self._reader.poll():
                message = self._reader.recv()
                if isinstance(message, Outcome):
                    self._outcome = message
                else:
                    yield message
        except (EOFError, OSError):
            self._open = False

    def is_over(self) -> bool:
        """Return whether the process has ended."""
        return self._process.exitcode is not None

    def request_stop(self) -> None:
        """Ask the trial to save its state and stop after the current batch."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def outcome(self) -> Outcome:
        """Return the outcome of the trial; if its process died, record the failure."""
        self._process.join()
        self._reader.close()
        if self._outcome is not None:
            return self._outcome
        trial, code = self.trial, self._process.exitcode or 0
        if self._asked or code in (-signal.SIGTERM, RESUME_ME):
            return Outcome(trial, "interrupted")
        record = store.read_record(store.trial_folder(self.execution.store, trial.trial_id))
        if record is not None and record.status == "finished":  # the process died after the trial
            return Outcome(trial, "finished")
        _record(trial, self.execution, death(code), LOST)
        return Outcome(trial, "failed", LOST, death(code))


def _work(work: Work, writer: Connection, environment: dict[str, str]) -> None:
    """Run a trial in this process, send its outcome, and end the process."""
    adopt_environment(environment)
    for number in (signal.SIGINT, signal.SIGHUP):  # the sweep handles these, and stops trials by SIGTERM
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    threading.Thread(target=_follow_sweep, daemon=True).start()
    folder = store.trial_folder(work.execution.store, work.trial.trial_id)
    outcome: Outcome | None = None
    log: TextIO = io.StringIO()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            sys.stdout = sys.stderr = log
            outcome = _run(work, writer, log)
    except OSError as error:
        outcome = _record_error(work, error, log)
    finally:
        failed = outcome is None or outcome.status == "failed"
        finish_run(int(failed))
        with contextlib.suppress(OSError):
            if outcome is not None:
                writer.send(outcome)
        os._exit(int(failed))


def _run(work: Work, writer: Connection, log: TextIO) -> Outcome:
    from se_lab.data import use_listing
    from se_lab.training.run import run

    def progress(row: Mapping[str, float]) -> None:
        with contextlib.suppress(OSError):
            writer.send(dict(row))
        if work.early_stop is not None and "epoch" in row:
            _compare(work, row)

    try:
        with use_listing(work.listing, work.trial.data, root=work.execution.data_root):
            return Outcome(work.trial, run(work.trial, work.execution, progress=progress).status)
    except InterruptedTrialError:
        return Outcome(work.trial, "interrupted")
    except store.TrialBusyError:
        return Outcome(work.trial, "busy")
    except Exception as error:
        return _record_error(work, error, log)


def _record_error(work: Work, error: Exception, log: TextIO) -> Outcome:
    """Record the failure of a trial that raised an error, and return its outcome."""
    with contextlib.suppress(OSError, ValueError):  # the disk may be full
        traceback.print_exception(error, file=log)
    kind, text = failure_kind(error), "".join(traceback.format_exception(error))
    if not isinstance(error, store.ClaimLostError):
        _record(work.trial, work.execution, text, kind)
    return Outcome(work.trial, "failed", kind, reason(text))


def _compare(work: Work, row: Mapping[str, float]) -> None:
    """Raise StoppedEarlyError if the early-stopping rule applies; never after the last epoch."""
    from se_lab.training.run import StoppedEarlyError

    rule, root = work.early_stop, work.execution.store
    if rule is None or row["epoch"] + 1 >= work.trial.train.epochs:
        return
    proposed_ids = [trial.trial_id for trial in work.search.proposed_trials(root)] if work.search is not None else []
    folders = [store.trial_folder(root, trial_id) for trial_id in dict.fromkeys((*work.peers, *proposed_ids))]
    history = rule.metric.history(store.trial_folder(root, work.trial.trial_id))
    if rule.stops(history, map(rule.metric.history, folders)):
        raise StoppedEarlyError


def _follow_sweep() -> None:
    """End this process when the sweep's process ends, for whatever reason."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os._exit(RESUME_ME)


def _record(trial: RunSpec, execution: ExecSpec, error: str, kind: str) -> None:
    """Record a failure if possible; a full disk or a deleted store must not end the sweep."""
    with contextlib.suppress(Exception):
        record_failure(trial, execution, error, kind)
