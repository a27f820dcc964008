"""Where each family's nets take units: tables, to which a plugin adds rows of its own.

In: full names of classes. Out: a block's points by insertion, the stages of a net, its own attention.
"""

from __future__ import annotations

from se_lab.units.families import own_nets, timm_nets, torchvision_nets
from se_lab.units.families.rows import BY_STRIDE as BY_STRIDE
from se_lab.units.families.rows import Layout as Layout
from se_lab.units.families.rows import Point as Point
from se_lab.units.families.rows import Stages as Stages

LAYOUTS: dict[str, Layout] = timm_nets.LAYOUTS | torchvision_nets.LAYOUTS | own_nets.LAYOUTS
"""Where a block takes units, by the full name of its class; a subclass has its parent's row."""

UNIT_WHEN: dict[str, str] = timm_nets.UNIT_WHEN
"""Blocks that take units only if an attribute holds, or is missing."""

STAGES: dict[str, Stages] = timm_nets.STAGES | torchvision_nets.STAGES
"""How stages are told apart in nets whose stages are not the containers of their blocks."""

FLAT: dict[str, str] = timm_nets.FLAT | torchvision_nets.FLAT
"""Nets that are one Sequential of convolutions: each activation after a convolution is a block, each pooling ends a
stage."""

STEMS: tuple[str, ...] = timm_nets.STEMS
"""Path prefixes that are never blocks: stage 1 is the stem."""

ATTENTION: dict[str, str] = timm_nets.ATTENTION | torchvision_nets.ATTENTION
"""Channel attention that a net may have of its own, by the full name of its class."""

GAINED: tuple[str, ...] = timm_nets.GAINED
"""Blocks that multiply their attention's output by a gain: without attention the slot is None, not an identity."""

LAST_NORMS: dict[str, str] = torchvision_nets.LAST_NORMS
"""The norm that ends a block's residual branch, where the block has no method `zero_init_last`."""
