"""The trials of a sweep on this machine: worker processes forked from one that has everything imported."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from se_lab import store
from se_lab.data import data_shape
from se_lab.model import create_model
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.squeeze_excite import SqueezeExcite
from se_lab.task import check_optimizer
from se_lab.train import RESUME_ME, InterruptedTrialError, run

BUSY = 76
"""Exit status of a worker whose trial another worker holds."""


@dataclass(frozen=True)
class Outcome:
    """How a trial of the sweep stands."""

    trial: RunSpec
    status: str
    """finished (now), skipped (finished before), failed, interrupted, or lost (its process died)."""


@dataclass(frozen=True)
class Event:
    """What a view is told: a trial's status, or an epoch's row of a running one."""

    trial: RunSpec
    status: str
    row: Mapping[str, float] = dataclasses.field(default_factory=dict)


View = Callable[[Event], None]


def check_trials(trials: Sequence[RunSpec], *, root: str = ".") -> list[str]:
    """Build the net of every distinct trial without memory or time, and return remarks worth saying aloud.

    Raises:
        SpecError: for the first trial that cannot be built.
        DataError: for a data set that cannot be used.
    """
    remarks: list[str] = []
    widths: dict[tuple[object, ...], dict[int, tuple[int, ...]]] = {}
    shapes = {trial.data: data_shape(trial.data, root=root) for trial in trials}
    checked: set[str] = set()
    for trial in trials:
        check_optimizer(trial.optim)
        classes, (channels, _, _), images = shapes[trial.data]
        if not images:
            raise SpecError(f"data.name is {trial.data.name!r}, and its training split is empty")
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


def _share(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def execute(trials: Sequence[RunSpec], execution: ExecSpec, workers: int, view: View) -> list[Outcome]:
    """Run what is left of a sweep, `workers` trials at a time, each in a process of its own.

    Finished trials are skipped, interrupted ones go on from their checkpoint, failed ones are tried anew. A trial that
    another sweep is running is waited for. SIGINT or SIGTERM stops the workers after their current batch; what they
    have done is kept.

    Returns:
        An outcome a trial, in the order of the trials.
    """
    # A forked worker must not inherit threads: with one thread PyTorch makes none.
    torch.set_num_threads(1)
    outcomes: dict[str, Outcome] = {}
    waiting: list[tuple[float, RunSpec]] = []  # not before this time
    for trial in trials:
        if _is_finished(trial, execution):
            outcomes[trial.trial_id] = Outcome(trial, "skipped")
            view(Event(trial, "skipped"))
        else:
            waiting.append((0.0, trial))
    running: dict[int, _Worker] = {}
    with _stop_on_signal() as stop:
        while (waiting and not stop.is_set()) or running:
            if stop.is_set():
                for worker in running.values():
                    worker.ask_to_stop()
            ready = [entry for entry in waiting if entry[0] <= time.monotonic()]
            while ready and len(running) < workers and not stop.is_set():
                entry = ready.pop(0)
                waiting.remove(entry)
                worker = _Worker(entry[1], execution)
                running[worker.sentinel] = worker
                view(Event(entry[1], "running"))
            handles = [handle for worker in running.values() for handle in worker.handles]
            wait(handles, timeout=0.5) if handles else time.sleep(0.5)
            for worker in list(running.values()):
                for row in worker.rows():
                    view(Event(worker.trial, "running", row))
                if worker.is_over():
                    del running[worker.sentinel]
                    status = worker.status()
                    if status == "busy":
                        waiting.append((time.monotonic() + 2.0, worker.trial))
                    else:
                        outcomes[worker.trial.trial_id] = Outcome(worker.trial, status)
                    view(Event(worker.trial, status))
    for _, trial in waiting:
        outcomes[trial.trial_id] = Outcome(trial, "interrupted")
    return [outcomes[trial.trial_id] for trial in trials]


def _is_finished(trial: RunSpec, execution: ExecSpec) -> bool:
    record = store.read_record(store.trial_folder(execution.store, trial.trial_id))
    return record is not None and record.status == "finished"


class _Worker:
    """One trial in a process of its own, as the parent sees it."""

    def __init__(self, trial: RunSpec, execution: ExecSpec) -> None:
        self.trial, self.execution = trial, execution
        self._reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
        self._process = multiprocessing.get_context("fork").Process(
            target=_work, args=(trial, execution, writer, os.getpid())
        )
        self._process.start()
        writer.close()
        self._asked = False
        self._open = True

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def handles(self) -> list[Any]:
        return [self._process.sentinel, self._reader] if self._open else [self._process.sentinel]

    def rows(self) -> Iterator[Mapping[str, float]]:
        """Yield the epochs that ended since the last look."""
        try:
            while self._open and self._reader.poll():
                yield self._reader.recv()
        except (EOFError, OSError):
            self._open = False

    def is_over(self) -> bool:
        return self._process.exitcode is not None

    def ask_to_stop(self) -> None:
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def status(self) -> str:
        self._process.join()
        self._reader.close()
        code = self._process.exitcode
        known = {0: "finished", 1: "failed", RESUME_ME: "interrupted", BUSY: "busy", -signal.SIGTERM: "interrupted"}
        status = known.get(code or 0, "lost")
        if self._asked and status == "lost":
            return "interrupted"
        return status


def _work(trial: RunSpec, execution: ExecSpec, writer: Connection, parent: int) -> None:
    """Run a trial in this process, and leave with a status that says how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C goes to the parent, which asks us by SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    folder = store.trial_folder(execution.store, trial.trial_id)
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "log.txt").open("a", buffering=1)
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    sys.stdout = sys.stderr = log  # a notebook's are no descriptors

    def progress(row: Mapping[str, float]) -> None:
        with contextlib.suppress(OSError):
            writer.send(dict(row))

    code = 1
    try:
        run(trial, execution, progress=progress)
        code = 0
    except InterruptedTrialError:
        code = RESUME_ME
    except store.TrialBusyError:
        code = BUSY
    except Exception:
        traceback.print_exc()
        _record_failure(trial, execution, traceback.format_exc())
    finally:
        log.flush()
        os._exit(code)  # no exit handlers: they belong to the process this one was forked from


def _record_failure(trial: RunSpec, execution: ExecSpec, error: str) -> None:
    """Keep the traceback of a trial that failed before it had a record to write it into."""
    folder = store.trial_folder(execution.store, trial.trial_id)
    with contextlib.suppress(Exception), store.claim(folder):
        if store.read_record(folder) is None:
            flat, where = trial.flat(), dataclasses.asdict(execution)
            store.write_record(folder, store.RunRecord(trial.trial_id, "failed", flat, where, error=error))


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
