"""Run the trials of a sweep on a Slurm cluster, as an array of jobs.

Each task of the array runs its own trials with `execute`, so the state of a trial is that of one job; the store's
claims ensure that no trial is trained twice. If trials depend on one another (a search, early stopping), each task may
run any of them, like several sweeps on one store.

Near the time limit and on preemption, a task gets SIGTERM, and its trials save their state and stop. If Slurm still
reports the job as running, it is requeued and resumes later; a cancelled job stays cancelled. submitit's requeueing
gives up after a few times, and Lightning's handles one trial only, so neither is used.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from se_lab import store
from se_lab.spec import ExecSpec, RunSpec, SpecError, check_fields
from se_lab.spec.command import module_command
from se_lab.sweep.grammar import Sweep
from se_lab.sweep.status import (
    SUBMISSIONS,
    Standing,
    Submission,
    ask_slurm,
    job_name,
    live_jobs,
    standings,
    trials_of,
)
from se_lab.training.stopping import RESUME_ME, InterruptedTrialError, Stop, catch_signals

ARRAY_SIZE = 1000
"""Slurm's default limit of an array (MaxArraySize)."""
FRUITLESS_RESTARTS = 3
"""Number of restarts after which a job that saved nothing is not requeued again."""
POLL_SECONDS = 5.0


Count = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class SlurmSpec:
    """The resources of each task of the array; by default those of the cluster."""

    partition: str = ""
    """Partition."""
    time: str = "60"
    """Time limit as for sbatch: minutes, hours:minutes:seconds, days-hours. A longer trial is saved near the limit and
    resumes when its job is requeued."""
    gpus: Annotated[int, Meta(ge=0)] = 0
    """GPUs per node."""
    cpus: Annotated[int, Meta(ge=0)] = 0
    """CPU cores per process."""
    mem: str = ""
    """Memory per node, such as 16G."""
    account: str = ""
    """Account to charge."""
    qos: str = ""
    """Quality of service."""
    nodelist: str = ""
    """List of nodes to use."""
    trials_per_task: Count = 1
    """Number of trials that a task runs one after the other; use more than 1 for short trials."""
    array_parallelism: Count = 256
    """Maximum number of tasks that run at the same time."""
    grace: Count = 90
    """Seconds before the time limit at which trials save and stop; Slurm may signal a minute earlier."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other options of sbatch, such as {constraint: a100, exclude: n7}."""

    def __post_init__(self) -> None:
        """Raise SpecError for a number out of range; sbatch checks the rest."""
        check_fields(self, "slurm")

    def options(self) -> dict[str, Any]:
        """Return the options for sbatch."""
        options = {
            "partition": self.partition, "time": self.time, "gpus-per-node": self.gpus, "cpus-per-task": self.cpus,
            "mem": self.mem, "account": self.account, "qos": self.qos, "nodelist": self.nodelist,
        }  # fmt: skip
        return {name: value for name, value in options.items() if value} | self.extra


@dataclass(frozen=True)
class Share:
    """The work of a task of the array."""

    sweep: Sweep
    """The sweep with this task's trials, or with all trials if they depend on one another."""
    execution: ExecSpec
    workers: int
    retries: int


def submit_trials(
    sweep: Sweep, execution: ExecSpec, slurm: SlurmSpec, *, workers: int = 1, retries: int = 1
) -> list[str]:
    """Submit the trials that have not ended and are not running or queued.

    Trials over several nodes get a separate array with one trial per task.

    Args:
        sweep: The sweep.
        execution: Where and how trials run; the store must be on a file system shared by the nodes.
        slurm: The resources of a task.
        workers: Number of trials that a task runs in parallel.
        retries: Maximum number of retries of a trial whose failure may be temporary.

    Returns:
        The job ids, one per array; empty if there is nothing to do.

    Raises:
        SpecError: if submitit or Slurm is missing, or sbatch reports an error.
    """
    open_trials = [standing.trial for standing in standings(sweep, execution.store) if standing.open]
    if sweep.search is not None or sweep.early_stop is not None:
        return _submit_dependent(Share(sweep, execution, workers, retries), len(open_trials), slurm)
    ids = []
    for nodes in sorted({trial.train.nodes for trial in open_trials}):
        node_trials = [trial for trial in open_trials if trial.train.nodes == nodes]
        size = slurm.trials_per_task if nodes == 1 else 1
        shares = [node_trials[start : start + size] for start in range(0, len(node_trials), size)]
        for start in range(0, len(shares), ARRAY_SIZE):
            chunk = shares[start : start + ARRAY_SIZE]
            work = [Share(replace(sweep, trials=share), execution, workers, retries) for share in chunk]
            jobs = _submit(sweep, execution, slurm, run_share, work, ranks_of=chunk[0][0])
            groups = [([job], [trial.trial_id for trial in share]) for job, share in zip(jobs, chunk, strict=True)]
            Submission(job_name(sweep), size, groups).note(_folder(execution))
            ids.append(jobs[0].partition("_")[0])
    return ids


