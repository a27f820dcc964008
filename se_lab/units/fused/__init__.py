"""Fused SE units: the same modules and parameters, with fewer passes over memory.

Fusing replaces the class of a block or a unit by a subclass whose forward calls `units`. Calls that cannot be fused,
because of their modules, hooks or tensors, run as in the plain net.
"""

from __future__ import annotations

from se_lab.units.fused.blocks import form_of as form_of
from se_lab.units.fused.blocks import fuse as fuse
from se_lab.units.fused.blocks import unfuse as unfuse
from se_lab.units.fused.choice import Work as Work
from se_lab.units.fused.choice import choose as choose
