"""Where each timm family's units, branches and shortcuts are. Data: insertion.py holds the surgery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Point:
    """One place for an SE unit inside a block."""

    host: str
    """The attribute of the block that the unit hangs on."""
    channels: str
    """The attribute path, from the block, of the number of channels there."""
    how: Literal["slot", "input", "output", "shortcut"]
    """slot: the host attribute is the family's own place for attention, None when empty; input, output: the unit
    becomes a child of the host and scales what goes into or comes out of it; shortcut: likewise on the output of the
    projection, which is None where the shortcut is the identity."""


Layout = dict[str, Point]
"""The points of one class of block, by insertion."""


def _residual(last: int, wide: int | None = None) -> Layout:
    """Return the layout of timm's ResNet blocks: `last` convolutions, the `wide`-th of them the 3×3 of a bottleneck."""
    out = f"conv{last}.out_channels"
    inner = wide or 1  # a basic block has two 3×3: the paper's conv3x3 is then the one inside the branch
    return {
        "standard": Point("se", out, "slot"),
        "pre": Point("conv1", "conv1.in_channels", "input"),
        "post": Point(f"act{last}", out, "output"),
        "identity": Point("downsample", out, "shortcut"),
        "conv3x3": Point(f"act{inner}", f"bn{inner}.num_features", "output"),
    }


LAYOUTS: dict[str, Layout] = {
    "timm.models.resnet.BasicBlock": _residual(last=2),
    "timm.models.resnet.Bottleneck": _residual(last=3, wide=2),
}
"""Layouts by the full name of the block's class. The k-th container of such blocks is stage k + 1."""
