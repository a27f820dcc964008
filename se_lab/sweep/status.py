"""The state of each trial of a sweep, from the files of its store and from Slurm's queue."""

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
"""The folder of a store with its submissions, <job>.json each, and the logs of their jobs."""
OVER = ("finished", "stopped")
ASK_AGAIN_SECONDS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Standing:
    """The state of a trial."""

    trial: RunSpec
    status: str
    """finished, stopped (given up early), failed, running, queued (a job of Slurm's will take it), interrupted (it was
    begun, or its job left the queue without a result), or not started."""
    worker: str = ""
    """The process or job that runs it, will run it or has lost it; a job with Slurm's name of its state, such as
    12_3 PENDING; 12_* is any job of an array."""
    error: str | None = None
    """The last line of a failed trial's traceback."""

    @property
    def open(self) -> bool:
        """Whether the trial has still to be started or submitted."""
        return self.status not in (*OVER, "running", "queued")


@dataclass(frozen=True)
class Submission:
    """The jobs and trials of one submission to Slurm."""

    name: str
    """The name of its jobs."""
    trials_per_job: int
    """The most trials a job runs."""
    groups: Sequence[tuple[Sequence[str], Sequence[str]]]
    """(jobs, the trials that they run)."""

    def note(self, folder: Path) -> None:
        """Write the submission to the store, so that later commands know what is queued."""
        first = self.groups[0][0][0].partition("_")[0]
        store.write_sealed(folder / f"{first}.json", asdict(self))


def job_name(sweep: Sweep) -> str:
    """Return the name of a sweep's jobs in Slurm's queue."""
    return "se-lab-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", sweep.name)


def trials_of(sweep: Sweep, store_folder: str | Path) -> list[RunSpec]:
    """Return the trials of a sweep with the seeds added to it; of a search, those proposed so far."""
    return sweep.search.proposed(store_folder) if sweep.search is not None else grown(sweep.trials, store_folder)


def standings(sweep: Sweep, store_folder: str | Path) -> list[Standing]:
    """Return the state of each trial of a sweep.

    Raises:
        SpecError: if trials were submitted to Slurm and its queue cannot be asked.
    """
    states = [_in_the_store(trial, sweep, store_folder) for trial in trials_of(sweep, store_folder)]
    return _in_the_queue(states, store_folder)


def _in_the_store(trial: RunSpec, sweep: Sweep, store_folder: str | Path) -> Standing:
    """Return the state of a trial according to its folder."""
    folder = store.trial_folder(store_folder, trial.trial_id)
    record = store.read_record(folder)
    if record is None:
        if store.holder_of(folder) is not None:
            return Standing(trial, "running", store.describe_holder(folder))
        return Standing(trial, "interrupted" if folder.is_dir() else "not started")
    if record.status == "stopped" and sweep.early_stop is None:
        return Standing(trial, "interrupted")  # another sweep has given it up, this one does not
    error = reason(record.error) if record.status == "failed" and record.error else None
    return Standing(trial, record.status, error=error)


def _in_the_queue(stood: list[Standing], store_folder: str | Path) -> list[Standing]:
    """Return the states of trials with what Slurm's queue tells of those that are not over."""
    states = {s.trial.trial_id: s.status for s in stood}
    waiting_ids = {trial for trial, state in states.items() if state in ("failed", "interrupted", "not started")}
    candidates = waiting_ids | {t for t, state in states.items() if state == "running" and shutil.which("squeue")}
    submissions = [entry for entry in _submissions(store_folder) if _takes(entry[1], candidates)]
    jobs = _queue({entry.name for _, entry in submissions}) if submissions else {}
    takers: dict[str, str] = {}
    losers: dict[str, str] = {}
    for submit_time, entry in submissions:
        for job_ids, trial_ids in entry.groups:
            live_ids = [job for job in job_ids if job in jobs]
            running_ids = [trial for trial in trial_ids if states.get(trial) == "running"]
            # a trial that has failed since the submission is over: its job ran it
            open_ids = [
                t
                for t in trial_ids
                if t in waiting_ids and not (states[t] == "failed" and _over_at(store_folder, t) > submit_time)
            ]
            losers |= dict.fromkeys(open_ids, job_ids[0] if len(job_ids) == 1 else f"{job_ids[0].partition('_')[0]}_*")
            if live_ids:
                label = (
                    f"{live_ids[0]} {jobs[live_ids[0]]}" if len(job_ids) == 1 else f"{live_ids[0].partition('_')[0]}_*"
                )
                room = max(len(live_ids) * entry.trials_per_job - len(running_ids), 0)
                takers |= dict.fromkeys([*open_ids[:room], *running_ids], label)
    return [_with_job(s, takers.get(s.trial.trial_id), losers.get(s.trial.trial_id)) for s in stood]


