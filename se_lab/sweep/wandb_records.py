"""Read the trials of a W&B project or sweep."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from se_lab.spec import RunSpec, SpecError, run_spec

COUNTS = ("params", "params_se", "macs", "macs_se", "elementwise", "test_images")
"""Columns of integers; W&B stores other whole numbers as integers too."""
STATES = {"finished": "finished", "running": "running", "failed": "failed", "crashed": "failed", "killed": "failed"}
"""The status for each state of a W&B run; other states, such as preempted, mean interrupted."""


def read_wandb(path: str) -> pd.DataFrame:
    """Read the trials of a W&B project or sweep, with the columns of `store.read_records`.

    Args:
        path: entity/project or entity/project/sweep.

    Raises:
        SpecError: if the path has another form.
        FileNotFoundError: if W&B has no such project or sweep, or no trial in it.
    """
    import wandb

    entity, project, sweep = (*path.split("/"), None, None)[:3]
    if not (entity and project) or path.count("/") > 2:
        raise SpecError(f"got wandb:{path}; it must be wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/SWEEP")
    filters = {"$and": [{"sweep": sweep}]} if sweep else {}
    # wandb 0.22 drops the runs of sweeps if include_sweeps is true.
    options: dict[str, Any] = {"order": "+created_at", "include_sweeps": False}
    if "lazy" in inspect.signature(wandb.Api.runs).parameters:  # lazy runs need one query each for config and summary
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
    # Of several runs of one trial, for example in two sweeps, prefer a finished one.
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if best.setdefault(row["trial_id"], row)["status"] != "finished":
            best[row["trial_id"]] = row
    table: pd.DataFrame = pd.DataFrame(list(best.values()))
    return table


def _row(wandb_run: Any, where: str) -> dict[str, Any]:
    config, summary = wandb_run.config, dict(wandb_run.summary)
    flat = {key: config.get(key) for key in RunSpec().flat()}
    # W&B stores 1.0 as 1, which run_spec undoes; it raises for an operator of a plugin that is not imported.
    with contextlib.suppress(SpecError):
        flat = run_spec({key: value for key, value in flat.items() if value is not None}).flat()
    status = summary.get("status") if wandb_run.state == "finished" or summary.get("status") == "stopped" else None
    state = status or STATES.get(wandb_run.state, "interrupted")
    metrics = [key for key in summary if key.startswith(("train/", "val/", "test/")) or key in ("params", "macs")]
    values = {key: summary[key] for key in summary.get("columns", metrics) if key not in ("status", "error")}
    values |= {key: float(value) for key, value in values.items() if type(value) is int and key not in COUNTS}
    if isinstance(provenance := config.get("provenance"), Mapping):  # the trial logged to the run itself
        columns = {"provenance": json.dumps(dict(provenance)), "code_version": provenance.get("se-lab")}
        values = columns | {"data_digest": provenance.get("images")} | values
    error = summary.get("error")
    return {"trial_id": config["trial_id"], "status": state, "error": error, "folder": where} | flat | values
