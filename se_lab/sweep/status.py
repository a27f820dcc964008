"""The state of each trial of a sweep, from the files in the store and from Slurm's queue."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from se_lab import store
from se_lab.spec import RunSpec, SpecError
from se_lab.sweep.grammar import Sweep
from se_lab.sweep.seeds import grown
from se_lab.training.failures import reason

SUBMISSIONS = ".slurm"
"""The folder in a store with a file <job>.json for each submission, and the logs of the jobs."""
OVER = ("finished", "stopped")
ASK_AGAIN_SECONDS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Standing:
    """The state of a trial."""

    trial: RunSpec
    status: str
    """finished, stopped (early), failed, running, queued (a Slurm job will run the trial), interrupted (the trial has
    started, or its job has left the queue without a result), or not started."""
    worker: str = ""
    """The process or job that runs, will run or should have run the trial; a job with Slurm's state, such as
    12_3 PENDING, where 12_* means any job of an array."""
    error: str | None = None
    """The last line of a failed trial's traceback."""

    @property
    def open(self) -> bool:
        """Whether the trial has yet to be started or submitted."""
        return self.status not in (*OVER, "running", "queued")


@dataclass(frozen=True)
class Submission:
    """The jobs and trials of one submission to Slurm."""

    name: str
    """Name of the jobs."""
    trials_per_job: int
    """Maximum number of trials that a job runs."""
    groups: Sequence[tuple[Sequence[str], Sequence[str]]]
    """Pairs of jobs and the trials that they run."""

    def note(self, folder: Path) -> None:
        """Write the submission to the store, so that later commands know which trials are queued."""
        first = self.groups[0][0][0].partition("_")[0]
        store.write_sealed(folder / f"{first}.json", asdict(self))


def job_name(sweep: Sweep) -> str:
    """Return the name of a sweep's jobs in Slurm's queue."""
    return "se-lab-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", sweep.name)


def trials_of(sweep: Sweep, store_folder: str | Path) -> list[RunSpec]:
    """Return the trials of a sweep, including those with added seeds or proposed by a search."""
    return sweep.search.proposed_trials(store_folder) if sweep.search is not None else grown(sweep.trials, store_folder)


def standings(sweep: Sweep, store_folder: str | Path) -> list[Standing]:
    """Return the state of each trial of a sweep.

    Raises:
        SpecError: if trials were submitted to Slurm and its queue cannot be read.
    """
    states = [_store_state(trial, sweep, store_folder) for trial in trials_of(sweep, store_folder)]
    return _with_queue(states, store_folder)


def _store_state(trial: RunSpec, sweep: Sweep, store_folder: str | Path) -> Standing:
    """Return the state of a trial according to its folder."""
    folder = store.trial_folder(store_folder, trial.trial_id)
    record = store.read_record(folder)
    if record is None:
        if store.holder_of(folder) is not None:
            return Standing(trial, "running", store.describe_holder(folder))
        return Standing(trial, "interrupted" if folder.is_dir() else "not started")
    if record.status == "stopped" and sweep.early_stop is None:
        return Standing(trial, "interrupted")  # another sweep stopped the trial early, but this one will finish it
    error = reason(record.error) if record.status == "failed" and record.error else None
    return Standing(trial, record.status, error=error)


def _with_queue(states: list[Standing], store_folder: str | Path) -> list[Standing]:
    """Update the states of trials that have not ended from Slurm's queue."""
    statuses = {s.trial.trial_id: s.status for s in states}
    waiting_ids = {trial for trial, status in statuses.items() if status in ("failed", "interrupted", "not started")}
    candidates = waiting_ids | {t for t, status in statuses.items() if status == "running" and shutil.which("squeue")}
    submissions = [entry for entry in _submissions(store_folder) if _has_any(entry[1], candidates)]
    jobs = _queue({entry.name for _, entry in submissions}) if submissions else {}
    takers: dict[str, str] = {}
    losers: dict[str, str] = {}
    for submit_time, entry in submissions:
        for job_ids, trial_ids in entry.groups:
            live_ids = [job for job in job_ids if job in jobs]
            running_ids = [trial for trial in trial_ids if statuses.get(trial) == "running"]
            # A trial that has failed since the submission was run by its job.
            open_ids = [
                t
                for t in trial_ids
                if t in waiting_ids and not (statuses[t] == "failed" and _end_time(store_folder, t) > submit_time)
            ]
            losers |= dict.fromkeys(open_ids, job_ids[0] if len(job_ids) == 1 else f"{job_ids[0].partition('_')[0]}_*")
            if live_ids:
                label = (
                    f"{live_ids[0]} {jobs[live_ids[0]]}" if len(job_ids) == 1 else f"{live_ids[0].partition('_')[0]}_*"
                )
                room = max(len(live_ids) * entry.trials_per_job - len(running_ids), 0)
                takers |= dict.fromkeys([*open_ids[:room], *running_ids], label)
    return [_with_job(s, takers.get(s.trial.trial_id), losers.get(s.trial.trial_id)) for s in states]


