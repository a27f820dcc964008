"""Progress of a running sweep: bars in a terminal, otherwise one line per trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column

from se_lab import store
from se_lab.spec import RunSpec, label
from se_lab.sweep.schedule import Event
from se_lab.training.failures import reason

ERRORS = {"val/top1_error": "validation error", "train/top1_error": "training error"}


@dataclass
class Pace:
    """The progress of a trial in this run."""

    start: float
    """Start of the trial in this run, as time.monotonic."""
    weight: float = 1.0
    """MACs times epochs, to which the trial's time is proportional."""
    initial: float | None = None
    """Completed fraction at the first report."""
    fraction: float = 0.0
    """Completed fraction at the last report, from 0 to 1."""
    seconds: float = 0.0
    """Time from the start to the last report."""


def seconds_left(paces: Iterable[Pace], waiting: Sequence[float], workers: int) -> float | None:
    """Estimate the remaining time of a sweep in seconds; None before any progress.

    Args:
        paces: The trials that this run has started.
        waiting: The weights of the other trials.
        workers: Number of trials in parallel.
    """
    paces = list(paces)
    work = sum(p.weight * (p.fraction - (p.initial or 0.0)) for p in paces)
    weights = [p.weight * (1 - p.fraction) for p in paces if p.fraction < 1] + list(waiting)
    if work <= 0:
        return None if weights else 0.0
    rate = sum(p.seconds for p in paces if p.fraction > (p.initial or 0.0)) / work
    return max(sum(weights) * rate / min(workers, max(len(weights), 1)), max(weights, default=0.0) * rate)


