"""Run the trials of a sweep on this machine in parallel, each in its own process."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from se_lab import store
from se_lab.spec import ExecSpec, RunSpec, SpecError, run_spec
from se_lab.spec.flags import import_plugins
from se_lab.sweep.bayes import BayesSearch, import_optuna
from se_lab.sweep.early_stop import Hyperband
from se_lab.sweep.server import call_in_process, start_server
from se_lab.sweep.trial_process import Outcome, TrialProcess, Work
from se_lab.sweep.wandb_service import shared_service
from se_lab.training.failures import BROKEN_DEVICE, NETWORK, OTHER, OUT_OF_MEMORY, RETRYABLE, reason
from se_lab.training.stopping import Stop, catch_signals

if TYPE_CHECKING:
    from se_lab.data import Listing

POLL_SECONDS = 2.0
"""Seconds between checks of a trial that another worker holds."""
NETWORK_SECONDS = 10.0
LOOK_SHARE = 0.05
"""Maximum fraction of a sweep's time spent on checking whether image files have changed."""
FEW_FAILURES = 5
"""Number of failures for one reason at which the sweep stops, if most trials that ended failed so."""


@dataclass(frozen=True)
class Event:
    """A message to a view: a trial's new status, or the progress of a running trial."""

    trial: RunSpec
    status: str
    """A status of Outcome; or running, retry: KIND, waiting: HOLDER, or changed: DATA if images have changed."""
    row: Mapping[str, float] = dataclasses.field(default_factory=dict)


View = Callable[[Event], None]


@dataclass(frozen=True)
class Rules:
    """Retries, search and early stopping of a sweep."""

    retries: int = 1
    """Maximum number of retries of a trial whose failure may be temporary. A trial that ran out of memory beside
    others is retried with no other trial running."""
    search: BayesSearch | None = None
    """The search that proposes further trials."""
    early_stop: Hyperband | None = None
    """The early-stopping rule."""


def execute(
    trials: Sequence[RunSpec], execution: ExecSpec, workers: int, view: View, rules: Rules = Rules()
) -> list[Outcome]:
    """Run the unfinished trials of a sweep, `workers` in parallel.

    Finished trials are skipped, interrupted ones resume from their checkpoints, and failed ones run again. If another
    sweep is running a trial, this one waits. On SIGINT or SIGTERM, running trials save their state after the current
    batch. No further trial starts once most trials that ended have failed for one reason.

    Args:
        trials: The trials; for a search, those proposed so far.
        execution: Where and how the trials run.
        workers: Number of trials to run in parallel.
        view: Called with each event.
        rules: Retries, search and early stopping.

    Returns:
        One outcome per trial, in the order of the trials.

    Raises:
        SpecError: if Optuna is missing for a search, the store cannot be written, or an operator is defined only in
            this process.
    """
    start_server()
    if rules.search is not None:
        import_optuna()
    schedule = Schedule(trials, execution, workers, view, rules)
    schedule.settle_ended()
    if schedule.has_more:
        _check_writable(execution.store)
        call_in_process(_check_operators, [trial.flat() for trial in trials], execution.plugins)
    with shared_service(execution.logger == "wandb" and schedule.has_more):
        schedule.run()
    return schedule.result()


@dataclass(eq=False)
class Entry:
    """A waiting trial."""

    trial: RunSpec
    not_before: float = 0.0
    tries: int = 0
    exclusive: bool = False
    """Whether no other trial may run in parallel, because the trial ran out of memory before."""