def _with_job(standing: Standing, taker: str | None, loser: str | None) -> Standing:
    """Update a trial's state with its live job, or its job that ended without a result."""
    if taker is not None:
        status = "running" if standing.status == "running" else "queued"
        return replace(standing, status=status, worker=taker, error=None)
    if loser is not None and standing.status in ("interrupted", "not started"):
        return replace(standing, status="interrupted", worker=f"{loser} left the queue")
    return standing


def live_jobs(sweep: Sweep, store_folder: str | Path) -> int:
    """Return the number of jobs of a sweep that are queued or running.

    Raises:
        SpecError: if jobs were submitted and Slurm's queue cannot be read.
    """
    submissions = [submission for _, submission in _submissions(store_folder) if submission.name == job_name(sweep)]
    if not submissions:
        return 0
    jobs = _queue({job_name(sweep)})
    return sum(job in jobs for submission in submissions for job_ids, _ in submission.groups for job in job_ids)


def _submissions(store_folder: str | Path) -> list[tuple[float, Submission]]:
    """Return the submissions in a store with their times, in order."""
    submissions = []
    for path in Path(store_folder, SUBMISSIONS).glob("*.json"):
        try:
            submissions.append((path.stat().st_mtime, Submission(**store.read_sealed(path))))
        except (ValueError, TypeError) as error:
            raise SpecError(f"{path} is not a valid submission ({error}); delete the file") from error
    return sorted(submissions, key=lambda pair: pair[0])


def _has_any(submission: Submission, trials: set[str]) -> bool:
    return any(not trials.isdisjoint(trial_ids) for _, trial_ids in submission.groups)


def _end_time(store_folder: str | Path, trial_id: str) -> float:
    return (store.trial_folder(store_folder, trial_id) / "record.json").stat().st_mtime


def _queue(names: set[str]) -> dict[str, str]:
    """Return the state of each queued or running job with one of these names."""
    if shutil.which("squeue") is None:
        raise SpecError("trials were submitted to Slurm, but this machine has no squeue command")
    command = ["squeue", "--all", "--noheader", "--array", "--format=%i %T", f"--name={','.join(sorted(names))}"]
    try:
        output = ask_slurm(*command)
    except subprocess.CalledProcessError as error:
        raise SpecError(f"Slurm's queue cannot be read: {error.stderr.strip()}") from error
    return {job: state for job, _, state in (line.partition(" ") for line in output.splitlines())}


def ask_slurm(*command: str) -> str:
    """Return the output of a Slurm command, with a few retries if the controller is busy."""
    for pause in (*ASK_AGAIN_SECONDS, None):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0 or pause is None:
            break
        print(f"{command[0]}: {result.stderr.strip()}; retrying", file=sys.stderr)
        time.sleep(pause)
    result.check_returncode()
    return result.stdout


def listing(states: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return a dictionary for each trial: trial_id, status, worker, error, spec (flat)."""
    return [
        {"trial_id": s.trial.trial_id, "status": s.status, "worker": s.worker, "error": s.error, "spec": s.trial.flat()}
        for s in states
    ]


def rows(states: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and cells of a table with one row per trial and the varied fields."""
    flats = [s.trial.flat() for s in states]
    # None marks a field without effect, such as the reduction of a trial without SE units.
    keys = [key for key in flats[0] if len({str(flat[key]) for flat in flats} - {"None"}) > 1]
    headings = ["trial", *(key.rpartition(".")[2] for key in keys), "status", "worker", "error"]
    cells = []
    for s, flat in zip(states, flats, strict=True):
        values = ("" if flat[key] is None else str(flat[key]) for key in keys)
        cells.append([s.trial.trial_id, *values, s.status, s.worker, s.error or ""])
    columns = [n for n, name in enumerate(headings) if name not in ("worker", "error") or any(row[n] for row in cells)]
    return [headings[n] for n in columns], [[row[n] for n in columns] for row in cells]


def summary(sweep: Sweep, states: Sequence[Standing]) -> str:
    """Return 'NAME: 3 finished, 2 queued', and the number of trials not yet proposed."""
    counts = Counter(s.status for s in states)
    parts = [f"{n} {status}" for status, n in sorted(counts.items())]
    if sweep.search is not None and len(states) < sweep.search.cap:
        parts.append(f"{sweep.search.cap - len(states)} of {sweep.search.cap} not yet proposed")
    return f"{sweep.name}: {', '.join(parts)}"
