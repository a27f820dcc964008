"""Run trials under W&B agents, and send trials from the store to W&B."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from se_lab import store
from se_lab.spec import ExecSpec, RunSpec, SpecError, fields_of, find_sweep, run_name, run_spec, variant_name
from se_lab.spec.command import module_command
from se_lab.store import RunRecord, TrialBusyError
from se_lab.sweep.check import check_sweep
from se_lab.sweep.grammar import Sweep, load_spec, read_sweep
from se_lab.sweep.seeds import grown
from se_lab.sweep.wandb_records import read_wandb
from se_lab.sweep.wandb_runs import begin, end_stopped, end_stopped_elsewhere
from se_lab.training.run import run
from se_lab.training.stopping import RESUME_ME, SIGNALS, InterruptedTrialError, Stop, catch_signals

POLL_SECONDS = 2.0
AGENT_FIELDS = ("store", "data_root")
"""Fields of ExecSpec passed to an agent's trials by environment variables; others belong in the spec's command."""


def run_for_agent(spec: RunSpec, execution: ExecSpec) -> RunRecord:
    """Run the trial of a W&B agent, and log to the run that the agent created.

    If the trial is finished in the store, its metrics are logged at once; if another worker is running the trial, this
    one waits. On SIGTERM the trial is saved and the run marked as preempting, so that W&B's server starts the run again
    later, unless W&B itself ended the run (early_terminate).

    Raises:
        InterruptedTrialError: on SIGTERM or SIGINT; the process must exit with a non-zero status.
        Exception: the error that made the trial fail.
    """
    import wandb

    with catch_signals(Stop(at_once=False)) as stop:
        try:
            stop.raise_at_once()
            record = _run_when_free(spec, execution, stop)
        except InterruptedTrialError:
            for number in (*SIGNALS, signal.SIGINT):  # of the agent, W&B's client and a scheduler
                signal.signal(number, signal.SIG_IGN)
            if wandb.run is not None:
                end_stopped(wandb.run, RESUME_ME)
            else:
                end_stopped_elsewhere(spec.trial_id, spec.flat(), _project(execution), RESUME_ME)
            raise
        except Exception:
            if wandb.run is not None:
                wandb.run.summary.update(_summary(spec, execution.store))
                wandb.run.finish(exit_code=1)
            raise
        stop.at_once = False
        with _agents_run(spec, execution) as active:
            active.summary.update(_summary(spec, execution.store))
            active.finish()
    return record


def _run_when_free(spec: RunSpec, execution: ExecSpec, stop: Stop) -> RunRecord:
    """Run a trial, waiting and printing the holder while another worker holds it."""
    folder, last_holder = store.trial_folder(execution.store, spec.trial_id), ""
    while True:
        try:
            return run(spec, execution)
        except TrialBusyError as error:
            if stop.asked:
                raise InterruptedTrialError from error
            while (holder := store.describe_holder(folder)) != "nobody":
                if holder != last_holder:
                    print(f"waiting for {spec.trial_id}, held by {holder}", file=sys.stderr, flush=True)
                    last_holder = holder
                time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _agents_run(spec: RunSpec, execution: ExecSpec) -> Iterator[Any]:
    """Yield the active W&B run, or start the one that the agent created.

    Raises:
        SpecError: if W&B's client cannot start the run, for example without an API key.
    """
    import wandb

    if wandb.run is not None:
        yield wandb.run
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            active = begin(spec.trial_id, spec.flat(), folder, project=_project(execution), resume="allow")
        except wandb.errors.Error as error:
            sweep = f"WANDB_SWEEP_ID {os.environ['WANDB_SWEEP_ID']}"
            raise SpecError(f"W&B did not start the run of {sweep}: {error}") from error
        yield active


def _project(execution: ExecSpec) -> str:
    return os.environ.get("WANDB_PROJECT", execution.project)


def _summary(spec: RunSpec, store_folder: str) -> dict[str, Any]:
    """Return the values of a record other than its spec, keyed by column name."""
    row = store.read_records(store_folder, {spec.trial_id: spec.flat()}).to_dict("records")[0]
    values = {key: value for key, value in row.items() if key not in spec.flat() and key not in ("trial_id", "folder")}
    summary = {str(key): value for key, value in values.items() if value is not None}
    return summary | {"columns": sorted(summary)}  # to tell these values from logged ones in the run's summary


def check_network(seconds: float = 8.0) -> None:
    """Raise SpecError if W&B's server does not answer; its client would retry for minutes."""
    import wandb

    url = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # an error is an answer too
            answered.set()
        except OSError:
            pass

    # In a thread, since name resolution has no timeout.
    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(seconds):
        raise SpecError(f"W&B does not answer at {url}; check the network, or set WANDB_BASE_URL")


