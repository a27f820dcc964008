"""Run trials under W&B's agents, send finished trials to W&B, and read them back. The store stays authoritative."""

from __future__ import annotations

import contextlib
import csv
import inspect
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
from se_lab.training.run import run
from se_lab.training.stopping import RESUME_ME, SIGNALS, InterruptedTrialError, Stop, catch_signals

POLL_SECONDS = 2.0
REACH_AGENTS = ("store", "data_root")
"""Fields of ExecSpec that reach an agent's trials through its environment; others belong into the spec's command."""
COUNTS = ("params", "params_se", "macs", "macs_se", "elementwise", "test_images")
"""Columns of integers; W&B also writes other numbers as integers if they are whole."""
STATES = {"finished": "finished", "running": "running", "failed": "failed", "crashed": "failed", "killed": "failed"}
"""The status for each W&B state of a run that reports none; other states, such as preempted, mean interrupted."""


def run_for_agent(spec: RunSpec, execution: ExecSpec) -> RunRecord:
    """Run the trial that a W&B agent asks for, and log to the run that the agent created.

    A trial that is finished in the store ends at once with its metrics; if another worker is running it, this one
    waits. On SIGTERM the trial is saved and the run marked as preempting, so that W&B's server hands it out again,
    unless W&B itself ended it, as early_terminate does.

    Raises:
        InterruptedTrialError: on SIGTERM or SIGINT; leave with a status other than 0.
        Exception: whatever made the trial fail.
    """
    import wandb

    with catch_signals(Stop()) as stop:
        try:
            record = _run_when_free(spec, execution, stop)
        except InterruptedTrialError:
            stop.at_once = False  # ignore repeats: the agent, W&B's client and a scheduler each signal
            for number in (*SIGNALS, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            with _agents_run(spec, execution) as active:
                if _given_up(active):
                    active.summary["status"] = "stopped"
                else:
                    active.mark_preempting()
                active.finish(exit_code=RESUME_ME)
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
    """Run a trial, or wait until another worker has run it; report that worker, and again while it is silent."""
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


def _given_up(active: Any) -> bool:
    """Return whether W&B ended a run, by early_terminate or in the browser: it must not be handed out again."""
    with contextlib.suppress(Exception):  # not part of wandb's public interface
        from wandb.sdk.launch.api import LaunchApi

        return bool(LaunchApi().check_stop_requested(active.project, active.entity, active.id))
    return False


@contextlib.contextmanager
def _agents_run(spec: RunSpec, execution: ExecSpec) -> Iterator[Any]:
    """Yield the active W&B run, or start the one that the agent created."""
    import wandb

    if wandb.run is not None:
        yield wandb.run
        return
    with tempfile.TemporaryDirectory() as folder:
        project = os.environ.get("WANDB_PROJECT", execution.project)
        yield _begin(spec.trial_id, spec.flat(), folder, project=project, resume="allow")


def _begin(trial_id: str, flat: dict[str, Any], folder: str, **options: Any) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    active: Any = wandb.init(dir=folder, settings=settings, **options)
    values = {key: value for key, value in flat.items() if value is not None} | {"trial_id": trial_id}
    # keys that an agent set are locked to the sweep
    active.config.update({key: value for key, value in values.items() if key not in active.config})
    return active


def _summary(spec: RunSpec, store_folder: str) -> dict[str, Any]:
    """Return a record's values other than its spec, by their columns in a table."""
    row = store.read_records(store_folder, {spec.trial_id: spec.flat()}).to_dict("records")[0]
    values = {key: value for key, value in row.items() if key not in spec.flat() and key not in ("trial_id", "folder")}
    summary = {str(key): value for key, value in values.items() if value is not None}
    return summary | {"columns": sorted(summary)}  # a run's summary also has what was logged along the way


def check_network(seconds: float = 8.0) -> None:
    """Raise SpecError if W&B's server does not answer in time; its client would retry for minutes without a word."""
    import wandb

    url = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # an answer all the same
            answered.set()
        except OSError:
            pass

    # a thread: to look a name up has no time limit of its own
    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(seconds):
        raise SpecError(f"W&B does not answer at {url}: without a network nothing can be sent; WANDB_BASE_URL names it")


def sync(source: str | Path, execution: ExecSpec, *, sweep_seed: int = 0) -> list[tuple[str, str]]:
    """Send the trials of a store or of a sweep spec to W&B: each once and complete, from its record and metrics.csv.

    A run has the trial's id; its group is the label of the variant; its tags are the backbone, the insertion and the
    sweep. synced.json in the trial's folder records what was sent. A trial that has changed since, or was sent in part,
    is sent again to the same run.

    Returns:
        For each trial, its id and "sent", "already there", or its status if it has no record to send.

    Raises:
        SpecError: for a spec that cannot be read, or where W&B refuses or does not answer.
        FileNotFoundError: for a store that does not exist.
    """
    import wandb
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
        except (Error, wandb.errors.UsageError) as error:
            raise SpecError(f"W&B did not take {folder.name}: {error}") from error
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
        active = _begin(
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


def read_wandb(path: str) -> pd.DataFrame:
    """Read the trials of a W&B project or sweep through its API, one row per trial, as `store.read_records` does.

    Args:
        path: entity/project or entity/project/sweep.

    Raises:
        SpecError: for a path of another form.
        FileNotFoundError: where W&B has no trial there.
    """
    import wandb

    entity, project, sweep = (*path.split("/"), None, None)[:3]
    if not (entity and project) or path.count("/") > 2:
        raise SpecError(f"wandb:{path} must be wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/SWEEP")
    filters = {"$and": [{"sweep": sweep}]} if sweep else {}
    # with their sweeps, the client 0.22 drops the runs of sweeps
    options: dict[str, Any] = {"order": "+created_at", "include_sweeps": False}
    if "lazy" in inspect.signature(wandb.Api.runs).parameters:  # lazy runs query their config and summary one by one
        options["lazy"] = False
    try:
        runs = list(wandb.Api().runs(f"{entity}/{project}", filters=filters, **options))
    except (wandb.errors.CommError, ValueError) as error:
        raise FileNotFoundError(f"wandb:{path} cannot be read: {error}") from error
    rows = [
        _row(wandb_run, f"wandb:{entity}/{project}/{wandb_run.id}")
        for wandb_run in runs
        if "trial_id" in wandb_run.config
    ]
    if not rows:
        raise FileNotFoundError(f"wandb:{path} contains no trials of SE-Lab")
    # a trial may have several runs, for example in two sweeps: prefer a finished one
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if best.setdefault(row["trial_id"], row)["status"] != "finished":
            best[row["trial_id"]] = row
    table: pd.DataFrame = pd.DataFrame(list(best.values()))
    return table


def _row(wandb_run: Any, where: str) -> dict[str, Any]:
    config, summary = wandb_run.config, dict(wandb_run.summary)
    flat = {key: config.get(key) for key in RunSpec().flat()}
    # W&B writes 1.0 as 1; a plugin's operator is unknown here unless its module is imported
    with contextlib.suppress(SpecError):
        flat = run_spec({key: value for key, value in flat.items() if value is not None}).flat()
    status = summary.get("status") if wandb_run.state == "finished" or summary.get("status") == "stopped" else None
    state = status or STATES.get(wandb_run.state, "interrupted")
    metrics = [key for key in summary if key.startswith(("train/", "val/", "test/")) or key in ("params", "macs")]
    values = {key: summary[key] for key in summary.get("columns", metrics) if key not in ("status", "error")}
    values |= {key: float(value) for key, value in values.items() if type(value) is int and key not in COUNTS}
    if isinstance(provenance := config.get("provenance"), Mapping):  # of a run that a trial has logged to itself
        columns = {"provenance": json.dumps(dict(provenance)), "code_version": provenance.get("se-lab")}
        values = columns | {"data_digest": provenance.get("images")} | values
    error = summary.get("error")
    return {"trial_id": config["trial_id"], "status": state, "error": error, "folder": where} | flat | values


def run_agents(path: str, environment: Mapping[str, str], agents: int) -> bool:
    """Run the trials of a registered sweep here with `wandb agent -f` processes; return whether they ran to the end.

    SIGINT and SIGTERM stop the trials after their current batch and mark their runs as preempting; a second signal
    is passed on to W&B's agents again, and a third makes them kill their trials.
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


def table_of(sweep: Sweep, path: str) -> pd.DataFrame:
    """Return the table of a registered sweep; the status of a trial that no agent has taken is 'not started'."""
    try:
        table = read_wandb(path)
    except FileNotFoundError:  # no trial got as far as a run
        table = pd.DataFrame({"trial_id": []})
    trials = [] if sweep.search is not None else sweep.trials  # W&B's own search proposes other trials than ours
    open_trials = [trial for trial in trials if trial.trial_id not in set(table["trial_id"])]
    blanks = [{"trial_id": trial.trial_id, "status": "not started", **trial.flat()} for trial in open_trials]
    return pd.concat([table, pd.DataFrame(blanks)], ignore_index=True) if blanks else table


def check_for_agents(file: str | Path, execution: ExecSpec, *, grows: bool = False) -> Sweep:
    """Return a sweep that W&B's agents can run; raise SpecError as `register_sweep`.

    Args:
        file: The spec.
        execution: Where and how trials run; see REACH_AGENTS.
        grows: Whether seeds are to be added to it.
    """
    if findings := check_sweep(file):
        raise SpecError(
            f"{file}: {findings[0]}" + (f" (and {len(findings) - 1} more: se-lab check)" if findings[1:] else "")
        )
    sweep = read_sweep(file)
    defaults = dict(fields_of(sweep.execution))
    for key, value in fields_of(execution):
        if value != defaults[key] and key not in (*REACH_AGENTS, "project", "entity"):
            raise SpecError(f"--{key} does not reach W&B's agents; write it into the spec's command")
    spec = load_spec(file)
    if grows and (spec["method"] != "grid" or "seed" not in spec["parameters"]):
        raise SpecError(f"{file}: W&B's agents can add seeds only to a grid that has seed among its parameters")
    return sweep


def register_sweep(file: str | Path, execution: ExecSpec, seeds: Sequence[int] = ()) -> tuple[str, dict[str, str]]:
    """Register a sweep spec with W&B; return ENTITY/PROJECT/SWEEP, and the variables that its agents need.

    Args:
        file: The spec.
        execution: Where and how trials run; see REACH_AGENTS.
        seeds: Register the grid with these seeds in place of its own, as one that seeds are added to.

    Raises:
        SpecError: for a spec with findings, options that cannot reach an agent's trials, or `seeds` for a spec without
            a grid over seeds.
    """
    import wandb

    sweep = check_for_agents(file, execution, grows=bool(seeds))
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
        # an agent would give up after a few failed trials; their failures are read from their runs instead
        "WANDB_AGENT_DISABLE_FLAPPING": "true",
        "WANDB_AGENT_MAX_INITIAL_FAILURES": str(
            (sweep.search.cap if sweep.search is not None else len(sweep.trials)) + 1
        ),
    }
