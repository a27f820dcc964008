"""How a sweep looks while it runs: one progress view over all trials, or a line a trial where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from se_lab.spec import label
from se_lab.sweep.execute import Event


class SweepView:
    """Shows events. It starts no thread: worker processes are forked while it is up."""

    def __init__(self, total: int) -> None:
        """Take the number of trials."""
        self.total = total
        self.done = 0
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            auto_refresh=False,
        )
        self.all = self.progress.add_task("trials", total=self.total, note="")
        self.tasks: dict[str, TaskID] = {}

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
        """Take note of an event."""
        trial, status = event.trial, event.status
        if status == "running":
            task = self.tasks.get(trial.trial_id)
            if task is None:
                task = self.progress.add_task(f"  {label(trial)}", total=trial.train.epochs, note="")
                self.tasks[trial.trial_id] = task
            if event.row:
                error = event.row.get("val/top1_error", event.row["train/top1_error"])
                self.progress.update(task, completed=event.row["epoch"] + 1, note=f"error {error:.2f} %")
        else:
            if (task := self.tasks.pop(trial.trial_id, None)) is not None:
                self.progress.remove_task(task)
            if status not in ("busy", "interrupted") and not status.startswith("again"):
                self.done += 1
                self.progress.update(self.all, completed=self.done)
            if status != "skipped":
                line = f"[{self.done}/{self.total}] {trial.trial_id} {status:<11} {label(trial)}"
                self.progress.console.print(line, highlight=False, markup=False)
        if self.live:
            self.progress.refresh()