class Schedule:
    """The waiting and running trials of a sweep, and the outcomes of the others."""

    def __init__(self, trials: Sequence[RunSpec], execution: ExecSpec, workers: int, view: View, rules: Rules) -> None:
        self.execution, self.workers, self.view, self.rules = execution, workers, view, rules
        self.trials = list(trials)
        self.waiting = [Entry(trial) for trial in trials]
        self.running: dict[TrialProcess, Entry] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.searching = rules.search is not None
        self._listings: dict[str, Listing | None] = {}
        self._look_after: dict[str, float] = {}
        self._failed_before = {trial.trial_id: self._record_time(trial) for trial in trials}

    @property
    def has_more(self) -> bool:
        """Whether any trial has yet to start."""
        return bool(self.waiting) or self.searching

    def settle_ended(self) -> None:
        """Record the outcomes of trials that need not run."""
        for entry in list(self.waiting):
            if (outcome := self._known_outcome(entry.trial)) is not None:
                self.waiting.remove(entry)
                self._settle(outcome)

    def run(self) -> None:
        """Run the trials until all have ended, a signal stops them, or most fail for one reason."""
        with catch_signals(Stop(at_once=False)) as stop:
            try:
                while self.has_more or self.running:
                    stopping = stop.asked or self._keeps_failing()
                    if stopping and not self.running:
                        break
                    self._run_round(stopping)
            finally:  # also if the sweep itself fails, for example because its terminal was closed
                self.stop()

    def _run_round(self, stopping: bool) -> None:
        """Start trials if possible, wait briefly for messages, and process them."""
        if stopping:
            self.stop()
        while not stopping and len(self.running) < self.workers and (entry := self._next()) is not None:
            self._start(entry)
        handles = [handle for process in self.running for handle in process.handles]
        wait(handles, timeout=0.5) if handles else time.sleep(0.1 if self.has_more else 0)
        for process in list(self.running):
            self._process_messages(process)

    def stop(self) -> None:
        """Ask the running trials to save their state and stop."""
        for process in self.running:
            process.request_stop()

    def result(self) -> list[Outcome]:
        """Return one outcome per trial."""
        defaults = {entry.trial.trial_id: Outcome(entry.trial, "not started") for entry in self.waiting}
        return [(defaults | self.outcomes)[trial.trial_id] for trial in self.trials]

    def _keeps_failing(self) -> bool:
        return common_reason(list(self.outcomes.values())) is not None

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes[outcome.trial.trial_id] = outcome
        self.view(Event(outcome.trial, outcome.status))

    def _next(self) -> Entry | None:
        """Return a trial to start now, or None; settle trials that ended, postpone those held."""
        if any(entry.exclusive for entry in self.running.values()):
            return None
        while True:
            now = time.monotonic()
            entries = [
                item for item in self.waiting if item.not_before <= now and not (item.exclusive and self.running)
            ]
            if not entries and not (entries := self._next_proposal()):
                return None
            entry = entries[0]
            folder = store.trial_folder(self.execution.store, entry.trial.trial_id)
            if store.holder_of(folder) is not None:
                entry.not_before = now + POLL_SECONDS
                self.view(Event(entry.trial, f"waiting: {store.describe_holder(folder)}"))
                continue
            self.waiting.remove(entry)
            outcome = self._known_outcome(entry.trial)
            if outcome is None or (entry.tries and outcome.status == "failed"):
                return entry
            self._settle(outcome)

    def _next_proposal(self) -> list[Entry]:
        """Return an entry for a trial proposed by another process, else for a new proposal."""
        search = self.rules.search
        if search is None or not self.searching:
            return []
        ids = {trial.trial_id for trial in self.trials}
        proposals = [trial for trial in search.proposed_trials(self.execution.store) if trial.trial_id not in ids]
        trial = proposals[0] if proposals else search.propose(self.execution.store)
        self.searching = trial is not None
        if trial is None:
            return []
        self.trials.append(trial)
        self.waiting.append(Entry(trial))
        return self.waiting[-1:]

    def _start(self, entry: Entry) -> None:
        search = self.rules.search
        peers = () if search is not None else tuple(trial.trial_id for trial in self.trials)
        work = Work(entry.trial, self.execution, self.rules.early_stop, search, peers, self._listing(entry.trial))
        self.running[TrialProcess(work)] = entry
        self.view(Event(entry.trial, "running"))

    def _listing(self, trial: RunSpec) -> Listing | None:
        """Return the list of a trial's image files, made once so that all trials use the same.

        The digest of the files is updated as often as LOOK_SHARE allows.
        """
        data, root, began = trial.data, self.execution.data_root, time.monotonic()
        if not data.is_in_folders:
            return None
        last = self._listings.get(data.name)
        if data.name in self._listings and (last is None or began < self._look_after[data.name]):
            return last
        from se_lab.data import listing_of, with_present_digest  # imports PyTorch

        listing = listing_of(data, root=root) if last is None else with_present_digest(last, data, root=root)
        if last is not None and listing is not None and listing.digest != last.digest:
            self.view(Event(trial, f"changed: {data.name}"))
        self._listings[data.name] = listing
        now = time.monotonic()
        self._look_after[data.name] = now + (now - began) / LOOK_SHARE
        return listing

    def _process_messages(self, process: TrialProcess) -> None:
        """Report a trial's epochs; settle or retry the trial if its process has ended."""
        entry, is_over = self.running[process], process.is_over()  # before reading, so that no message is missed
        for row in process.rows():
            self.view(Event(entry.trial, "running", row))
        if not is_over:
            return
        del self.running[process]
        outcome = process.outcome()
        if outcome.status == "busy":
            entry.not_before = time.monotonic() + POLL_SECONDS
            self.waiting.append(entry)
        elif outcome.status == "failed" and self._can_retry(entry, outcome):
            self.waiting.append(entry)
            self.view(Event(entry.trial, f"retry: {outcome.kind}"))
        else:
            self._settle(outcome)

    def _can_retry(self, entry: Entry, outcome: Outcome) -> bool:
        """Return whether to retry a failed trial, and prepare its entry for that."""
        entry.tries += 1
        crowded_out = outcome.kind == OUT_OF_MEMORY and bool(self.running)
        if entry.tries > self.rules.retries or not (outcome.kind in RETRYABLE or crowded_out):
            return False
        entry.exclusive = crowded_out
        entry.not_before = time.monotonic() + (NETWORK_SECONDS if outcome.kind == NETWORK else 0.0)
        return True

    def _known_outcome(self, trial: RunSpec) -> Outcome | None:
        """Return the outcome of a trial that need not run, or None.

        A trial that failed before this sweep began runs again. A trial that has failed since, in another process, does
        not, unless the other machine may be the reason.
        """
        record = store.read_record(store.trial_folder(self.execution.store, trial.trial_id))
        if record is None:
            return None
        if record.status == "finished" or (record.status == "stopped" and self.rules.early_stop is not None):
            return Outcome(trial, "skipped")
        failed_here = record.status == "failed" and record.error_kind not in (BROKEN_DEVICE, OUT_OF_MEMORY, *RETRYABLE)
        if failed_here and self._record_time(trial) != self._failed_before.get(trial.trial_id):
            return Outcome(trial, "failed", record.error_kind, reason(record.error or ""))
        return None

    def _record_time(self, trial: RunSpec) -> tuple[int, int] | None:
        """Return modification time and inode of a trial's record, or None without a record."""
        try:
            status = (store.trial_folder(self.execution.store, trial.trial_id) / "record.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def check_trials(
    trials: Sequence[RunSpec], *, execution: ExecSpec | None = None, validation_use: str | None = None
) -> list[str]:
    """Return the remarks of `check_nets` and `changes`, called in a separate process."""
    execution = execution or ExecSpec()
    store.check_store(execution.store)
    return call_in_process(_check_nets, list(trials), execution, validation_use)