def sync(source: str | Path, execution: ExecSpec, *, sweep_seed: int = 0) -> list[tuple[str, str]]:
    """Send the trials of a store or sweep spec to W&B, from their records and metrics.csv.

    The id of a run is that of the trial, its group the label of the variant, and its tags backbone, insertion and
    sweep. A file synced.json in the trial's folder marks a complete upload; a trial that has changed since, or was sent
    in part, is sent again to the same run.

    Returns:
        The id of each trial with "sent", "already there", or the status of a trial without a record.

    Raises:
        SpecError: if a spec cannot be read, or W&B reports an error or does not answer.
        FileNotFoundError: if the store does not exist.
    """
    from wandb.errors import Error

    folders: Sequence[Path]
    if (path := find_sweep(source)).suffix in (".yaml", ".yml"):
        source = str(path)
        sweep = read_sweep(source, seed=sweep_seed, store_folder=execution.store)
        trials = grown(sweep.trials, execution.store)
        name, folders = sweep.name, [store.trial_folder(execution.store, trial.trial_id) for trial in trials]
    else:
        name, folders = "", [Path(folder) for folder in store.read_records(source)["folder"]]
    results, network_checked = [], False
    for folder in folders:
        record = store.read_record(folder)
        if record is None:
            results.append((folder.name, "not started" if not folder.is_dir() else "interrupted"))
            continue
        mark = {
            "project": f"{execution.entity}/{execution.project}",
            "started": record.started,
            "status": record.status,
        }
        with contextlib.suppress(FileNotFoundError, ValueError):
            if json.loads((folder / "synced.json").read_text(encoding="utf-8")) == mark:
                results.append((folder.name, "already there"))
                continue
        if not network_checked:
            check_network()
            network_checked = True
        try:
            _send(record, folder, name, execution)
        except Error as error:
            raise SpecError(f"W&B did not accept {folder.name}: {error}") from error
        store.write_text_whole(folder / "synced.json", json.dumps(mark))
        results.append((folder.name, "sent"))
    return results


def _send(record: RunRecord, folder: Path, sweep: str, execution: ExecSpec) -> None:
    flat = {key: value for key, value in record.spec.items() if value is not None}
    trial = run_spec(flat)
    tags = [tag for tag in (trial.model.backbone, trial.model.se.insertion, sweep, *execution.tags) if tag]
    destination = {"project": execution.project, "entity": execution.entity or None}
    details = {key: value for key in ("notes", "job_type") if (value := getattr(execution, key))}
    identity = {
        "id": record.trial_id,
        "name": run_name(trial),
        "group": execution.group or variant_name(trial),
        "tags": tags,
        "mode": "online",
    }
    history = list(_history(folder))
    with tempfile.TemporaryDirectory() as scratch:
        active = begin(
            record.trial_id, flat | ({"sweep": sweep} if sweep else {}), scratch, **identity, **destination, **details
        )
        for row in history:
            active.log(row, step=int(row["epoch"]))
        active.summary.update(_summary(trial, str(folder.parent)))
        active.finish(exit_code=int(record.status == "failed"))


def _history(folder: Path) -> Iterator[dict[str, float]]:
    with contextlib.suppress(FileNotFoundError):
        text = store.read_result(folder, "metrics.csv").decode()
        for row in csv.DictReader(text.splitlines()):
            yield {key: float(value) for key, value in row.items() if value}


