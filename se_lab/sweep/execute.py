"""The trials of a sweep on this machine: worker processes forked from one that has everything imported."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from se_lab import store
from se_lab.data import check_split, data_shape
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.store.index import Stamp, stamp_of
from se_lab.sweep.bayes import BayesSearch, import_optuna
from se_lab.sweep.child import can_fork, in_a_child, see_children_end, told_to_stop
from se_lab.sweep.early_stop import Hyperband
from se_lab.sweep.fresh import execute_afresh
from se_lab.sweep.trial_process import Outcome, TrialProcess
from se_lab.sweep.wandb_service import shared_service
from se_lab.training.failures import BROKEN_DEVICE, NETWORK, OK_AGAIN, OTHER, OUT_OF_MEMORY, reason
from se_lab.training.preflight import check_before
from se_lab.units.model import create_model
from se_lab.units.squeeze_excite import SqueezeExcite

POLL_SECONDS = 2.0
"""How long a trial that another worker holds is left alone before it is looked at again."""
NETWORK_SECONDS = 10.0
FEW_FAILURES = 5
"""Failures for one reason that stop a sweep, if they are most of the trials that ended."""


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
        SpecError: for a store that can be no folder, and the first trial that cannot be built, or lacks the validation
            images that something looks at.
        DataError: for a data set that cannot be used.
    """
    execution = execution or ExecSpec()
    check_place(execution.store)
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


def check_place(folder: str) -> None:
    """Raise SpecError for a store that is a file, or lies under one."""
    path = Path(folder)
    if file := next((one for one in (path, *path.parents) if one.is_file()), None):
        raise SpecError(f"store is {folder!r}, and {file} is a file; it must be a folder")


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
    have done is kept. Once most trials that ended have failed for one reason, the rest is not begun. A process that
    has trained, and so can fork no workers, has all this done by a new Python.

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
    if search is not None:
        import_optuna()
    see_children_end()
    work: dict[str, Any] = {"retries": retries, "search": search, "early_stop": early_stop}
    if not can_fork(execution.threads):
        return execute_afresh(view, trials=trials, execution=execution, workers=workers, **work)
    return execute_here(trials, execution, workers, view, **work)


def execute_here(
    trials: Sequence[RunSpec],
    execution: ExecSpec,
    workers: int,
    view: View,
    *,
    retries: int,
    search: BayesSearch | None,
    early_stop: Hyperband | None,
) -> list[Outcome]:
    """Do what `execute` does, in a process that can fork workers."""
    everyone = list(trials)
    stamps = {trial.trial_id: _stamp(trial, execution) for trial in trials}
    outcomes: dict[str, Outcome] = {}
    waiting: list[_Entry] = []
    running: dict[TrialProcess, _Entry] = {}
    search_goes_on = search is not None

    def settle(outcome: Outcome) -> None:
        outcomes[outcome.trial.trial_id] = outcome
        view(Event(outcome.trial, outcome.status))

    def peers() -> list[str]:
        return [trial.trial_id for trial in (search.proposed(execution.store) if search is not None else everyone)]

    def next_entry() -> _Entry | None:
        """Return an entry to start now; settle those that are over by now, and put off those that another has."""
        nonlocal search_goes_on
        if any(entry.alone for entry in running.values()):
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
            over = _over(entry.trial, execution, early_stop, stamps)
            if over is None or (entry.tries and over.status == "failed"):
                return entry
            settle(over)

    for trial in everyone:
        if (over := _over(trial, execution, early_stop, stamps)) is not None:
            settle(over)
        else:
            waiting.append(_Entry(trial))
    if waiting or search_goes_on:
        _check_writable(execution.store)
    service = shared_service(execution.wandb and bool(waiting or search_goes_on))
    with _one_thread(), service, told_to_stop() as stop, _asked_to_stop(running):
        while ((waiting or search_goes_on) and not stop.is_set()) or running:
            while len(running) < workers and not stop.is_set() and (entry := next_entry()) is not None:
                running[TrialProcess(entry.trial, execution, early_stop, peers)] = entry
                view(Event(entry.trial, "running"))
            if stop.is_set():
                for worker in running:
                    worker.ask_to_stop()
            handles = [handle for worker in running for handle in worker.handles]
            wait(handles, timeout=0.5) if handles else time.sleep(0.1 if search_goes_on or waiting else 0)
            for worker, entry in list(running.items()):
                is_over = worker.is_over()  # asked first: then what it said last is among the rows
                for row in worker.rows():
                    view(Event(entry.trial, "running", row))
                if not is_over:
                    continue
                del running[worker]
                outcome = worker.outcome()
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


def _stamp(trial: RunSpec, execution: ExecSpec) -> Stamp | None:
    return stamp_of(str(store.trial_folder(execution.store, trial.trial_id) / "record.json"))


def _over(
    trial: RunSpec, execution: ExecSpec, early_stop: Hyperband | None, stamps: Mapping[str, Stamp | None]
) -> Outcome | None:
    """Return how a trial ended that needs no work here.

    One that had failed when this sweep began, and whose record is still that of `stamps`, is tried anew. One that
    failed since, in another process, would fail here too, unless that was its place's fault.
    """
    folder = store.trial_folder(execution.store, trial.trial_id)
    record = store.read_record(folder)
    if record is None:
        return None
    if record.status == "finished" or (record.status == "stopped" and early_stop is not None):
        return Outcome(trial, "skipped")
    if record.status == "failed" and record.error_kind not in (BROKEN_DEVICE, OUT_OF_MEMORY, *OK_AGAIN):
        same = _stamp(trial, execution) == stamps.get(trial.trial_id)
        return None if same else Outcome(trial, "failed", record.error_kind, reason(record.error or ""))
    return None


@contextlib.contextmanager
def _asked_to_stop(running: Mapping[TrialProcess, object]) -> Iterator[None]:
    """Let the trials save their state where the sweep itself goes wrong, as when its terminal is gone."""
    try:
        yield
    finally:
        for worker in running:
            worker.ask_to_stop()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let this process start no threads that a forked worker would miss: with one thread PyTorch makes none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
