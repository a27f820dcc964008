"""Rows of the family tables: the points at which a class of block can take a unit.

A row of LAYOUTS gives, by insertion, the points of one class of block that computes join(branch(x), shortcut(x)):

- standard: the end of the branch, before drop path and join. In a block without a join it is the output (VGG: after
  the non-linearity that follows each convolution; inception modules: the concatenation; MobileNet: the activation of
  the pointwise convolution).
- pre: the start of the branch, after the shortcut leaves; in pre-activation blocks the first convolution.
- post: the block's output, after any modules that follow the join.
- identity: the shortcut, after its projection if there is one.
- conv3x3: inside the branch, after the spatial convolution with its norm and activation (in ConvNeXt before the norm,
  which belongs to the MLP).

A point is left out if the block has no module for it, or if it would differ from the paper's. Selective-kernel and
split-attention convolutions (SKNet, ResNeSt) count as convolutions, not as SE units to keep or replace.

The row of a user's block with `conv1`, `conv2`, `act` and a `downsample` that may be None:

    LAYOUTS["my_nets.Block"] = layout(
        pre=into("conv1"),                                           # scales the input of conv1
        conv3x3=into("conv2"),
        standard=out("conv2"),                                       # scales the output of conv2
        identity=shortcut("downsample", "conv2"),                    # also if downsample is None
        post=out("", "conv2"),                                       # scales the block's output, as wide as conv2's
    )

`projected("conv1", "conv2", conv3x3=into("conv2"))` is the same row; `summed` is for blocks without `downsample`.

Points of other kinds of block (for tensors (N, H, W, C), a Point with channels_last=True):

    standard=slot("se", "conv3")                                     # block.se is the family's place for attention
    standard=(into("drop_path", "bn3", when="has_skip"), out("", "bn3"))  # the first point that the block has
    identity=added("conv2", when="has_skip")                         # the block returns branch(x) + x
    concatenated("branch1+branch2+branch3")                          # an inception module: standard at its output

Strings in a row are attribute paths from the block:

| string        | where          | means                                                                |
|---------------|----------------|----------------------------------------------------------------------|
| "conv2"       | host           | block.conv2                                                          |
| "body.0.conv" | host           | block.body[0].conv                                                   |
| ""            | host           | the block itself                                                     |
| "conv2"       | channels       | the output channels of block.conv2's last layer, norms included     |
| ">conv2"      | channels       | the input channels of block.conv2's first layer, norms included     |
| "a+b+>c"      | channels       | the sum of the three                                                 |
| "width"       | channels       | block.width, if that is a number                                     |
| "downsample"  | when           | the block has this point only if block.downsample is not None, False |
| "no b"        | when           | the block has this point only if block.b is missing, None or False   |

Choose a norm as a host only if there is no other: tools that convert, freeze or fold norms replace it. The module after
the norm, or the block itself, is a better host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Point:
    """A place for a unit inside a block."""

    host: str
    """The path, from the block, of the module that the unit is attached to; empty for the block itself."""
    how: Literal["slot", "input", "output", "joined", "shortcut", "added", "argument"] = "output"
    """How the unit is attached. slot: it fills the family's attribute for attention, None or an identity when empty;
    input, output: it becomes a child of the host, and scales the host's input or output; joined: it scales the block's
    input, a tensor or a list of tensors that the block concatenates; shortcut: it scales the output of the projection,
    which is None for an identity shortcut; added: the shortcut has no module, but the block returns branch + shortcut,
    and unit(x) − x is added to its output; argument: it scales the block's second argument, the shortcut."""
    channels: str = ""
    """The number of channels; by default the host's."""
    when: str = ""
    """A condition on the block."""
    channels_last: bool = False
    """Whether the tensor is (N, H, W, C)."""


Layout = dict[str, tuple[Point, ...]]
"""The points of one class of block, by insertion; the first point whose condition holds is used."""

BY_STRIDE: Final = "by stride"
Stages = tuple[str | tuple[str, ...], ...] | Literal["by stride"]
"""The path prefixes of each stage's blocks, such as ("level2.", ("level3.", "level4.")), or "by stride", if each block
with a stride starts a new stage."""


def layout(**points: Point | tuple[Point, ...]) -> Layout:
    """Return a row of LAYOUTS: for each insertion a point, or several of which the first fits."""
    return {name: point if isinstance(point, tuple) else (point,) for name, point in points.items()}


def out(host: str, channels: str = "", when: str = "") -> Point:
    """Return the point at a module's output; with an empty host, at the block's output."""
    return Point(host, "output", channels, when)


def into(host: str, channels: str = "", when: str = "") -> Point:
    """Return the point at a module's input."""
    return Point(host, "input", channels, when)


def slot(host: str, channels: str, when: str = "") -> Point:
    """Return the block's attribute for attention as a point."""
    return Point(host, "slot", channels, when)


def shortcut(host: str, channels: str, when: str = "") -> Point:
    """Return the point on the shortcut: after the projection, or at x if the projection is None."""
    return Point(host, "shortcut", channels, when)


def added(channels: str, when: str = "") -> Point:
    """Return the point on the shortcut of a block that returns branch(x) + x without a module."""
    return Point("", "added", channels, when)


def summed(first: str, last: str, when: str = "", **points: Point | tuple[Point, ...]) -> Layout:
    """Return the row of a block that returns branch(x) + x.

    Args:
        first: The first module of the branch.
        last: The last one.
        when: A condition on the block, without which there is no addition.
        points: Points by insertion; they replace those of the row or are added to it.
    """
    row = layout(standard=out(last), pre=into(first), post=out("", last), identity=added(last, when))
    return row | layout(**points)


def projected(first: str, last: str, act: str = "", **points: Point | tuple[Point, ...]) -> Layout:
    """Return the row of a block that returns act(branch(x) + downsample(x)).

    Args:
        first: The first module of the branch.
        last: The last one.
        act: The activation after the join, unless there is none or the block uses it elsewhere too.
        points: Points by insertion; they replace those of the row or are added to it.
    """
    row = layout(standard=out(last), pre=into(first), post=out(act, last), identity=shortcut("downsample", last))
    return row | layout(**points)


def concatenated(channels: str) -> Layout:
    """Return the row of a block that concatenates its paths and has no shortcut."""
    return layout(standard=out("", channels))
