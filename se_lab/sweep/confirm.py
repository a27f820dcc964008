"""Confirm the best variants of a sweep with fresh seeds, to avoid selection bias.

`--confirm` selects variants by validation error, trains them and the baselines with seeds that the sweep did not have,
and records the selection in the store:

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
    """The variants selected from a sweep, and the fresh trials that confirm them."""

    sweep: str
    chosen: list[str]
    """Ids of the sweep's trials of the selected variants."""
    trials: list[dict[str, object]]
    """Flat specs of the fresh trials."""


def choose(sweep: Sweep, store_folder: str, count: int, seeds: int) -> Confirmation:
    """Select the best `count` variants of a finished sweep by validation error.

    Baselines (insertion none) are not selected, but get fresh trials too, for comparison.

    Raises:
        SpecError: if a trial has not ended, or no variant has a validation error.
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
        raise SpecError(f"no variant of {sweep.name} has {METRIC} for all its seeds; set data.val_fraction above 0")
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
    """Return the mean validation error of a variant, or None if a seed has none."""
    errors = []
    for trial in trials:
        record = store.read_record(store.trial_folder(store_folder, trial.trial_id))
        if record is None:
            raise SpecError(f"trial {trial.trial_id} has not ended; run the sweep before --confirm")
        errors.append(record.metrics.get(METRIC) if record.status == "finished" else None)
    values = [error for error in errors if error is not None]
    return mean(values) if len(values) == len(errors) else None


def fresh_trials(confirmation: Confirmation) -> list[RunSpec]:
    """Return the fresh trials of a confirmation."""
    return [run_spec({k: v for k, v in flat.items() if v is not None}) for flat in confirmation.trials]


def note(confirmation: Confirmation, sweep: Sweep, store_folder: str) -> None:
    """Record a confirmation in the store, before its trials run."""
    store.write_sealed(note_path(NOTES, sweep.trials, store_folder), asdict(confirmation))


def confirmation_of(trials: Sequence[RunSpec], store_folder: str | Path) -> Confirmation | None:
    """Return the confirmation of the sweep with these trials, or None if there is none."""
    path = note_path(NOTES, trials, store_folder)
    try:
        return Confirmation(**store.read_sealed(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise SpecError(f"{path} is not a valid record of confirmed variants: {error}") from None
