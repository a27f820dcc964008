"""Whether the images of a sweep are still those that its finished trials were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from se_lab import store
from se_lab.data import present_digest
from se_lab.spec import DataSpec, ExecSpec, RunSpec


def other_images(trials: Sequence[RunSpec], execution: ExecSpec) -> list[str]:
    """Return a line for each set of images that differs from the one that finished trials were trained on.

    Images that cannot be read without a network are not compared: see `present_digest`.
    """
    digests: dict[DataSpec, str | None] = {}
    found: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        record = store.read_record(store.trial_folder(execution.store, trial.trial_id))
        if record is None or record.status != "finished":
            continue
        if trial.data not in digests:
            digests[trial.data] = present_digest(trial.data, root=execution.data_root)
        before, now = record.data.get("digest"), digests[trial.data]
        if before is not None and now not in (None, before):
            found.setdefault((before, str(now)), []).append(trial.trial_id)
    return [
        f"finished with other images (digest {before}) than are there now ({now}): trials {', '.join(ids)}"
        for (before, now), ids in found.items()
    ]
