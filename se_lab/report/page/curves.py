"""Data of the training curves of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report.figures.curves import Curves, gather, read_curves
from se_lab.report.variants import Study
from se_lab.store import RunRecord

MOST_NUMBERS = 400_000
"""Maximum number of values on a page; beyond it, the worst variants are omitted."""


def curve_data(study: Study, metric: str, records: Sequence[RunRecord | None]) -> dict[str, Any] | None:
    """Return errors, losses and learning rates by epoch and time, or None if there are none.

    `order` lists the variants from best to worst, baselines first. Times are computed from images per second.
    """
    name = metric.split("/", 1)[-1]
    key_groups = [[f"{split}/{name}" for split in ("val", "train")], ["val/loss", "train/loss"], ["lr"]]
    try:
        table = read_curves(study, [*dict.fromkeys(key for keys in key_groups for key in keys), "images_per_s"])
    except (ValueError, FileNotFoundError):
        return None
    table["epoch"] += 1  # count completed epochs, as in the image
    groups = [[key for key in keys if key in table and table[key].notna().any()] for keys in key_groups]
    quantities = [gather(table, keys) for n, keys in enumerate(groups) if keys and keys not in groups[:n]]
    if not quantities:
        return None
    ranking = np.array(quantities[0].ranked)
    ranking = np.concatenate([ranking[study.is_baseline[ranking]], ranking[~study.is_baseline[ranking]]])
    keys = [key for quantity in quantities for key in quantity.keys]
    lengths = table.groupby("variant").size()[ranking].to_numpy() * len(keys)
    order = ranking[np.cumsum(lengths) <= MOST_NUMBERS]
    places = {pair: n for n, pair in enumerate(zip(study.trials["variant"], study.trials["seed"], strict=True))}
    trials = []
    for (variant, seed), rows in table[table["variant"].isin(order)].groupby(["variant", "seed"]):
        place = places[variant, seed]
        values = {key: _round(rows[key]) for key in keys if rows[key].notna().any()}
        trials.append({"variant": int(variant), "trial": place, "epoch": rows["epoch"].astype(int).tolist(),
                       "seconds": _seconds(rows, records[place]), "values": values})  # fmt: skip
    return {
        "quantities": [
            {
                "keys": quantity.keys,
                "heading": quantity.of.heading,
                "limits": quantity.limits,
                "bands": _bands(quantity, order),
            }
            for quantity in quantities
        ],
        "order": order.tolist(),
        "trials": trials,
        "has_time": all(trial["seconds"] for trial in trials),
    }


def _bands(curves: Curves, order: NDArray[np.intp]) -> dict[int, dict[str, list[list[float | None]]]]:
    """Return epochs, means, minima and maxima over seeds, by variant and metric."""
    answer: dict[int, dict[str, list[list[float | None]]]] = {}
    for variant in order.tolist():
        if not curves.has(variant):
            continue
        for key in curves.keys:
            band = curves.bands.loc[variant][key].dropna()
            columns = [band.index.to_series(), *(band[name] for name in ("mean", "min", "max"))]
            answer.setdefault(variant, {})[key] = [_round(column) for column in columns]
    return answer


def _seconds(rows: pd.DataFrame, record: RunRecord | None) -> list[float | None] | None:
    """Return the training time at the end of each epoch in seconds, or None if unknown."""
    images = (record.data.get("images") or {}).get("train") if record is not None else None
    if not images or "images_per_s" not in rows or not (rows["images_per_s"] > 0).all():
        return None
    return _round((images / rows["images_per_s"]).cumsum())


def _round(values: pd.Series) -> list[float | None]:
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.to_numpy(dtype=float)]
