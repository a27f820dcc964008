"""The interface of an attention unit, which is all that the rest of SE-Lab uses."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from se_lab.spec import SESpec, SpecError
from se_lab.units.counting import ModuleCost, count


class Unit(nn.Module):
    """A module that maps (N, C, H, W) to the same shape, scaling channels, positions, or both.

    A subclass is built with (channels, spec), calls this constructor and has a forward pass. All else is optional.

    Examples:
        >>> unit = SqueezeExcite(64, SESpec(reduction=4))
        >>> isinstance(unit, Unit), unit(torch.randn(2, 64, 7, 7)).shape
        (True, torch.Size([2, 64, 7, 7]))
        >>> unit.cost(7, 7).params
        2048
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """The SESpec fields that can change this kind of unit, of reduction, squeeze, excitation, bias and start."""
    reference: ClassVar[str] = ""
    """The paper that describes it."""
    fewest_pixels: ClassVar[int] = 1
    """The smallest H·W of a map for which it is defined."""

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__()
        _check_arguments(type(self).__name__, channels, spec)
        # in the instance: TorchScript refuses the types as annotations of the class, and an attribute of the class
        # would hide a subclass's module
        self.channels: int = channels
        """C, the channels that the unit scales."""
        self.hidden: int | None = None
        """The width of its bottleneck; None where it has none."""
        self.gate: nn.Identity | None = None
        """The identity that the gate passes, for hooks: (N, C) or what broadcasts to (N, C, H, W). A gate of several
        factors, such as one for rows and one for columns, passes it factor by factor. None where there is no gate."""

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew from a generator, as each module's own `reset_parameters` draws them.

        They are drawn on the CPU, so that a stream gives the same weights on any device.
        """
        if all(parameter.is_meta for parameter in self.parameters()):  # or no parameter
            return
        seed = int(torch.randint(2**62, (), generator=generator))
        clone = copy.deepcopy(self).to("cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in reversed(list(clone.modules())):  # a module after its layers, whose start it may change
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        self.load_state_dict(clone.state_dict())

    def start_as_identity(self) -> None:
        """Set the weights so that the gate is (nearly) 1 for every input.

        Raises:
            SpecError: where this unit has no such weights.
        """
        raise SpecError(f"{type(self).__name__} has no weights that make its gate 1 for every input")

    def squeezed(self, x: Tensor) -> Tensor:
        """Return what the gate is computed from, (N, C) or (N, C, H, W), for inputs (N, C, H, W)."""
        return x.mean((2, 3))

    def bounds(self) -> tuple[float | None, float | None]:
        """Return the lower and the upper bound of the gate, None where there is none."""
        return 0.0, 1.0

    def why_not_fused(self) -> str:
        """Return why no fused block can run the unit; "" where its gate is `gate_of_means` of the means over H, W."""
        return f"{type(self).__name__} has no fused form"

    def gate_of_means(self, z: Tensor) -> Tensor:
        """Return the gate, (N, C), of means over H and W, (N, C), in their dtype; fused blocks call this."""
        raise NotImplementedError(f"{type(self).__name__} has no fused form")

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the cost for one map of (C, height, width); by default counted by fvcore."""
        by_module, _ = count(self, (self.channels, height, width))
        return by_module[""]

    @classmethod
    def check_map(cls, unit: str, place: str, height: int, width: int) -> None:
        """Raise SpecError for a map of fewer pixels than this unit, by its name in a spec, is defined for."""
        if height * width < cls.fewest_pixels:
            raise SpecError(
                f"model.se.unit={unit} needs maps of at least {cls.fewest_pixels} pixels, and {place} has {height} × "
                f"{width}; choose larger images, earlier stages or another unit"
            )

    def has_closed_form(self) -> bool:
        """Return whether `cost` is a formula and not a count."""
        return type(self).cost is not Unit.cost


def _check_arguments(name: str, channels: object, spec: object) -> None:
    """Raise SpecError for wrong arguments, such as channels that are no int, or a bare ratio."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise SpecError(f"{name} takes the number of channels, at least 1, not {channels!r}")
    if spec is not None and not isinstance(spec, SESpec):
        hint = f"SESpec(reduction={spec})" if isinstance(spec, int) else "SESpec(reduction=16)"
        raise SpecError(f"{name} takes an SESpec, such as {hint}, not {spec!r}")