def _check_nets(trials: Sequence[RunSpec], execution: ExecSpec, validation_use: str | None) -> list[str]:
    from se_lab.sweep.changes import changes
    from se_lab.sweep.nets import check_nets
    from se_lab.training.pieces import create_callbacks, create_loggers
    from se_lab.training.preflight import check_no_limits

    _check_operators([trial.flat() for trial in trials], execution.plugins)
    check_no_limits(execution)
    create_callbacks(execution)
    create_loggers(execution, Path(execution.store))
    return [*check_nets(trials, execution, validation_use), *changes(trials, execution)]


def _check_operators(trials: Sequence[Mapping[str, object]], plugins: str) -> None:
    """Raise SpecError for an operator that is defined only in the process of the sweep."""
    import_plugins(plugins)
    try:
        for flat in trials:
            run_spec(flat)
    except SpecError as error:
        raise SpecError(
            f"{error}. Trials run in separate processes, which import plugins only: move the operator into a module "
            "and name the module in plugins"
        ) from None


def _check_writable(folder: str) -> None:
    try:
        store.mark_store(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError(f"store is {folder!r}, which is not writable: {error.strerror}") from error


def common_reason(outcomes: Sequence[Outcome]) -> tuple[str, int] | None:
    """Return the error that ended most trials, and its count, if FEW_FAILURES or more had it."""
    total = sum(outcome.status in ("finished", "stopped", "failed") for outcome in outcomes)
    failures = [outcome for outcome in outcomes if outcome.status == "failed"]
    counts = Counter(_reason_of(outcome) for outcome in failures)
    for kind, count in counts.most_common(1):
        if count >= FEW_FAILURES and count > total / 2:
            first = next(outcome for outcome in failures if _reason_of(outcome) == kind)
            return first.error or kind, count
    return None


def _reason_of(outcome: Outcome) -> str:
    """Return the kind of a failure, or the type of the error if there is no kind."""
    if outcome.kind is not None and outcome.kind != OTHER:
        return outcome.kind
    return (outcome.error or "").partition(":")[0]
