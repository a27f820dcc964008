"""Training curves: training and validation metrics by epoch, with those of the baseline."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from se_lab.report.columns import Column, ReportError, column
from se_lab.report.figures.chart import COLORS, Axis, Chart, Panel, Series, span
from se_lab.report.variants import BASELINE, Study
from se_lab.store import read_result

MOST_PANELS = 12
_LONG = 4  # from this number of epochs on, the first tenth, close to chance level, may exceed the axis
_SPLITS = {"val": ("solid", "validation"), "train": ("dash", "training")}


class Curves(NamedTuple):
    """Mean and range over seeds of a metric, by epoch and variant, with variants ranked by it."""

    keys: list[str]
    bands: pd.DataFrame
    ranked: list[int]
    of: Column
    seeds: int
    limits: tuple[float, float]
    cut: bool
    """Whether early epochs exceed the limits."""

    def has(self, variant: int) -> bool:
        """Return whether the variant has epochs."""
        return variant in self.ranked

    def series(self, variant: int, key: str) -> Series:
        """Return a variant's curve with the range over seeds, with markers if there are few epochs."""
        band = self.bands.loc[variant][key].dropna()
        epochs, (mean, low, high) = band.index.to_numpy(dtype=float), band.to_numpy(dtype=float).T
        keys = [(variant, -1)]
        marker = "circle" if len(epochs) < 3 else ""
        dash = _SPLITS[key.split("/")[0]][0]
        hollow = np.full(len(epochs), key.startswith("train/")) if marker else None
        series = Series(epochs, mean, dash=dash, marker=marker, size=4, hollow=hollow, keys=keys)
        if self.seeds < 2:
            return series
        if len(epochs) == 1:  # a band over one epoch has no area
            return replace(series, y_half=np.array([mean - low, high - mean]))
        return replace(series, low=low, high=high)


def curves(study: Study, metric: str) -> Chart:
    """Chart the curves of each variant and its baseline, as in the SE paper's Figure 4.

    Solid lines are `val/METRIC`, dashed ones `train/METRIC`: means over seeds, with a band from the lowest to the
    highest seed. At most twelve variants are shown, the best at the last epoch. Raises ReportError as `read_curves`.
    """
    data = _read(study, metric)
    candidates = [variant for variant in data.ranked if not study.is_baseline[variant]] or data.ranked
    variants = sorted(candidates[:MOST_PANELS])
    base_look = {"color": "#a8a8a8", "width": 2.4}  # a wide, light line, distinct in greyscale too
    x, y = _epochs(data), Axis(data.of.heading, data.limits)
    panels = []
    for variant in variants:
        base = int(study.baseline[variant])
        pairs = [(base, BASELINE, base_look)] if base != variant and data.has(base) else []
        series = [
            replace(data.series(v, key), name=f"{name}, {_SPLITS[key.split('/')[0]][1]}", **look)  # type: ignore[arg-type]
            for v, name, look in [*pairs, (variant, "variant", {"color": COLORS[0], "width": 1.1})]
            for key in data.keys
        ]
        panels.append(Panel(x, y, series, title=study.variants["variant"].iloc[variant]))
    omission = (
        f"; {len(candidates) - len(variants)} worse variants are omitted" if len(candidates) > len(variants) else ""
    )
    return Chart("curves", f"{data.of.label} during training", f"{_note(data)}{omission}.", panels, columns=3)


def read_curves(study: Study, keys: list[str]) -> pd.DataFrame:
    """Read metrics.csv of finished trials: columns variant, seed, epoch and available keys.

    Files with the same header are parsed together, which is ten times faster for thousands of short files. Raises
    ReportError if no trial has a folder, a metrics.csv, or any of the keys.
    """
    trials = study.trials[study.trials["status"] == "finished"]
    if "folder" not in trials:
        raise ReportError("The records have no folders, which contain the epochs; read them from the store.")
    groups: dict[bytes, tuple[io.BytesIO, list[tuple[int, int, int]]]] = {}
    for variant, seed, folder in zip(*(trials[key].tolist() for key in ("variant", "seed", "folder")), strict=True):
        with contextlib.suppress(FileNotFoundError):
            content = read_result(folder, "metrics.csv")
            content += b"" if content.endswith(b"\n") else b"\n"
            start = content.find(b"\n") + 1
            if start == len(content):  # no epochs
                continue
            buffer, files = groups.setdefault(content[:start], (io.BytesIO(), []))
            buffer.write(memoryview(content)[start:] if files else content)
            files.append((variant, seed, content.count(b"\n", start)))
    frames = []
    for buffer, files in groups.values():
        buffer.seek(0)
        frame = pd.read_csv(buffer, usecols=lambda name: name == "epoch" or name in keys, skip_blank_lines=False)
        variants, seeds, lines = zip(*files, strict=True)
        frame = frame.assign(variant=np.repeat(variants, lines), seed=np.repeat(seeds, lines))
        mask = frame["epoch"].notna()
        frames.append(frame if mask.all() else frame[mask].reset_index(drop=True))
    if not frames:
        raise ReportError(f"None of {len(trials)} finished trials has a metrics.csv with an epoch.")
    curves: pd.DataFrame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    if not set(keys) & set(curves):
        raise ReportError(f"The trials' metrics.csv has none of {', '.join(keys)}.")
    return curves


def _read(study: Study, metric: str) -> Curves:
    name = metric.split("/", 1)[-1]
    keys = [f"{split}/{name}" for split in _SPLITS]
    table = read_curves(study, keys)
    table["epoch"] += 1  # count completed epochs, as on the page
    return gather(table, keys)


def gather(table: pd.DataFrame, keys: list[str]) -> Curves:
    """Return the curves of metrics from `read_curves`."""
    keys = [key for key in keys if key in table and table[key].notna().any()]
    bands = table.groupby(["variant", "epoch"])[keys].agg(["mean", "min", "max"])
    final_means = bands[keys[0]]["mean"].groupby("variant").last()
    col = Column("lr", "learning rate", "metric") if keys[0] == "lr" else column(keys[0], table)
    col = replace(col, label=col.label.removeprefix(f"{keys[0].split('/')[0]} "))  # dashes show the split
    variants = final_means.sort_values(ascending=col.better != "higher", kind="stable").index.tolist()
    epochs = bands.index.get_level_values("epoch")
    start = epochs.max() / 10 if epochs.max() >= _LONG else 0
    late_values, early_values = (bands[mask].to_numpy(dtype=float) for mask in (epochs > start, epochs <= start))
    low, high = float(np.nanmin(late_values)), float(np.nanmax(late_values))
    limits = (1.08 * min(low, 0.0), 1.08 * high or 1.0)
    is_cut = bool(early_values.size and np.nanmax(early_values) > limits[1])
    return Curves(keys, bands, variants, col, int(table.groupby("variant")["seed"].nunique().max()), limits, is_cut)


def _epochs(data: Curves) -> Axis:
    epochs = data.bands.index.get_level_values("epoch").to_numpy(dtype=float)
    low, high = span(epochs, margin=0.03) if np.ptp(epochs) else (epochs[0] - 0.5, epochs[0] + 0.5)
    epoch_ticks = sorted(set(epochs)) if np.ptp(epochs) < 6 else None
    return Axis(
        "epoch",
        (low, high),
        ticks=[(epoch, f"{epoch:g}") for epoch in epoch_ticks] if epoch_ticks else None,
        whole=True,
    )


def _note(data: Curves) -> str:
    note = f"Mean and range of {data.seeds} seeds" if data.seeds > 1 else "One seed"
    return note + ("; the first epochs are above the range of the axis" if data.cut else "")
