"""The training curves of a page: what each trial logged by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from se_lab.report.columns import column
from se_lab.report.figures.curves import read_curves
from se_lab.report.variants import Study
from se_lab.store import RunRecord

MOST_NUMBERS = 400_000
"""Of more, the variants that end worst are left out."""


def curve_data(study: Study, metric: str, kept: Sequence[RunRecord | None]) -> dict[str, Any] | None:
    """Return errors, losses and learning rates by epoch and, from images a second, by time. None where none is kept.

    `order` has the variants from the one that ends best, the baselines first.
    """
    name = metric.split("/", 1)[-1]
    wanted = [[f"{split}/{name}" for split in ("val", "train")], ["val/loss", "train/loss"], ["lr"]]
    try:
        table = read_curves(study, [*dict.fromkeys(key for keys in wanted for key in keys), "images_per_s"])
    except (ValueError, FileNotFoundError):
        return None
    quantities = [[key for key in keys if key in table and table[key].notna().any()] for keys in wanted]
    quantities = [keys for n, keys in enumerate(quantities) if keys and keys not in quantities[:n]]
    if not quantities:
        return None
    main = quantities[0][0]
    last = table.groupby("variant")[main].last()
    ranked = last.sort_values(ascending=column(main, table).better != "higher", kind="stable").index.to_numpy()
    ranked = np.concatenate([ranked[study.is_baseline[ranked]], ranked[~study.is_baseline[ranked]]])
    keys = [key for group in quantities for key in group]
    lengths = table.groupby("variant").size()[ranked].to_numpy() * len(keys)
    order = ranked[np.cumsum(lengths) <= MOST_NUMBERS]
    places = {pair: n for n, pair in enumerate(zip(study.trials["variant"], study.trials["seed"], strict=True))}
    trials = []
    for (variant, seed), rows in table[table["variant"].isin(order)].groupby(["variant", "seed"]):
        place = places[variant, seed]
        values = {key: _rounded(rows[key]) for key in keys if rows[key].notna().any()}
        trials.append({"variant": int(variant), "trial": place, "epoch": (rows["epoch"].astype(int) + 1).tolist(),
                       "seconds": _seconds(rows, kept[place]), "values": values})  # fmt: skip
    return {
        "quantities": [{"keys": keys, "heading": _heading(keys[0], table)} for keys in quantities],
        "order": order.tolist(),
        "trials": trials,
        "has_time": all(trial["seconds"] for trial in trials),
    }


def _heading(key: str, table: pd.DataFrame) -> str:
    return "learning rate" if key == "lr" else column(key, table).heading.removeprefix("val ")


def _seconds(rows: pd.DataFrame, record: RunRecord | None) -> list[float | None] | None:
    """Return the seconds of training up to the end of each epoch, None where they are not known."""
    images = (record.data.get("images") or {}).get("train") if record is not None else None
    if not images or "images_per_s" not in rows or not (rows["images_per_s"] > 0).all():
        return None
    return _rounded((images / rows["images_per_s"]).cumsum())


def _rounded(values: pd.Series) -> list[float | None]:
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.to_numpy(dtype=float)]
