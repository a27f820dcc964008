"""SE units without passes of their own: the same modules, parameters and numbers, another forward.

Fusing swaps the class of a block or a unit for a subclass whose forward runs `units`. Calls that cannot be
fused, because of modules, hooks or tensors, run as in the plain net.
"""

from __future__ import annotations

from se_lab.units.fused.blocks import form_of as form_of
from se_lab.units.fused.blocks import fuse as fuse
from se_lab.units.fused.blocks import unfuse as unfuse
from se_lab.units.fused.choice import Work as Work
from se_lab.units.fused.choice import choose as choose
