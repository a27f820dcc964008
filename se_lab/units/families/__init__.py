"""Tables of the places where each family of nets can take units; plugins can add rows.

In: full names of classes. Out: a block's points by insertion, a net's stages, and its existing attention.
"""

from __future__ import annotations

from se_lab.units.families import own_nets, timm_nets, torchvision_nets
from se_lab.units.families.rows import BY_STRIDE as BY_STRIDE
from se_lab.units.families.rows import Layout as Layout
from se_lab.units.families.rows import Point as Point
from se_lab.units.families.rows import Stages as Stages

LAYOUTS: dict[str, Layout] = timm_nets.LAYOUTS | torchvision_nets.LAYOUTS | own_nets.LAYOUTS
"""The points of each class of block, by the full name of the class; a subclass inherits its parent's row."""

UNIT_WHEN: dict[str, str] = timm_nets.UNIT_WHEN
"""Conditions under which some classes of block take units."""

STAGES: dict[str, Stages] = timm_nets.STAGES | torchvision_nets.STAGES
"""The stages of nets whose stages are not the containers of their blocks."""

FLAT: dict[str, str] = timm_nets.FLAT | torchvision_nets.FLAT
"""The path of the Sequential that a net consists of (VGG): each activation after a convolution is a block, and each
pooling ends a stage."""

STEMS: tuple[str, ...] = timm_nets.STEMS
"""Path prefixes of modules that are never blocks; stage 1 is the stem."""

ATTENTION: dict[str, str] = timm_nets.ATTENTION | torchvision_nets.ATTENTION
"""The names of channel-attention modules that nets may already have, by the full name of their class."""

GAINED: tuple[str, ...] = timm_nets.GAINED
"""Blocks that multiply the output of their attention by a gain; without attention the slot is None, not an identity."""

LAST_NORMS: dict[str, str] = torchvision_nets.LAST_NORMS
"""The norm at the end of a block's residual branch, for blocks without a method `zero_init_last`."""