class SweepView:
    """A view of a sweep's progress, called with each event."""

    def __init__(self, trials: Sequence[RunSpec], workers: int, folder: str, *, total: int = 0) -> None:
        """Create a view of trials in the store `folder`; `total` includes those not yet proposed."""
        self.trials = {trial.trial_id: trial for trial in trials}
        self.total, self.workers, self.folder = max(total, len(trials)), workers, folder
        self.ended: set[str] = set()
        self.failed: set[str] = set()
        self.paces: dict[str, Pace] = {}
        self.tasks: dict[str, TaskID] = {}
        self._macs: dict[str, float] = {}
        self._waits: dict[str, float] = {}
        self.live = sys.stderr.isatty()
        console = Console(stderr=True)
        self._narrow = console.width < 100
        name = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        note = Column(no_wrap=True, min_width=len("validation error 10.00 %"))
        self.progress = Progress(
            TextColumn("{task.description}", table_column=name),
            *([] if self._narrow else [BarColumn(bar_width=20)]),  # no room for bars beside names and numbers
            TaskProgressColumn(table_column=Column(no_wrap=True, min_width=len("100%"))),
            TextColumn("{task.fields[note]}", table_column=note),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self.all = self.progress.add_task(self._summary(), total=self.total, note="")

    def __enter__(self) -> SweepView:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.status == "running":
            self._follow(event)
        elif event.status.startswith("waiting: "):
            self._wait(event)
        elif event.status.startswith("changed: "):
            name = event.status.removeprefix("changed: ")
            self._print(
                f"files of {name} have changed since the last trial began; {event.trial.trial_id} uses the new files"
            )
        else:
            self._end(event)
        summary, note = self._summary(), ""
        if self._narrow and ", about " in summary:
            summary, _, note = summary.partition(", about ")
            note = f"about {note}"
        self.progress.update(self.all, completed=len(self.ended), description=summary, note=note)
        if self.live:
            self.progress.refresh()

    def _follow(self, event: Event) -> None:
        trial, row = event.trial, event.row
        self.trials[trial.trial_id] = trial
        pace = self.paces.setdefault(trial.trial_id, Pace(time.monotonic()))
        if trial.trial_id not in self.tasks:
            self.tasks[trial.trial_id] = self.progress.add_task(f"  {label(trial)}", total=1.0, note="")
        task = self.tasks[trial.trial_id]
        if "steps" in row:
            pace.fraction = row["step"] / row["steps"]
            pace.initial = pace.fraction if pace.initial is None else pace.initial
        elif row:
            pace.fraction = (row["epoch"] + 1) / trial.train.epochs
            pace.initial = row["epoch"] / trial.train.epochs if pace.initial is None else pace.initial
            name = next(key for key in ERRORS if key in row)
            self.progress.update(task, note=f"{ERRORS[name]} {row[name]:.2f} %")
        pace.seconds = time.monotonic() - pace.start
        self.progress.update(task, completed=pace.fraction)

    def _wait(self, event: Event) -> None:
        """Print the worker that the sweep waits for, at most once a minute."""
        now = time.monotonic()
        if now - self._waits.get(event.trial.trial_id, -60.0) >= 60.0:
            self._waits[event.trial.trial_id] = now
            self._print(f"waiting for {event.trial.trial_id}, held by {event.status.removeprefix('waiting: ')}")

    def _end(self, event: Event) -> None:
        trial, state = event.trial, event.status
        if (task := self.tasks.pop(trial.trial_id, None)) is not None:
            self.progress.remove_task(task)
        pace = self.paces.pop(trial.trial_id, None)
        if state.startswith("retry"):
            self._print(f"{trial.trial_id} {state}, {label(trial)}")
            return
        record = store.read_record(store.trial_folder(self.folder, trial.trial_id))
        if record is not None and (macs := record.complexity.get("macs")):
            self._macs[str(trial.model)] = self._macs[trial.model.backbone] = float(macs)
        if state != "interrupted":
            self.ended.add(trial.trial_id)
            if state == "failed":
                self.failed.add(trial.trial_id)
        if state == "skipped":
            return
        parts = [f"{trial.trial_id} {state}"]
        if pace is not None:
            pace.seconds = time.monotonic() - pace.start
            parts[0] += f" after {duration(pace.seconds)}"
            if state == "finished":
                pace.fraction = 1.0
                self.paces[trial.trial_id] = pace
        if state == "finished" and record is not None and "test/top1_error" in record.metrics:
            parts.append(f"test error {record.metrics['test/top1_error']:.2f} %")
        if state == "failed" and record is not None and record.error:
            parts.append(reason(record.error))
        self._print(", ".join([*parts, label(trial)]))

    def _print(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} [{len(self.ended)}/{self.total}] {text}"
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _summary(self) -> str:
        """Return '1/15 finished, 2 running, about 3 min left'."""
        for trial_id, pace in self.paces.items():
            pace.weight = self._weight(self.trials[trial_id])
        weights = [self._weight(t) for name, t in self.trials.items() if name not in self.ended | self.paces.keys()]
        count = self.total - len(self.trials)  # trials that a search has yet to propose
        weights += [sum(map(self._weight, self.trials.values())) / max(len(self.trials), 1)] * count
        seconds = seconds_left(self.paces.values(), weights, self.workers)
        parts = [f"{len(self.ended - self.failed)}/{self.total} finished", f"{len(self.tasks)} running"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join([*parts, *([f"about {duration(seconds)} left"] if seconds else [])])

    def _weight(self, trial: RunSpec) -> float:
        """Return a trial's MACs times epochs, with the MACs of finished trials or of similar ones."""
        macs = self._macs.get(str(trial.model)) or self._macs.get(trial.model.backbone)
        return (macs or next(iter(self._macs.values()), 1.0)) * trial.train.epochs


def duration(seconds: float) -> str:
    """Format seconds: 90 as '1 min 30 s', 4,000 as '1 h 7 min', more than two days as days."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {round(seconds % 60)} s"
    if seconds > 2 * 86400:
        return f"{seconds / 86400:,.0f} days"
    return f"{int(seconds // 3600)} h {round(seconds % 3600 / 60)} min"
