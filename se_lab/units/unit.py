"""The interface of an attention unit: everything that the rest of SE-Lab may ask of one."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from se_lab.spec import SESpec
from se_lab.units.counting import ModuleCost, count


class Unit(nn.Module):
    """A module that maps (N, C, H, W) to the same shape, weighing channels or positions."""

    fields: ClassVar[tuple[str, ...]] = ()
    """The SESpec fields that can change this kind of unit, apart from those that say where units go."""
    reference: ClassVar[str] = ""
    """The paper that describes it."""

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__()
        # in the instance: TorchScript refuses the types as annotations of the class, and an attribute of the class
        # would hide a subclass's module
        self.channels: int = channels
        """C, the channels that the unit scales."""
        self.hidden: int | None = None
        """The width of its bottleneck; None where it has none."""
        self.gate: nn.Identity | None = None
        """The identity that every gate passes, for hooks; None where a unit has no gate of one value a channel."""

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, on the CPU, from a generator."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its weights are drawn")

    def start_as_identity(self) -> None:
        """Set the weights so that the gate is (nearly) 1 for every input.

        Raises:
            SpecError: where this unit has no such weights.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot start as the identity")

    def squeezed(self, x: Tensor) -> Tensor:
        """Return what the gate is computed from, (N, C) or (N, C, H, W), for inputs (N, C, H, W)."""
        return x.mean((2, 3))

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the cost for one map of (C, height, width); by default counted by fvcore."""
        by_module, _ = count(self, (self.channels, height, width))
        return by_module[""]
