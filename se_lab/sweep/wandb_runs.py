"""Start and end W&B runs; `python -m se_lab.sweep.wandb_runs` ends the run of an agent's trial that was stopped."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from se_lab.spec.command import module_command


def begin(trial_id: str, flat: Mapping[str, Any], folder: str, **options: Any) -> Any:
    """Start a run with the config of a trial, and return it; `options` are those of wandb.init."""
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    active: Any = wandb.init(dir=folder, settings=settings, **options)
    values = {key: value for key, value in flat.items() if value is not None} | {"trial_id": trial_id}
    # Keys set by an agent are locked.
    active.config.update({key: value for key, value in values.items() if key not in active.config})
    return active


def end_stopped(active: Any, exit_code: int) -> None:
    """End the run of a trial that was stopped: W&B hands it out again, unless W&B itself ended it."""
    if _ended_by_wandb(active):
        active.summary["status"] = "stopped"
    else:
        active.mark_preempting()
    active.finish(exit_code=exit_code)


def end_stopped_elsewhere(trial_id: str, flat: Mapping[str, Any], project: str, exit_code: int) -> None:
    """Do the same in a new process for a run that was not started.

    A signal may have raised an exception at any point of this process, for example while it held the lock of logging,
    for which W&B's client would wait for ever.
    """
    given = {"trial_id": trial_id, "flat": flat, "project": project, "exit_code": exit_code}
    subprocess.run(module_command(__name__), input=json.dumps(given), text=True, check=False)


def _ended_by_wandb(active: Any) -> bool:
    """Return whether W&B ended a run, by early_terminate or in the browser, for good."""
    with contextlib.suppress(Exception):  # LaunchApi is not part of wandb's public interface
        from wandb.sdk.launch.api import LaunchApi

        return bool(LaunchApi().check_stop_requested(active.project, active.entity, active.id))
    return False


if __name__ == "__main__":
    given = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as scratch:
        agents_run = begin(given["trial_id"], given["flat"], scratch, project=given["project"], resume="allow")
        end_stopped(agents_run, given["exit_code"])
