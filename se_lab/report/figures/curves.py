"""Training curves: a metric by epoch in training and validation, each variant beside its baseline."""

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
from se_lab.store import read_bytes

MOST_PANELS = 12
_LONG = 4  # epochs from which the first tenth, which falls from chance level, may lie above the axis
_SPLITS = {"val": ("solid", "validation"), "train": ("dash", "training")}


class Curves(NamedTuple):
    """A metric by epoch: mean, lowest and highest seed of each variant, and the variants from best to worst."""

    keys: list[str]
    bands: pd.DataFrame
    ranked: list[int]
    of: Column
    seeds: int
    limits: tuple[float, float]
    cut: bool
    """Early epochs lie above the limits."""

    def has(self, variant: int) -> bool:
        """Whether the variant has epochs."""
        return variant in self.ranked

    def series(self, variant: int, key: str) -> Series:
        """Return a variant's curve with the band of its seeds; few epochs are points."""
        band = self.bands.loc[variant][key].dropna()
        epochs, (mean, low, high) = band.index.to_numpy(dtype=float), band.to_numpy(dtype=float).T
        keys = [(variant, -1)]
        marker = "circle" if len(epochs) < 3 else ""
        dash = _SPLITS[key.split("/")[0]][0]
        several = self.seeds > 1
        return Series(
            epochs, mean, dash=dash, marker=marker, size=4, keys=keys,
            low=low if several else None, high=high if several else None,
        )  # fmt: skip


def curves(study: Study, metric: str) -> Chart:
    """Chart a panel a variant, its curves over those of its baseline, as the SE paper's Figure 4.

    Solid is `val/METRIC`, dashed `train/METRIC` (`test/loss` stands for `loss`); a line is the mean over seeds, its
    band reaches from the lowest to the highest seed. Of more than twelve variants, those that end best. Raises as
    `read_curves`.
    """
    read = _read(study, metric)
    every = [variant for variant in read.ranked if not study.is_baseline[variant]] or read.ranked
    variants = sorted(every[:MOST_PANELS])
    base_look = {"color": "#a8a8a8", "width": 2.4}  # apart in grey as well: light and wide below, dark and narrow above
    x, y = _epochs(read), Axis(read.of.heading, read.limits)
    panels = []
    for variant in variants:
        base = int(study.baseline[variant])
        pairs = [(base, BASELINE, base_look)] if base != variant and read.has(base) else []
        series = [
            replace(read.series(v, key), name=f"{name}, {_SPLITS[key.split('/')[0]][1]}", **look)  # type: ignore[arg-type]
            for v, name, look in [*pairs, (variant, "variant", {"color": COLORS[0], "width": 1.1})]
            for key in read.keys
        ]
        panels.append(Panel(x, y, series, title=study.variants["variant"].iloc[variant]))
    left_out = f"; {len(every) - len(variants)} variants that end worse left out" if len(every) > len(variants) else ""
    return Chart("curves", f"{read.of.label} during training", f"{_note(read)}{left_out}.", panels, columns=3)


def read_curves(study: Study, keys: list[str]) -> pd.DataFrame:
    """Read metrics.csv of the finished trials: columns variant, seed, epoch and those of `keys` that are there.

    Files with the same heading are parsed as one, which for thousands of short ones takes a tenth of the time.
    Raises ReportError where no trial has a folder, a metrics.csv or any of the keys.
    """
    finished = study.trials[study.trials["status"] == "finished"]
    if "folder" not in finished:
        raise ReportError("These records name no folders, where the epochs of a trial are kept: read the store itself.")
    alike: dict[bytes, tuple[io.BytesIO, list[tuple[int, int, int]]]] = {}
    for variant, seed, folder in zip(*(finished[key].tolist() for key in ("variant", "seed", "folder")), strict=True):
        with contextlib.suppress(FileNotFoundError):
            content = read_bytes(f"{folder}/metrics.csv")
            content += b"" if content.endswith(b"\n") else b"\n"
            start = content.find(b"\n") + 1
            if start == len(content):  # no epoch
                continue
            whole, files = alike.setdefault(content[:start], (io.BytesIO(), []))
            whole.write(memoryview(content)[start:] if files else content)
            files.append((variant, seed, content.count(b"\n", start)))
    frames = []
    for whole, files in alike.values():
        whole.seek(0)
        frame = pd.read_csv(whole, usecols=lambda name: name == "epoch" or name in keys, skip_blank_lines=False)
        variants, seeds, lines = zip(*files, strict=True)
        frame = frame.assign(variant=np.repeat(variants, lines), seed=np.repeat(seeds, lines))
        there = frame["epoch"].notna()
        frames.append(frame if there.all() else frame[there].reset_index(drop=True))
    if not frames:
        raise ReportError(f"None of the {len(finished)} finished trials has a metrics.csv with an epoch in its folder.")
    curves: pd.DataFrame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    if not set(keys) & set(curves):
        raise ReportError(f"The trials' metrics.csv has none of {', '.join(keys)}.")
    return curves


def _read(study: Study, metric: str) -> Curves:
    name = metric.split("/", 1)[-1]
    keys = [f"{split}/{name}" for split in _SPLITS]
    table = read_curves(study, keys)
    table["epoch"] += 1  # epochs that were trained, as on the page
    return gather(table, keys)


def gather(table: pd.DataFrame, keys: list[str]) -> Curves:
    """Return the curves of metrics that `read_curves` has read, for the image and for the page."""
    keys = [key for key in keys if key in table and table[key].notna().any()]
    bands = table.groupby(["variant", "epoch"])[keys].agg(["mean", "min", "max"])
    last = bands[keys[0]]["mean"].groupby("variant").last()
    of = Column("lr", "learning rate", "metric") if keys[0] == "lr" else column(keys[0], table)
    of = replace(of, label=of.label.removeprefix(f"{keys[0].split('/')[0]} "))  # which the dashes tell
    ranked = last.sort_values(ascending=of.better != "higher", kind="stable").index.tolist()
    epochs = bands.index.get_level_values("epoch")
    start = epochs.max() / 10 if epochs.max() >= _LONG else 0
    settled, early = (bands[chosen].to_numpy(dtype=float) for chosen in (epochs > start, epochs <= start))
    low, high = float(np.nanmin(settled)), float(np.nanmax(settled))
    limits = (1.08 * min(low, 0.0), 1.08 * high or 1.0)
    cut = bool(early.size and np.nanmax(early) > limits[1])
    return Curves(keys, bands, ranked, of, int(table.groupby("variant")["seed"].nunique().max()), limits, cut)


def _epochs(read: Curves) -> Axis:
    epochs = read.bands.index.get_level_values("epoch").to_numpy(dtype=float)
    low, high = span(epochs, margin=0.03) if np.ptp(epochs) else (epochs[0] - 0.5, epochs[0] + 0.5)
    few = sorted(set(epochs)) if np.ptp(epochs) < 6 else None
    return Axis("epoch", (low, high), ticks=[(epoch, f"{epoch:g}") for epoch in few] if few else None, whole=True)


def _note(read: Curves) -> str:
    note = f"Mean and range of {read.seeds} seeds" if read.seeds > 1 else "One seed"
    return note + ("; the first epochs lie above the axis" if read.cut else "")
