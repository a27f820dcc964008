"""Confirm the best variants of a sweep with fresh seeds: the trials that chose a variant do not measure it fairly.

The best of many variants owes part of its rank to luck. `--confirm` chooses by validation error, trains the chosen
variants and the baselines with seeds that the sweep did not have, and notes in the store which rows were chosen:

<store>/.confirmed/<hash of the sweep's trials>.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from se_lab import store
from se_lab.spec import RunSpec, SpecError, run_spec
from se_lab.sweep.grammar import Sweep
from se_lab.sweep.seeds import by_variant, note_path

METRIC = "val/top1_error"
NOTES = ".confirmed"
FIRST_SEED = 1000
"""Fresh seeds start here, or after the sweep's own."""


@dataclass(frozen=True)
class Confirmation:
    """What was chosen from a sweep by looking at its trials, and the fresh trials that confirm it."""

    sweep: str
    chosen: list[str]
    """Ids of the sweep's trials that belong to the chosen variants."""
    trials: list[dict[str, object]]
    """The fresh trials, flat."""


def choose(sweep: Sweep, store_folder: str, count: int, seeds: int) -> Confirmation:
    """Return the best `count` variants of a finished sweep by validation error, and their trials with fresh seeds.

    The baselines (insertion none) are not chosen; their fresh trials are added for comparison.

    Raises:
        SpecError: if a trial is not over, or none has a validation error.
    """
    if count < 1 or seeds < 1:
        raise SpecError(f"--confirm is {count} and --seeds {seeds}; both must be at least 1")
    variants = by_variant(sweep.trials)
    baselines = [variant for variant in variants if variant[0].model.se.insertion == "none"]
    errors = [
        (_validation_error(variant, store_folder), variant)
        for variant in variants
        if variant not in baselines or baselines == variants
    ]
    ranking = sorted((pair for pair in errors if pair[0] is not None), key=lambda pair: pair[0] or 0.0)
    if not ranking:
        raise SpecError(f"no variant of {sweep.name} has {METRIC} for all of its seeds: hold out data.val_fraction")
    best = [variant for _, variant in ranking[:count]]
    first_seed = max(FIRST_SEED, 1 + max(trial.seed for trial in sweep.trials))
    selection = [variant for variant in baselines if variant not in best] + best
    trials = [
        dataclasses.replace(variant[0], seed=seed)
        for variant in selection
        for seed in range(first_seed, first_seed + seeds)
    ]
    ids = [trial.trial_id for variant in best for trial in variant]
    return Confirmation(sweep.name, ids, [trial.flat() for trial in trials])


def _validation_error(trials: Sequence[RunSpec], store_folder: str) -> float | None:
    """Return the mean validation error of a variant; None if a seed has none."""
    errors = []
    for trial in trials:
        record = store.read_record(store.trial_folder(store_folder, trial.trial_id))
        if record is None:
            raise SpecError(f"{trial.trial_id} is not over: run the sweep before its best variants are confirmed")
        errors.append(record.metrics.get(METRIC) if record.status == "finished" else None)
    values = [error for error in errors if error is not None]
    return mean(values) if len(values) == len(errors) else None


def fresh_trials(confirmation: Confirmation) -> list[RunSpec]:
    """Return the trials of a confirmation."""
    return [run_spec({k: v for k, v in flat.items() if v is not None}) for flat in confirmation.trials]


def note(confirmation: Confirmation, sweep: Sweep, store_folder: str) -> None:
    """Write a confirmation down in the store, before its trials run."""
    store.write_sealed(note_path(NOTES, sweep.trials, store_folder), asdict(confirmation))


def confirmation_of(trials: Sequence[RunSpec], store_folder: str | Path) -> Confirmation | None:
    """Return the confirmation of a sweep with these trials, if its best variants were chosen."""
    path = note_path(NOTES, trials, store_folder)
    try:
        return Confirmation(**store.read_sealed(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise SpecError(f"{path} is no note of confirmed variants: {error}") from None
