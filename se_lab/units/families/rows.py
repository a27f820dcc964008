"""The language of the family tables: where a class of block can take a unit.

A row of LAYOUTS names, by insertion, the points of one class of block that computes join(branch(x), shortcut(x)):

- standard: the end of the branch, before drop path and join. A block without a join takes it at its output (VGG: after
  the non-linearity that follows each convolution; inception modules: the concatenation; MobileNet: the pointwise
  convolution's activation).
- pre: the start of the branch, past where the shortcut leaves; in pre-activation blocks the first convolution.
- post: the block's output, after what follows the join.
- identity: the shortcut, after its projection where there is one.
- conv3x3: inside the branch, after the spatial convolution with its norm and activation.

A point that a block has no module for, or that would not be the paper's, is left out. Selective-kernel and
split-attention convolutions (SKNet, ResNeSt) count as convolutions, not as SE units to keep or replace.

A row for a block of one's own, with `conv1`, `conv2`, `act` and a `downsample` that may be None:

    LAYOUTS["my_nets.Block"] = layout(
        pre=into("conv1"),                                           # scales what conv1 takes
        conv3x3=into("conv2"),
        standard=out("conv2"),                                       # scales what conv2 returns
        identity=shortcut("downsample", "conv2"),                    # also where downsample is None
        post=out("", "conv2"),                                       # scales the block's output, as wide as conv2's
    )

and for other kinds of block:

    standard=slot("se", "conv3")                                     # block.se is the family's place for attention
    standard=(into("drop_path", "bn3", when="has_skip"), out("", "bn3"))  # the first that the block has
    identity=added("conv2", when="has_skip")                         # the block returns branch(x) + x
    concatenated("branch1+branch2+branch3")                          # an inception module: standard at its output

Strings in a row are attribute paths from the block:

| string        | where          | means                                                                |
|---------------|----------------|----------------------------------------------------------------------|
| "conv2"       | host           | block.conv2                                                          |
| "body.0.conv" | host           | block.body[0].conv                                                   |
| ""            | host           | the block itself                                                     |
| "conv2"       | channels       | as many as block.conv2's last layer returns                          |
| ">conv2"      | channels       | as many as block.conv2's first layer takes                           |
| "a+b+>c"      | channels       | the sum of the three                                                 |
| "width"       | channels       | block.width, if that is a number                                     |
| "downsample"  | when           | the block has this point only if block.downsample is not None, False |
| "no b"        | when           | the block has this point only if block.b is missing, None or False   |

A norm is the last choice as a host: tools that convert, freeze or fold norms put another module in its place. What
follows the norm, or the block, is a better one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Point:
    """One place for a unit inside a block."""

    host: str
    """Path, from the block, of the module that the unit hangs on; empty for the block itself."""
    how: Literal["slot", "input", "output", "joined", "shortcut", "added", "argument"] = "output"
    """slot: the host attribute is the family's own place for attention, None or an identity when empty; input, output:
    the unit becomes a child of the host and scales what goes into or comes out of it; joined: it scales the block's
    input, a tensor or a list of tensors that the block concatenates; shortcut: it scales the output of the projection,
    which is None where the shortcut is the identity; added: the shortcut has no module, but the block returns
    branch + shortcut, so that its output gains unit(x) − x; argument: the block takes the shortcut as its second
    argument."""
    channels: str = ""
    """The number of channels there; by default the host's."""
    when: str = ""
    """What the block must have, or lack, for this point."""
    channels_last: bool = False
    """The tensor is (N, H, W, C)."""


Layout = dict[str, tuple[Point, ...]]
"""The points of one class of block, by insertion; of several the first that the block has."""

BY_STRIDE: Final = "by stride"
Stages = tuple[str | tuple[str, ...], ...] | Literal["by stride"]
"""The path prefixes of each stage's blocks, such as ("level2.", ("level3.", "level4.")); or "by stride", where a block
that strides opens the next stage."""


def layout(**points: Point | tuple[Point, ...]) -> Layout:
    """Return a row from the points of its insertions; of a tuple of points the first that a block has is its point."""
    return {name: point if isinstance(point, tuple) else (point,) for name, point in points.items()}


def out(host: str, channels: str = "", when: str = "") -> Point:
    """Scale what a module returns, or, with an empty host, what the block returns."""
    return Point(host, "output", channels, when)


def into(host: str, channels: str = "", when: str = "") -> Point:
    """Scale what a module takes."""
    return Point(host, "input", channels, when)


def slot(host: str, channels: str, when: str = "") -> Point:
    """Fill the block's own place for attention."""
    return Point(host, "slot", channels, when)


def shortcut(host: str, channels: str, when: str = "") -> Point:
    """Scale what the projection returns, or x where the projection is None."""
    return Point(host, "shortcut", channels, when)


def added(channels: str, when: str = "") -> Point:
    """Scale x in a block that returns branch(x) + x and has no module on the shortcut."""
    return Point("", "added", channels, when)


def concatenated(channels: str) -> Layout:
    """Return the row of a block that concatenates its paths and has no shortcut."""
    return layout(standard=out("", channels))
