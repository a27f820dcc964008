"""The interface of attention units; the rest of SE-Lab uses nothing else of a unit."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from se_lab.spec import SESpec, SpecError
from se_lab.units.counting import ModuleCost, count


class Unit(nn.Module):
    """Base class of attention units: modules that scale channels or positions of (N, C, H, W).

    A subclass is created with (channels, spec), calls this constructor, and defines `forward`; all else is optional.

    Examples:
        >>> unit = SqueezeExcite(64, SESpec(reduction=4))
        >>> isinstance(unit, Unit), unit(torch.randn(2, 64, 7, 7)).shape
        (True, torch.Size([2, 64, 7, 7]))
        >>> unit.cost(7, 7).params
        2048
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """The SESpec fields that affect the unit, out of reduction, squeeze, excitation, bias and start."""
    reference: ClassVar[str] = ""
    """The paper that describes the unit."""
    fewest_pixels: ClassVar[int] = 1
    """The smallest H·W of maps for which the unit is defined."""

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__()
        _check_arguments(type(self).__name__, channels, spec)
        # attributes of the instance: TorchScript rejects class annotations of these types, and a class attribute
        # would hide a subclass's module
        self.channels: int = channels
        """The number of channels that the unit scales."""
        self.hidden: int | None = None
        """The width of the bottleneck, or None."""
        self.gate: nn.Identity | None = None
        """An identity for hooks, through which the gate passes: (N, C), or a shape that broadcasts to (N, C, H, W). The
        factors of a gate, such as those for rows and columns, pass one by one. None for a unit without a gate."""

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the weights by the `reset_parameters` of all modules, seeded by a generator.

        They are drawn on the CPU, so that the weights are the same on all devices.
        """
        if all(parameter.is_meta for parameter in self.parameters()):  # or no parameter
            return
        seed = int(torch.randint(2**62, (), generator=generator))
        clone = copy.deepcopy(self).to("cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in reversed(list(clone.modules())):  # children first: a parent may change their weights
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        self.load_state_dict(clone.state_dict())

    def start_as_identity(self) -> None:
        """Set the weights so that the gate is (nearly) 1 for every input.

        Raises:
            SpecError: if the unit has no such weights.
        """
        raise SpecError(f"{type(self).__name__} has no weights that make its gate 1 for every input")

    def squeezed(self, x: Tensor) -> Tensor:
        """Return the squeezed input, (N, C) or (N, C, H, W), from which the gate is computed."""
        return x.mean((2, 3))

    def bounds(self) -> tuple[float | None, float | None]:
        """Return the lower and the upper bound of the gate, each None if it is unbounded."""
        return 0.0, 1.0

    def why_not_fused(self) -> str:
        """Return why the unit cannot run fused, or "" if it defines `gate_of_means`."""
        return f"{type(self).__name__} has no fused form"

    def gate_of_means(self, z: Tensor) -> Tensor:
        """Return the gate, (N, C), from means over H and W, (N, C); called by fused blocks."""
        raise NotImplementedError(f"{type(self).__name__} has no fused form")

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the cost for one map of (C, height, width); by default, fvcore counts it."""
        by_module, _ = count(self, (self.channels, height, width))
        return by_module[""]

    @classmethod
    def check_map(cls, unit: str, place: str, height: int, width: int) -> None:
        """Raise SpecError if maps at a place are smaller than the unit allows; `unit` is its name."""
        if height * width < cls.fewest_pixels:
            raise SpecError(
                f"model.se.unit={unit} needs maps of at least {cls.fewest_pixels} pixels, but {place} has {height} × "
                f"{width}; choose larger images, earlier stages or another unit"
            )

    def has_closed_form(self) -> bool:
        """Return whether `cost` is a formula."""
        return type(self).cost is not Unit.cost


def _check_arguments(name: str, channels: object, spec: object) -> None:
    """Raise SpecError for invalid arguments, such as a reduction ratio in place of the spec."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise SpecError(f"channels of {name} is {channels!r}; it must be an integer of at least 1")
    if spec is not None and not isinstance(spec, SESpec):
        hint = f"SESpec(reduction={spec})" if isinstance(spec, int) else "SESpec(reduction=16)"
        raise SpecError(f"spec of {name} is {spec!r}; it must be an SESpec, such as {hint}")
