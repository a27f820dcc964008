"""Training curves: error by epoch in training and validation, each variant against its baseline."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import pandas as pd

from se_lab.report.columns import ReportError, column
from se_lab.report.figures.canvas import canvas
from se_lab.report.variants import BASELINE, Study, group_variants
from se_lab.store import read_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 12
_DASHES: dict[str, Literal["-", "--"]] = {"val": "-", "train": "--"}


class _Line(TypedDict):
    color: str
    linewidth: float


# Apart in grey as well: light and wide below, dark and narrow above.
_BASE: _Line = {"color": "0.68", "linewidth": 2.2}
_VARIANT: _Line = {"color": "#0072B2", "linewidth": 1.1}


def read_curves(study: Study, keys: list[str]) -> pd.DataFrame:
    """Read metrics.csv of the finished trials: columns variant, seed, epoch and those of `keys` that are there.

    Files with the same heading are parsed as one, which for thousands of short ones takes a tenth of the time.

    Raises FileNotFoundError where no trial has a metrics.csv, ReportError where none has any of the keys or a folder.
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
        raise FileNotFoundError(
            f"None of the {len(finished)} finished trials has a metrics.csv with an epoch in its folder."
        )
    curves: pd.DataFrame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    if not set(keys) & set(curves):
        raise ReportError(f"The trials' metrics.csv has none of {', '.join(keys)}.")
    return curves


def training_figure(
    records: pd.DataFrame, metric: str = "top1_error", *, where: Mapping[str, object] | None = None
) -> Figure:
    """Draw a panel a variant, its curves over those of its baseline, as the SE paper's Figure 4.

    Solid is `val/METRIC`, dashed `train/METRIC`; a line is the mean over seeds, its band reaches from the lowest to
    the highest seed. Of more than twelve variants, those that end best. Raises as `read_curves`.
    """
    study = group_variants(records, where=where)
    keys = [f"{split}/{metric}" for split in ("val", "train")]
    curves = read_curves(study, keys)
    keys = [key for key in keys if key in curves and curves[key].notna().any()]
    bands = curves.groupby(["variant", "epoch"])[keys].agg(["mean", "min", "max"])
    panels = np.array([v for v in bands.index.unique("variant") if not study.is_baseline[v]], dtype=int)
    if not len(panels):
        panels = np.array(bands.index.unique("variant"), dtype=int)
    total = len(panels)
    last = bands[keys[0]]["mean"].groupby("variant").last()
    best = column(keys[0], curves).better == "higher"
    panels = np.sort(last[panels].sort_values(ascending=not best, kind="stable").index[:_MOST_PANELS].to_numpy())

    across = min(len(panels), 3 if len(panels) != 4 else 2)
    down = -(-len(panels) // across)
    with canvas(2.4 + 2.1 * across, 1.2 + 1.9 * down, down, across) as (figure, grid):
        against = False
        for axes, variant in zip(grid, panels, strict=False):
            base = int(study.baseline[variant])
            if base != variant and base in bands.index.unique("variant"):
                _draw(axes, bands.loc[base], keys, **_BASE)
                against = True
            _draw(axes, bands.loc[variant], keys, **_VARIANT)
            axes.set_title(study.variants["variant"].iloc[variant])
        # The first tenth falls from chance level: to show it would flatten all that follows.
        settled = bands[bands.index.get_level_values("epoch") >= curves["epoch"].max() / 10]
        grid[0].locator_params(axis="x", integer=True)
        grid[0].set_ylim(0, 1.05 * float(settled.to_numpy().max()) or 1.0)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for place, axes in enumerate(grid[: len(panels)]):
            axes.tick_params(labelbottom=place + across >= len(panels), labelleft=place % across == 0)
            if place + across >= len(panels):
                axes.set_xlabel("epoch")
        label = column(keys[0], curves).heading.removeprefix("val ")
        for axes in grid[::across]:
            axes.set_ylabel(label)
        seeds = curves.groupby("variant")["seed"].nunique()
        several = f"Mean and range of {seeds.max()} seeds" if seeds.max() > 1 else "One seed"
        left_out = f"; {total - len(panels)} variants that end worse left out" if total > len(panels) else ""
        figure.suptitle(several + left_out, fontsize=9, x=0.01, ha="left")
        _legend(figure, keys, against=against)
    return figure


def _draw(axes: Axes, bands: Any, keys: list[str], color: str, linewidth: float) -> None:
    """Draw one variant's curves: a line for the mean over the seeds, a band for their range."""
    epoch = bands.index.to_numpy()
    for key in keys:
        axes.plot(epoch, bands[key]["mean"], _DASHES[key.split("/")[0]], color=color, linewidth=linewidth)
        axes.fill_between(epoch, bands[key]["min"], bands[key]["max"], color=color, alpha=0.25, linewidth=0)


def _legend(figure: Figure, keys: list[str], *, against: bool) -> None:
    from matplotlib.lines import Line2D

    words = {"val": "validation", "train": "training"}
    handles = [
        Line2D([], [], linestyle=_DASHES[split], label=f"{name}, {words[split]}", **style)
        for name, style in ((BASELINE, _BASE), ("variant", _VARIANT))
        if against or style is _VARIANT
        for split in (key.split("/")[0] for key in keys)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
