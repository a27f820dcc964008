"""Changes since the finished trials of a sweep ran that can affect results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from se_lab import store
from se_lab.spec import DataSpec, ExecSpec, RunSpec
from se_lab.spec.text import listed
from se_lab.store import RunRecord

QUICKLY = 50_000
"""Number of images up to which `se-lab status` compares a data set; `sweep`, `train` and `verify --data` always do."""
FLAGS = ("plugins", "callbacks", "data_root", "threads")
"""Fields of ExecSpec that are part of the provenance, or needed to determine it."""


def changes(trials: Sequence[RunSpec], execution: ExecSpec) -> list[str]:
    """Return a line for each difference in provenance between finished trials and a rerun now.

    Images that cannot be read without a network are not compared; see `present_digest`.
    """
    from se_lab.training.preflight import device_model

    device, digests = device_model(execution), dict[DataSpec, str | None]()
    differences: dict[str, list[str]] = {}
    for trial, record in _finished_records(trials, execution.store):
        _compare(trial, record, execution, device, _digest(trial.data, execution.data_root, digests), differences)
    return _lines(differences)


def changes_since(trials: Sequence[RunSpec], store_folder: str) -> list[str]:
    """Return a line for each difference in provenance, without importing PyTorch if possible.

    Threads, data root and plugins are those of the record; device and images of large data sets are not compared.
    """
    digests: dict[DataSpec, str | None] = {}
    differences: dict[str, list[str]] = {}
    for trial, record in _finished_records(trials, store_folder):
        flags = {key: record.execution[key] for key in FLAGS if key in record.execution}
        execution = dataclasses.replace(ExecSpec(), **flags)
        is_small = trial.data.name != "digits" and sum(record.data.get("images", {}).values()) <= QUICKLY
        images = _digest(trial.data, execution.data_root, digests) if is_small and record.data.get("digest") else None
        _compare(trial, record, execution, None, images, differences)
    return _lines(differences)


def _finished_records(trials: Sequence[RunSpec], folder: str) -> list[tuple[RunSpec, RunRecord]]:
    records = [(trial, store.read_record(store.trial_folder(folder, trial.trial_id))) for trial in trials]
    return [(trial, record) for trial, record in records if record is not None and record.status == "finished"]


def _digest(data: DataSpec, root: str, cache: dict[DataSpec, str | None]) -> str | None:
    from se_lab.data import present_digest

    if data not in cache:
        cache[data] = present_digest(data, root=root)
    return cache[data]


def _compare(
    trial: RunSpec,
    record: RunRecord,
    execution: ExecSpec,
    device: str | None,
    images: str | None,
    differences: dict[str, list[str]],
) -> None:
    digests = {"images": record.data["digest"]} if record.data.get("digest") else {}
    provenance = store.current_provenance(trial, execution, images=images, device=device)
    for difference in store.differences(digests | record.provenance, provenance):
        differences.setdefault(difference, []).append(trial.trial_id)


def _lines(differences: dict[str, list[str]]) -> list[str]:
    return [f"of finished trials, {difference}: trials {listed(ids, 5)}" for difference, ids in differences.items()]
