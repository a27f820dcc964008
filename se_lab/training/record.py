"""Create the record of a trial before it runs."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import socket

from se_lab import store
from se_lab.spec.flags import recipe_changes
from se_lab.store import RunRecord
from se_lab.training.preflight import device_model
from se_lab.training.task import ClassificationTask
from se_lab.training.trial import Trial
from se_lab.units.costs import profile


def new_record(trial: Trial, task: ClassificationTask) -> RunRecord:
    """Return the record of a starting trial, without results."""
    spec, execution, data = trial.spec, trial.execution, trial.data
    costs = dataclasses.asdict(profile(task.model, trial.shape))
    sites = [dataclasses.asdict(site) for site in task.model.se_sites]  # type: ignore[union-attr]
    return RunRecord(
        trial_id=spec.trial_id,
        status="running",
        spec=spec.flat(),
        execution=dataclasses.asdict(execution),
        recipe=recipe_changes(execution.recipe, spec),
        sites=sites,
        complexity={key: value for key, value in costs.items() if key != "by_module"},
        data={"digest": data.digest, "images": data.sizes, "classes": len(data.classes)},
        provenance=store.current_provenance(spec, execution, images=data.digest, device=device_model(execution)),
        host={"name": socket.gethostname(), "platform": platform.platform()},
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
