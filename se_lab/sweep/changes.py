"""What has changed since the finished trials of a sweep ran that could change their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from se_lab import store
from se_lab.data import present_digest
from se_lab.spec import DataSpec, ExecSpec, RunSpec
from se_lab.training.preflight import device_model


def changes(trials: Sequence[RunSpec], execution: ExecSpec) -> list[str]:
    """Return a line for each difference between the provenance of finished trials and today's.

    Images that cannot be read without a network are not compared: see `present_digest`.
    """
    digests: dict[DataSpec, str | None] = {}
    found: dict[str, list[str]] = {}
    for trial in trials:
        record = store.read_record(store.trial_folder(execution.store, trial.trial_id))
        if record is None or record.status != "finished":
            continue
        if trial.data not in digests:
            digests[trial.data] = present_digest(trial.data, root=execution.data_root)
        before = {"images": record.data["digest"]} if record.data.get("digest") else {}
        now = store.current_provenance(trial, execution, images=digests[trial.data], device=device_model(execution))
        for difference in store.differences(before | record.provenance, now):
            found.setdefault(difference, []).append(trial.trial_id)
    return [f"of finished trials, {difference}: {_some(ids)}" for difference, ids in found.items()]


def _some(ids: Sequence[str]) -> str:
    return f"trials {', '.join(ids[:5])}{f' and {len(ids) - 5} more' if len(ids) > 5 else ''}"
