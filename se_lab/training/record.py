"""The record of a trial that is about to run: what it is, what it costs, where and with what it runs."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import socket
import subprocess
from typing import Any

import torch

from se_lab.data import ImageData
from se_lab.spec import ExecSpec, RunSpec
from se_lab.spec.flags import recipe_changes
from se_lab.store import RunRecord
from se_lab.training.task import ClassificationTask
from se_lab.units.costs import profile


def new_record(spec: RunSpec, execution: ExecSpec, data: ImageData, task: ClassificationTask) -> RunRecord:
    """Return the record of a trial that has not been run: what is missing is how it went."""
    costs = profile(task.model, (data.in_chans, data.image_size, data.image_size))
    sites = [dataclasses.asdict(site) for site in task.model.se_sites]  # type: ignore[union-attr]
    return RunRecord(
        trial_id=spec.trial_id,
        status="failed",
        spec=spec.flat(),
        execution=dataclasses.asdict(execution),
        recipe=recipe_changes(execution.recipe, spec),
        sites=sites,
        complexity={key: value for key, value in dataclasses.asdict(costs).items() if key != "by_module"},
        data={"digest": data.digest, "images": data.sizes, "classes": len(data.classes)},
        versions=_versions(),
        git=_git_state(),
        host={"name": socket.gethostname(), "platform": platform.platform(), "device": _device_name(spec, execution)},
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    packages = ("se-lab", "torch", "torchvision", "lightning", "timm", "wandb", "fvcore", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the folder the trial was started in, and whether it had changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(spec: RunSpec, execution: ExecSpec) -> str:
    name = f"{platform.processor() or platform.machine()}, {execution.threads} thread(s)"
    if execution.device in ("auto", "cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return name if spec.train.ranks == 1 else f"{spec.train.ranks} × {name}"