def run_agents(path: str, environment: Mapping[str, str], agents: int) -> bool:
    """Run the trials of a registered sweep with local `wandb agent -f` processes.

    SIGINT and SIGTERM stop the trials after their current batch and mark their runs as preempting. Further signals are
    passed on to W&B's agents, which kill their trials at the third. Returns whether the agents ran to the end.
    """
    command = module_command("wandb", "agent", "-f", path)
    stopped, processes = False, []
    with catch_signals(Stop(at_once=False)) as stop:
        for _ in range(agents):
            processes.append(subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True))
        while any(process.poll() is None for process in processes):
            try:
                time.sleep(0.2)
            except KeyboardInterrupt:  # a second Ctrl-C
                stop.asked = True
            if stop.asked:
                stop.asked, stopped = False, True
                for process in processes:
                    process.terminate()
    return not stopped


def sweep_table(sweep: Sweep, path: str) -> pd.DataFrame:
    """Return the table of a registered sweep, including the trials that no agent has started."""
    try:
        table = read_wandb(path)
    except FileNotFoundError:  # no agent has started a run
        table = pd.DataFrame({"trial_id": []})
    trials = [] if sweep.search is not None else sweep.trials  # W&B's search proposes other trials than SE-Lab's
    open_trials = [trial for trial in trials if trial.trial_id not in set(table["trial_id"])]
    blanks = [{"trial_id": trial.trial_id, "status": "not started", **trial.flat()} for trial in open_trials]
    return pd.concat([table, pd.DataFrame(blanks)], ignore_index=True) if blanks else table


def check_for_agents(file: str | Path, execution: ExecSpec, *, adds_seeds: bool = False) -> Sweep:
    """Read a sweep for W&B agents; raise SpecError as `register_sweep` does.

    Args:
        file: The spec.
        execution: Where and how trials run; see AGENT_FIELDS.
        adds_seeds: Whether seeds will be added to the sweep.
    """
    if findings := check_sweep(file):
        raise SpecError(
            f"{file}: {findings[0]}" + (f" (and {len(findings) - 1} more: se-lab check)" if findings[1:] else "")
        )
    sweep = read_sweep(file)
    defaults = dict(fields_of(sweep.execution))
    for key, value in fields_of(execution):
        if value != defaults[key] and key not in (*AGENT_FIELDS, "project", "entity"):
            raise SpecError(f"--{key} is not passed to W&B agents; write it into the spec's command")
    spec = load_spec(file)
    if adds_seeds and (spec["method"] != "grid" or "seed" not in spec["parameters"]):
        raise SpecError(f"{file}: W&B agents can add seeds only to a grid with the parameter seed")
    return sweep


def register_sweep(file: str | Path, execution: ExecSpec, seeds: Sequence[int] = ()) -> tuple[str, dict[str, str]]:
    """Register a spec with W&B; return ENTITY/PROJECT/SWEEP and agents' environment variables.

    Args:
        file: The spec.
        execution: Where and how trials run; see AGENT_FIELDS.
        seeds: Seeds to register in place of those of the spec, to add seeds to a sweep.

    Raises:
        SpecError: if the spec has problems, an option cannot be passed to agents, or `seeds` are given for a spec that
            is not a grid over seeds.
    """
    import wandb

    sweep = check_for_agents(file, execution, adds_seeds=bool(seeds))
    spec = load_spec(file)
    if seeds:
        numbers = ", ".join(map(str, seeds))
        spec["name"] = f"{sweep.name}, {'seed' if len(seeds) == 1 else 'seeds'} {numbers}"
        spec["parameters"]["seed"] = {"values": list(seeds)}
    project = spec.get("project") or os.environ.get("WANDB_PROJECT") or execution.project
    entity = spec.get("entity") or execution.entity or os.environ.get("WANDB_ENTITY") or None
    sweep_id = wandb.sweep(spec, project=project, entity=entity)
    path = f"{entity or wandb.Api().default_entity}/{project}/{sweep_id}"
    return path, {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "SE_LAB_STORE": str(Path(execution.store).absolute()),
        "SE_LAB_DATA": str(Path(execution.data_root).absolute()),
        # By default an agent gives up after a few failed trials.
        "WANDB_AGENT_DISABLE_FLAPPING": "true",
        "WANDB_AGENT_MAX_INITIAL_FAILURES": str(
            (sweep.search.cap if sweep.search is not None else len(sweep.trials)) + 1
        ),
    }
