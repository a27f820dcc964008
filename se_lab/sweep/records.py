"""Read records from a sweep spec, a store, a project or sweep of W&B, or several of these."""

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
"""Before the path of a sweep spec: the fresh trials of its best variants."""


def load_records(
    source: str | Path | Sequence[str | Path], store_folder: str | Path | None = None, *, sweep_seed: int = 0
) -> pd.DataFrame:
    """Read trials into a table, one row a trial; see `store.read_records` for its columns.

    Args:
        source: A sweep spec (its trials, in its order, found in the store; one that has not run has its spec and the
            status not started), confirm:FILE (the fresh trials that confirm a spec's best variants), a store,
            wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/SWEEP, or several of these. Where the best variants of a spec
            were confirmed, the column `chosen` tells which trials they were chosen by; where seeds were added to a
            spec, its trials have them, and the column `look_level` is the error rate of their table's intervals.
        store_folder: The store that specs are looked up in; by default the variable SE_LAB_STORE, else runs/.
        sweep_seed: Of specs whose search is random or bayes.

    Raises:
        SpecError: for a spec that cannot be read.
        FileNotFoundError: for a store or a W&B project that does not exist or holds no trial.

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
        from se_lab.sweep.wandb import read_wandb

        return read_wandb(str(source).removeprefix("wandb:"))
    confirmed = str(source).startswith(CONFIRM)
    path = find_sweep(str(source).removeprefix(CONFIRM))
    if not confirmed and path.suffix not in (".yaml", ".yml"):
        return store.read_records(path)
    trials = read_sweep(path, seed=sweep_seed, store_folder=store_folder).trials
    confirmation = confirmation_of(trials, store_folder)
    if confirmed:
        if confirmation is None:
            raise SpecError(f"{path}: nothing of it was confirmed in {store_folder}; se-lab sweep --confirm does that")
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