def _with_job(standing: Standing, taker: str | None, loser: str | None) -> Standing:
    """Return a state with the live job that has the trial, or with the job that left the queue without a result."""
    if taker is not None:
        status = "running" if standing.status == "running" else "queued"
        return replace(standing, status=status, worker=taker, error=None)
    if loser is not None and standing.status in ("interrupted", "not started"):
        return replace(standing, status="interrupted", worker=f"{loser} left the queue")
    return standing


def live_jobs(sweep: Sweep, store_folder: str | Path) -> int:
    """Return the number of jobs of a sweep that are queued or running.

    Raises:
        SpecError: if some were submitted and Slurm's queue cannot be asked.
    """
    submissions = [submission for _, submission in _submissions(store_folder) if submission.name == job_name(sweep)]
    if not submissions:
        return 0
    jobs = _queue({job_name(sweep)})
    return sum(job in jobs for submission in submissions for job_ids, _ in submission.groups for job in job_ids)


def _submissions(store_folder: str | Path) -> list[tuple[float, Submission]]:
    """Return the submissions of a store, each with its time."""
    submissions = []
    for path in Path(store_folder, SUBMISSIONS).glob("*.json"):
        try:
            submissions.append((path.stat().st_mtime, Submission(**store.read_sealed(path))))
        except (ValueError, TypeError) as error:
            raise SpecError(f"{path} is not a submission of SE-Lab ({error}); delete it") from error
    return sorted(submissions, key=lambda pair: pair[0])


def _takes(submission: Submission, trials: set[str]) -> bool:
    return any(not trials.isdisjoint(trial_ids) for _, trial_ids in submission.groups)


def _over_at(store_folder: str | Path, trial_id: str) -> float:
    return (store.trial_folder(store_folder, trial_id) / "record.json").stat().st_mtime


def _queue(names: set[str]) -> dict[str, str]:
    """Return the state of every queued or running job that has one of these names."""
    if shutil.which("squeue") is None:
        raise SpecError("trials were submitted to Slurm, and there is no squeue here to ask about them")
    command = ["squeue", "--all", "--noheader", "--array", "--format=%i %T", f"--name={','.join(sorted(names))}"]
    try:
        output = ask_slurm(*command)
    except subprocess.CalledProcessError as error:
        raise SpecError(f"Slurm's queue cannot be asked: {error.stderr.strip()}") from error
    return {job: state for job, _, state in (line.partition(" ") for line in output.splitlines())}


def ask_slurm(*command: str) -> str:
    """Return the output of a Slurm command; retry it a few times if the controller is busy."""
    for pause in (*ASK_AGAIN_SECONDS, None):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0 or pause is None:
            break
        print(f"{command[0]}: {result.stderr.strip()}; retrying", file=sys.stderr)
        time.sleep(pause)
    result.check_returncode()
    return result.stdout


def listing(stood: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return a dictionary per trial: trial_id, status, worker, error, spec (flat)."""
    return [
        {"trial_id": s.trial.trial_id, "status": s.status, "worker": s.worker, "error": s.error, "spec": s.trial.flat()}
        for s in stood
    ]


def rows(stood: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of a table: one row per trial, with the fields that vary in the sweep."""
    flats = [s.trial.flat() for s in stood]
    # None is a field that cannot matter, such as the reduction of a trial without SE units
    keys = [key for key in flats[0] if len({str(flat[key]) for flat in flats} - {"None"}) > 1]
    headings = ["trial", *(key.rpartition(".")[2] for key in keys), "status", "worker", "error"]
    cells = []
    for s, flat in zip(stood, flats, strict=True):
        values = ("" if flat[key] is None else str(flat[key]) for key in keys)
        cells.append([s.trial.trial_id, *values, s.status, s.worker, s.error or ""])
    columns = [n for n, name in enumerate(headings) if name not in ("worker", "error") or any(row[n] for row in cells)]
    return [headings[n] for n in columns], [[row[n] for n in columns] for row in cells]


def summary(sweep: Sweep, stood: Sequence[Standing]) -> str:
    """Return 'NAME: 3 finished, 2 queued', and of a search how many of its trials it has yet to propose."""
    counts = Counter(s.status for s in stood)
    parts = [f"{n} {status}" for status, n in sorted(counts.items())]
    if sweep.search is not None and len(stood) < sweep.search.cap:
        parts.append(f"{sweep.search.cap - len(stood)} of {sweep.search.cap} not yet proposed")
    return f"{sweep.name}: {', '.join(parts)}"
