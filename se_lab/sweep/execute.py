"""The trials of a sweep on this machine: worker processes forked from one that has everything imported."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

import torch

from se_lab import store
from se_lab.data import check_split, data_shape
from se_lab.failures import BROKEN_DEVICE, LOST, NETWORK, OK_AGAIN, OTHER, OUT_OF_MEMORY, death, failure_kind, reason
from se_lab.model import create_model
from se_lab.preflight import check_before
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.squeeze_excite import SqueezeExcite
from se_lab.sweep.bayes import BayesSearch, import_optuna
from se_lab.sweep.child import in_a_child
from se_lab.sweep.early_stop import Hyperband
from se_lab.sweep.wandb_service import finish_run, shared_service
from se_lab.train import RESUME_ME, InterruptedTrialError, StoppedEarlyError, run

BUSY, STOPPED = 76, 77
"""Exit statuses of a worker whose trial another worker holds, or was given up early."""
POLL_SECONDS = 2.0
"""How long a trial that another worker holds is left alone before it is looked at again."""
NETWORK_SECONDS = 10.0
FEW_FAILURES = 5
"""Failures for one reason that stop a sweep, if they are most of the trials that ended."""


@dataclass(frozen=True)
class Outcome:
    """How a trial of the sweep stands."""

    trial: RunSpec
    status: str
    """finished (now), skipped (over before, or by another worker), stopped (given up early), failed, interrupted, or
    not started."""
    kind: str | None = None
    """Why it failed, as se_lab.failures has it."""
    error: str | None = None
    """What it says of itself, in a line."""


@dataclass(frozen=True)
class Event:
    """What a view is told: a trial's status, or an epoch's row of a running one."""

    trial: RunSpec
    status: str
    row: Mapping[str, float] = dataclasses.field(default_factory=dict)


View = Callable[[Event], None]


def check_trials(
    trials: Sequence[RunSpec], *, execution: ExecSpec | None = None, looks_at: str | None = None
) -> list[str]:
    """Build the net of every distinct trial without memory or time, and return remarks worth saying aloud.

    Args:
        trials: The trials.
        execution: Where and how they are to run.
        looks_at: What of the sweep itself looks at validation images.

    Raises:
        SpecError: for the first trial that cannot be built, or lacks the validation images that something looks at.
        DataError: for a data set that cannot be used.
    """
    execution = execution or ExecSpec()
    in_a_child(_check_machine, trials, execution)  # which wakes CUDA, and then no worker could be forked
    remarks: list[str] = []
    widths: dict[tuple[object, ...], dict[int, tuple[int, ...]]] = {}
    shapes = {trial.data: data_shape(trial.data, root=execution.data_root) for trial in trials}
    checked: set[str] = set()
    for trial in trials:
        data = shapes[trial.data]
        classes, (channels, _, _) = data.classes, data.shape
        if not data.sizes["train"]:
            raise SpecError(f"data.name is {trial.data.name!r}, and its training split is empty")
        for needs, what in (
            (trial.optim.schedule == "plateau", "optim.schedule=plateau"),
            (trial.train.select == "best", "train.select=best"),
            (looks_at is not None, looks_at),
        ):
            if needs:
                check_split(trial.data, data.sizes, str(what))
        alike = f"{trial.model} {classes} {channels}"
        if alike in checked:
            continue
        checked.add(alike)
        with torch.device("meta"):
            model = create_model(trial.model, classes, channels)
        hidden = tuple(m.reduce.out_features for m in model.modules() if isinstance(m, SqueezeExcite))
        se = trial.model.se
        rest = (trial.model.backbone, str(dataclasses.replace(se, reduction=1)), str(trial.model.kwargs))
        if se.insertion != "none":
            widths.setdefault(rest, {})[se.reduction] = hidden
    for (backbone, *_), by_reduction in widths.items():
        for reduction, hidden in sorted(by_reduction.items()):
            same = [r for r, other in by_reduction.items() if r > reduction and _share(hidden, other) > 0]
            for other in sorted(same):
                share = _share(hidden, by_reduction[other])
                remarks.append(
                    f"{backbone}: r={reduction} and r={other} give the same hidden width in {share:.0%} of the units"
                )
    return remarks


def _check_machine(trials: Sequence[RunSpec], execution: ExecSpec) -> None:
    for trial in trials:
        check_before(trial, execution)


def _share(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def execute(
    trials: Sequence[RunSpec],
    execution: ExecSpec,
    workers: int,
    view: View,
    *,
    retries: int = 1,
    search: BayesSearch | None = None,
    early_stop: Hyperband | None = None,
) -> list[Outcome]:
    """Run what is left of a sweep, `workers` trials at a time, each in a process of its own.

    Finished trials are skipped, interrupted ones go on from their checkpoint, failed ones are tried anew. A trial that
    another sweep is running is waited for. SIGINT or SIGTERM stops the workers after their current batch; what they
    have done is kept. Once most trials that ended have failed for one reason, the rest is not begun.

    Args:
        trials: The trials; of a search those that were proposed before.
        execution: Where and how they run.
        workers: Trials at a time.
        view: Told what happens.
        retries: How often a trial is tried again, where that can help; one that ran out of memory beside others is
            tried again alone.
        search: Proposes more trials.
        early_stop: When to give a trial up.

    Returns:
        An outcome a trial, in the order of the trials.

    Raises:
        SpecError: for a search without Optuna, or a store that cannot be written.
    """
    # A forked worker must not inherit threads: with one thread PyTorch makes none.
    torch.set_num_threads(1)
    if search is not None:
        import_optuna()
    began = time.time()
    everyone = list(trials)
    outcomes: dict[str, Outcome] = {}
    waiting: list[_Entry] = []
    running: dict[int, _Worker] = {}
    search_goes_on = search is not None

    def settle(outcome: Outcome) -> None:
        outcomes[outcome.trial.trial_id] = outcome
        view(Event(outcome.trial, outcome.status))

    def peers() -> list[str]:
        return [trial.trial_id for trial in (search.proposed(execution.store) if search is not None else everyone)]

    def next_entry() -> _Entry | None:
        """Return an entry to start now; settle those that are over by now, and put off those that another has."""
        nonlocal search_goes_on
        if any(worker.entry.alone for worker in running.values()):
            return None
        while True:
            ready = [one for one in waiting if one.not_before <= time.monotonic() and not (one.alone and running)]
            if not ready and search is not None and search_goes_on:
                trial = _unseen(search, execution, everyone)
                search_goes_on = trial is not None
                if trial is not None:
                    everyone.append(trial)
                    ready = [_Entry(trial)]
                    waiting.extend(ready)
            if not ready:
                return None
            entry = ready[0]
            if store.holder_of(store.trial_folder(execution.store, entry.trial.trial_id)) is not None:
                entry.not_before = time.monotonic() + POLL_SECONDS
                continue
            waiting.remove(entry)
            over = _over(entry.trial, execution, early_stop, began)
            if over is None or (entry.tries and over.status == "failed"):
                return entry
            settle(over)

    for trial in everyone:
        if (over := _over(trial, execution, early_stop, began)) is not None:
            settle(over)
        else:
            waiting.append(_Entry(trial))
    if waiting or search_goes_on:
        _check_writable(execution.store)
    with shared_service(execution.wandb and bool(waiting or search_goes_on)), _stop_on_signal() as stop:
        while ((waiting or search_goes_on) and not stop.is_set()) or running:
            while len(running) < workers and not stop.is_set() and (entry := next_entry()) is not None:
                worker = _Worker(entry, execution, early_stop, peers)
                running[worker.sentinel] = worker
                view(Event(entry.trial, "running"))
            if stop.is_set():
                for worker in running.values():
                    worker.ask_to_stop()
            handles = [handle for worker in running.values() for handle in worker.handles]
            wait(handles, timeout=0.5) if handles else time.sleep(0.1 if search_goes_on or waiting else 0)
            for worker in list(running.values()):
                for row in worker.rows():
                    view(Event(worker.entry.trial, "running", row))
                if not worker.is_over():
                    continue
                del running[worker.sentinel]
                outcome = worker.outcome()
                entry = worker.entry
                if outcome.status == "busy":
                    entry.not_before = time.monotonic() + POLL_SECONDS
                    waiting.append(entry)
                elif outcome.status == "failed" and _try_again(entry, outcome, retries, crowded=bool(running)):
                    waiting.append(entry)
                    view(Event(entry.trial, f"again: {outcome.kind}"))
                else:
                    settle(outcome)
                    if common_reason(list(outcomes.values())) is not None:
                        stop.set()
    for entry in waiting:
        outcomes[entry.trial.trial_id] = Outcome(entry.trial, "not started")
    return [outcomes[trial.trial_id] for trial in everyone]


def _check_writable(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError(f"store is {folder!r}, where nothing can be written: {error.strerror}") from error


def common_reason(outcomes: Sequence[Outcome]) -> tuple[str, int] | None:
    """Return the reason for which most trials that ended have failed, and how many did, if these are a few at least."""
    ended = sum(outcome.status in ("finished", "stopped", "failed") for outcome in outcomes)
    failures = [outcome for outcome in outcomes if outcome.status == "failed"]
    counts = Counter(_reason_of(outcome) for outcome in failures)
    for why, count in counts.most_common(1):
        if count >= FEW_FAILURES and count > ended / 2:
            told = next(outcome for outcome in failures if _reason_of(outcome) == why)
            return told.error or why, count
    return None


def _reason_of(outcome: Outcome) -> str:
    """Return the kind of a failure; where it has none, the type of its error."""
    if outcome.kind is not None and outcome.kind != OTHER:
        return outcome.kind
    return (outcome.error or "").partition(":")[0]


@dataclass(eq=False)
class _Entry:
    """A trial that waits for its turn."""

    trial: RunSpec
    not_before: float = 0.0
    tries: int = 0
    alone: bool = False
    """Not beside another: it ran out of memory there."""


def _try_again(entry: _Entry, outcome: Outcome, retries: int, *, crowded: bool) -> bool:
    """Tell whether a failed trial is worth another try, and prepare it for that."""
    entry.tries += 1
    out_of_memory = outcome.kind == OUT_OF_MEMORY and crowded
    if entry.tries > retries or not (outcome.kind in OK_AGAIN or out_of_memory):
        return False
    entry.alone = out_of_memory
    entry.not_before = time.monotonic() + (NETWORK_SECONDS if outcome.kind == NETWORK else 0.0)
    return True


def _unseen(search: BayesSearch, execution: ExecSpec, seen: Sequence[RunSpec]) -> RunSpec | None:
    """Return a trial that another process has proposed, else a new proposal."""
    known = {trial.trial_id for trial in seen}
    others = [trial for trial in search.proposed(execution.store) if trial.trial_id not in known]
    return others[0] if others else search.propose(execution.store)


def _over(trial: RunSpec, execution: ExecSpec, early_stop: Hyperband | None, began: float) -> Outcome | None:
    """Return how a trial ended that needs no work here.

    One that failed before this sweep began is tried anew. One that failed since, in another process, would fail here
    too, unless that was its place's fault.
    """
    folder = store.trial_folder(execution.store, trial.trial_id)
    record = store.read_record(folder)
    if record is None:
        return None
    if record.status == "finished" or (record.status == "stopped" and early_stop is not None):
        return Outcome(trial, "skipped")
    if record.status == "failed" and record.error_kind not in (BROKEN_DEVICE, OUT_OF_MEMORY, *OK_AGAIN):
        with contextlib.suppress(FileNotFoundError):
            if (folder / "record.json").stat().st_mtime > began:
                return Outcome(trial, "failed", record.error_kind, reason(record.error or ""))
    return None


class _Worker:
    """One trial in a process of its own, as the parent sees it."""

    def __init__(
        self, entry: _Entry, execution: ExecSpec, early_stop: Hyperband | None, peers: Callable[[], list[str]]
    ) -> None:
        self.entry, self.execution = entry, execution
        self._reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
        self._process = multiprocessing.get_context("fork").Process(
            target=_work, args=(entry.trial, execution, writer, os.getpid(), early_stop, peers)
        )
        self._process.start()
        writer.close()
        self._asked = False
        self._open = True
        self._failure: tuple[str, str] | None = None

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def handles(self) -> list[Any]:
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
        return self._process.exitcode is not None

    def ask_to_stop(self) -> None:
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def outcome(self) -> Outcome:
        """Return how the trial ended; a process that died leaves a record that says so."""
        self._process.join()
        self._reader.close()
        trial, code = self.entry.trial, self._process.exitcode or 0
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C goes to the parent, which asks us by SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
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


def _follow(parent: int) -> None:
    """End with the process that started us, however it ends: what it was running must not go on unseen."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(RESUME_ME)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread
            before[number] = signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
