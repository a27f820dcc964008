"""The record of a trial that is about to run: what it is, what it costs, where and with what it runs."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import socket

from se_lab import store
from se_lab.data import ImageData
from se_lab.spec import ExecSpec, RunSpec
from se_lab.spec.flags import recipe_changes
from se_lab.store import RunRecord
from se_lab.training.preflight import device_model
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
        provenance=store.current_provenance(spec, execution, images=data.digest, device=device_model(execution)),
        host={"name": socket.gethostname(), "platform": platform.platform()},
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
