"""Read the records of a sweep spec, a store, or a W&B project or sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from se_lab import store
from se_lab.spec import ExecSpec, SpecError, find_sweep
from se_lab.sweep.confirm import confirmation_of, fresh_trials
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.seeds import growth_of, with_seeds

CONFIRM = "confirm:"
"""Prefix of a sweep spec's path that selects the fresh trials of its best variants."""


def load_records(
    source: str | Path | Sequence[str | Path], store_folder: str | Path | None = None, *, sweep_seed: int = 0
) -> pd.DataFrame:
    """Read trials into a DataFrame, one row each, with the columns of `store.read_records`.

    Args:
        source: A sweep spec (its trials in the store, in the order of the spec, including those not started),
            confirm:FILE (the fresh trials that confirm a spec's best variants), a store, wandb:ENTITY/PROJECT,
            wandb:ENTITY/PROJECT/SWEEP, or several of these. If the best variants of a spec were confirmed, the column
            `chosen` marks the trials of the selected variants. If seeds were added to a spec, their trials are
            included, and the column `look_level` is the error rate of the intervals.
        store_folder: The store of the specs' trials; by default the environment variable SE_LAB_STORE, else runs/.
        sweep_seed: Seed of a random or bayes search.

    Raises:
        SpecError: if a spec cannot be read.
        FileNotFoundError: if a store or W&B project does not exist or contains no trial.

    Examples:
        >>> records = load_records("sweeps/demo.yaml")
        >>> records["status"].unique().tolist()
        ['finished']
    """
    sources = [source] if isinstance(source, (str, Path)) else source
    frames = [_load(item, store_folder or ExecSpec().store, sweep_seed) for item in sources]
    records: pd.DataFrame = pd.concat(frames, ignore_index=True).drop_duplicates("trial_id", ignore_index=True)
    return records


def _load(source: str | Path, store_folder: str | Path, sweep_seed: int) -> pd.DataFrame:
    if str(source).startswith("wandb:"):
        from se_lab.sweep.wandb_records import read_wandb

        return read_wandb(str(source).removeprefix("wandb:"))
    confirmed = str(source).startswith(CONFIRM)
    path = find_sweep(str(source).removeprefix(CONFIRM))
    if not confirmed and path.suffix not in (".yaml", ".yml"):
        return store.read_records(path)
    trials = read_sweep(path, seed=sweep_seed, store_folder=store_folder).trials
    confirmation = confirmation_of(trials, store_folder)
    if confirmed:
        if confirmation is None:
            raise SpecError(f"{path} has no confirmed variants in {store_folder}; run se-lab sweep FILE --confirm")
        trials = fresh_trials(confirmation)
    growth = None if confirmed else growth_of(trials, store_folder)
    if growth is not None:
        trials = with_seeds(trials, growth.looks[-1].seeds)
    records = store.read_records(store_folder, {trial.trial_id: trial.flat() for trial in trials})
    if growth is not None:
        records["look_level"] = growth.looks[-1].level
    if confirmation is not None and not confirmed:
        records["chosen"] = records["trial_id"].isin(confirmation.chosen)
    return records
