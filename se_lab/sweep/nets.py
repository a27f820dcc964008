"""Check that the trials of a sweep can run on this machine, before any is trained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from se_lab.data import DataShape, check_split, data_shapes
from se_lab.spec import ExecSpec, RunSpec, SESpec, SpecError
from se_lab.training.preflight import check_before
from se_lab.units.model import create_model


def check_nets(trials: Sequence[RunSpec], execution: ExecSpec, validation_use: str | None = None) -> list[str]:
    """Build every distinct net on the meta device, and return remarks for the user.

    Args:
        trials: The trials.
        execution: Where and how the trials run.
        validation_use: The part of the sweep that uses validation images, if any.

    Raises:
        SpecError: for the first trial that this machine cannot run, whose net cannot be built, or that lacks the
            validation images it needs.
        DataError: if a data set cannot be used.
    """
    widths: dict[tuple[str, ...], dict[int, tuple[int, ...]]] = {}
    shapes = data_shapes((trial.data for trial in trials), root=execution.data_root)
    checked_keys: set[str] = set()
    for trial in trials:
        check_before(trial, execution)
        data = shapes[trial.data]
        _check_images(trial, data, validation_use)
        key = f"{trial.model} {data.classes} {data.shape[0]}"
        if key in checked_keys:
            continue
        checked_keys.add(key)
        with torch.device("meta"):
            model = create_model(trial.model, data.classes, data.shape[0])
        sites: list[Any] = model.se_sites  # type: ignore[assignment]
        se = trial.model.se
        rest = (
            trial.model.backbone,
            str(dataclasses.replace(se, reduction=SESpec().reduction)),
            str(trial.model.kwargs),
        )
        if se.insertion != "none":
            widths.setdefault(rest, {})[se.reduction] = tuple(site.hidden for site in sites if site.hidden is not None)
    return [remark for (backbone, *_), ratios in widths.items() for remark in _equal_widths(backbone, ratios)]


def _check_images(trial: RunSpec, data: DataShape, validation_use: str | None) -> None:
    if not data.sizes["train"]:
        raise SpecError(f"data.name is {trial.data.name!r}; its training split is empty")
    for needs, what in (
        (trial.optim.schedule == "plateau", "optim.schedule=plateau"),
        (trial.train.select == "best", "train.select=best"),
        (validation_use is not None, validation_use),
    ):
        if needs:
            check_split(trial.data, data.sizes, str(what))


def _equal_widths(backbone: str, hidden: Mapping[int, tuple[int, ...]]) -> Iterator[str]:
    """Yield a remark for each pair of reduction ratios that give a unit the same hidden width."""
    for low, high in itertools.combinations(sorted(hidden), 2):
        matches = [a == b for a, b in zip(hidden[low], hidden[high], strict=True)]
        if any(matches):
            share = sum(matches) / len(matches)
            yield f"{backbone}: r={low} and r={high} give the same hidden width in {share:.0%} of the units"