def _submit_dependent(share: Share, remaining: int, slurm: SlurmSpec) -> list[str]:
    """Submit a sweep whose trials depend on one another, as tasks that may run any of them."""
    sweep, root = share.sweep, share.execution.store
    if any(trial.train.nodes > 1 for trial in sweep.trials):
        raise SpecError("early_terminate does not work on Slurm for trials over several nodes; remove it")
    if sweep.search is not None:
        remaining += sweep.search.cap - len(sweep.search.proposed_trials(root))
    tasks = min(-(-remaining // slurm.trials_per_task), slurm.array_parallelism, ARRAY_SIZE) - live_jobs(sweep, root)
    if tasks < 1:
        return []
    jobs = _submit(sweep, share.execution, slurm, run_share, [share] * tasks)
    trials = [trial.trial_id for trial in sweep.trials]
    Submission(job_name(sweep), max(len(trials), 1), [(jobs, trials)]).note(_folder(share.execution))
    return [jobs[0].partition("_")[0]]


def submit_agents(
    file: str | Path, sweep: Sweep, execution: ExecSpec, slurm: SlurmSpec, *, adds_seeds: bool = False
) -> list[str]:
    """Register a sweep spec with W&B, and submit a W&B agent to Slurm for each open trial.

    Args:
        file: The spec.
        sweep: The content of the spec.
        execution: Where and how trials run; agents use only the store, and take the rest from the spec's command.
        slurm: The resources of a task, which runs one trial.
        adds_seeds: Whether seeds are added to the sweep; W&B's sweep then has only the seeds of the open trials.

    Returns:
        The job ids, one per array. If there is nothing to do, the list is empty and no sweep is registered.

    Raises:
        SpecError: if the spec has problems, an option cannot be passed to agents, or sbatch reports an error.
    """
    if sweep.search is not None:
        raise SpecError("the trials of a bayes search are not known in advance; use Slurm without --wandb")
    if any(trial.train.nodes > 1 for trial in sweep.trials):
        raise SpecError("a W&B agent runs a trial on one node; run trials over several nodes without --wandb")
    trials = [standing.trial for standing in standings(sweep, execution.store) if standing.open]
    if not trials:
        return []
    from se_lab.sweep.wandb import register_sweep

    trial_ids, seeds = [trial.trial_id for trial in trials], sorted({trial.seed for trial in trials})
    path, environment = register_sweep(file, execution, seeds if adds_seeds else ())
    ids = []
    for start in range(0, len(trial_ids), ARRAY_SIZE):
        chunk = trial_ids[start : start + ARRAY_SIZE]
        jobs = _submit(sweep, execution, slurm, run_agent, [(path, environment)] * len(chunk))
        Submission(job_name(sweep), 1, [(jobs, chunk)]).note(_folder(execution))
        ids.append(jobs[0].partition("_")[0])
    return ids


def wait_for(sweep: Sweep, store_folder: str | Path) -> list[Standing]:
    """Wait until no trial is queued or running, and return the states of all trials."""
    while True:
        job_count, states = live_jobs(sweep, store_folder), standings(sweep, store_folder)
        if not job_count and not any(standing.status in ("queued", "running") for standing in states):
            return states
        time.sleep(POLL_SECONDS)


def run_share(share: Share) -> None:
    """Run a task's trials inside its job; requeue the job if it must stop before the end."""
    with catch_signals(Stop(at_once=False)) as stop:
        from se_lab.sweep.schedule import Rules, common_reason, execute
        from se_lab.sweep.view import SweepView

        sweep, old_times = share.sweep, _save_times(share)
        if stop.asked:
            _end_job(made_progress=False)
        if any(trial.train.nodes > 1 for trial in sweep.trials):
            return _run_rank(share)
        total = sweep.search.cap if sweep.search is not None else 0
        with SweepView(sweep.trials, share.workers, share.execution.store, total=total) as view:
            outcomes = execute(
                sweep.trials,
                share.execution,
                share.workers,
                view,
                Rules(share.retries, sweep.search, sweep.early_stop),
            )
    if common_reason(outcomes) is None and any(o.status in ("interrupted", "not started") for o in outcomes):
        _end_job(made_progress=_save_times(share) != old_times)
    if failures := [f"{o.trial.trial_id} {o.status}" for o in outcomes if o.status in ("failed", "not started")]:
        raise RuntimeError(", ".join(failures))


def _run_rank(share: Share) -> None:
    """Run one rank of the trial of a task over several nodes."""
    from se_lab.training.run import run

    old_times = _save_times(share)
    try:
        run(share.sweep.trials[0], share.execution)
    except InterruptedTrialError:
        _end_job(made_progress=_save_times(share) != old_times)


def run_agent(work: tuple[str, Mapping[str, str]]) -> None:
    """Run one trial of a W&B sweep inside the job; requeue the job if it must stop."""
    path, environment = work
    with catch_signals(Stop(at_once=False)) as stop:
        command = module_command("wandb", "agent", "-f", "--count", "1", path)
        agent = subprocess.Popen(command, env=os.environ | dict(environment))
        while agent.poll() is None and not stop.asked:
            time.sleep(0.2)
        if stop.asked:
            agent.terminate()
            agent.wait()
            _end_job(made_progress=True)


def _submit(
    sweep: Sweep,
    execution: ExecSpec,
    slurm: SlurmSpec,
    function: Callable[[Any], None],
    work: Sequence[Any],
    *,
    ranks_of: RunSpec | None = None,
) -> list[str]:
    """Submit an array that calls a function for each item of `work`, and return the job ids."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise SpecError('--executor slurm needs submitit: pip install "se-lab[slurm]"') from None
    train = ranks_of.train if ranks_of is not None and ranks_of.train.nodes > 1 else None
    # On one node the batch script is the task: only its own process gets SIGTERM, not its child processes.
    options = slurm.options() | {"signal": f"{'' if train else 'B:'}TERM@{slurm.grace}", "requeue": True}
    python = shlex.quote(sys.executable)
    try:
        executor = submitit.SlurmExecutor(_folder(execution), python=python if train else f"exec {python}")
        executor.update_parameters(
            job_name=job_name(sweep),
            nodes=train.nodes if train else 1,
            ntasks_per_node=train.devices if train else 1,
            array_parallelism=slurm.array_parallelism,
            use_srun=train is not None,
            additional_parameters=options,
        )
        with _no_job_environment():
            jobs = executor.map_array(function, work)
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise SpecError(f"Slurm refused the sweep: {str(error).strip().rpartition(chr(10))[2]}") from error
    return [job.job_id for job in jobs]


def _folder(execution: ExecSpec) -> Path:
    return Path(execution.store, SUBMISSIONS)


@contextlib.contextmanager
def _no_job_environment() -> Iterator[None]:
    """Hide the environment variables of the current Slurm job, which sbatch would copy."""
    from submitit.helpers import clean_env

    variables = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    with clean_env() if "SLURM_JOB_ID" in os.environ else contextlib.nullcontext():
        os.environ.update(variables)
        yield


def _save_times(share: Share) -> list[int]:
    """Return the modification times of the trials' checkpoints and records."""
    root = share.execution.store
    folders = [store.trial_folder(root, trial.trial_id) for trial in trials_of(share.sweep, root)]
    files = [folder / name for folder in folders for name in ("last.ckpt", "record.json")]
    return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


def _end_job(*, made_progress: bool) -> None:
    """End the job, and requeue it unless it was cancelled or makes no progress."""
    job = os.environ["SLURM_JOB_ID"]
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"  # for one task, SLURM_JOB_ID is that of the whole array
    if os.environ.get("SLURM_PROCID", "0") == "0":
        state = ask_slurm("squeue", "--all", "--noheader", "--format=%T", f"--jobs={job}")
        if not made_progress and int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= FRUITLESS_RESTARTS:
            print("not requeued: the job saved nothing in this run; increase its time limit", file=sys.stderr)
        elif state.strip() == "RUNNING":  # after an immediate preemption the job is already queued
            ask_slurm("scontrol", "requeue", job)
    sys.exit(RESUME_ME)
