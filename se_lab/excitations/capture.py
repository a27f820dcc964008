"""Capture the gates s of units, and optionally squeezed descriptors z (section 3) and maps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite as MobileSqueezeExcite
from timm.models.senet import SEModule as LegacySEModule
from torch import Tensor, nn

from se_lab.spec import SpecError
from se_lab.units.insertion import find_places
from se_lab.units.squeeze_excite import bounds_of
from se_lab.units.unit import Unit

GATES: dict[type[nn.Module], tuple[str, str]] = {
    Unit: ("gate", ""),
    SEModule: ("gate", "fc1"),
    MobileSqueezeExcite: ("gate", "conv_reduce"),
    EffectiveSEModule: ("gate", "fc"),
    LegacySEModule: ("sigmoid", "fc1"),
}
"""For each class of unit, the child that outputs the gate, and the child whose input is the squeezed descriptor."""


class ExcitationError(SpecError):
    """Excitations cannot be captured or shown."""


@dataclass(frozen=True)
class GateSite:
    """A unit whose gate can be captured."""

    name: str
    """Name as in the paper, SE_{stage}_{unit}, with _2 for a second unit in a block."""
    stage: int
    unit: int
    channels: int
    """Number of channels of the gate."""
    path: str
    """Module path of the unit, for `get_submodule`."""
    low: float | None = 0.0
    """Lower bound of the gate, or None if unbounded."""
    high: float | None = 1.0
    """Upper bound of the gate: 1 for sigmoid and tanh, None for ReLU."""


class Capture:
    """The gates of the last forward pass."""

    def __init__(self, sites: list[GateSite]) -> None:
        self.sites = sites
        self.excitations: dict[str, Tensor] = {}
        """Gates (N, C) by site name, in the net's dtype; means over H×W, in float32 or wider, for spatial gates."""
        self.maps: dict[str, Tensor] = {}
        """Means over channels (N, H, W) of spatial gates by site name, if requested."""
        self.squeezed: dict[str, Tensor] = {}
        """Squeezed descriptors (N, C) by site name, if requested."""


@contextlib.contextmanager
def capture_excitations(model: nn.Module, *, squeezed: bool = False, maps: bool = False) -> Iterator[Capture]:
    """Capture the gates s (section 3.2) of all units, including timm's, within a context.

    The outputs of the net are bit-identical. Works with inference_mode, autocast, channels_last and
    DistributedDataParallel, where each process captures its own images. The hooks are removed at the end of the
    context, even after an error.

    Args:
        model: The net, usually in eval mode.
        squeezed: Also capture the squeezed descriptors z (equation 2).
        maps: Also capture maps of gates that vary over H×W.

    Raises:
        ExcitationError: if the net has no gates, or does not run its modules' hooks (torch.compile, TorchScript,
            DataParallel); pass the original net instead.

    Examples:
        >>> model = create_model(ModelSpec("cifar_resnet20"), num_classes=10).eval()
        >>> with capture_excitations(model) as captured:
        ...     logits = model(torch.randn(8, 3, 32, 32))
        >>> captured.excitations["SE_4_3"].shape
        torch.Size([8, 64])
    """
    net = _hookable(model)
    capture = Capture(gate_sites(net))
    handles = []

    def keep(target: dict[str, Tensor], name: str, value: Tensor) -> None:
        value = value.detach()
        if value.dim() == 4 and value.shape[2:] != (1, 1):
            value = value.mean((2, 3), dtype=torch.promote_types(value.dtype, torch.float32))
        target[name] = value.flatten(1)

    def keep_gate(name: str, factors: Sequence[Tensor]) -> None:
        capture.excitations[name] = _mean_gate(factors)
        if maps and any(factor.dim() == 4 and factor.shape[2:] != (1, 1) for factor in factors):
            capture.maps[name] = _product(factors).mean(1)

    def hook_descriptor(name: str, unit: nn.Module) -> Any:
        if isinstance(unit, Unit):  # the first layer may run as a convolution, or within a larger kernel
            return lambda module, inputs: keep(capture.squeezed, name, unit.squeezed(inputs[0]))
        return lambda module, inputs: keep(capture.squeezed, name, inputs[0])

    try:
        for site in capture.sites:
            unit = net.get_submodule(site.path)
            first = _children_of(unit)[1]
            handles += _hook_gate(unit, functools.partial(keep_gate, site.name))
            if squeezed:
                hook = hook_descriptor(site.name, unit)
                handles.append(unit.get_submodule(first).register_forward_pre_hook(hook))
        yield capture
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replace_gate(model: nn.Module, site: GateSite, gate: Tensor) -> Iterator[None]:
    """Replace the gate of a unit by a constant gate (C,) within a context."""
    unit = _hookable(model).get_submodule(site.path)
    calls = 0

    def begin(*_: object) -> None:
        nonlocal calls
        calls = 0

    def constant(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        ones = torch.ones_like(output)  # the first factor becomes the gate, all others 1
        return ones * gate.to(output).view(1, -1, *[1] * (output.dim() - 2)) if calls == 1 else ones

    gate_module = unit.get_submodule(_children_of(unit)[0])
    start_module = gate_module if _has_one_factor(unit) else unit
    handles: list[Any] = [start_module.register_forward_pre_hook(begin), gate_module.register_forward_hook(constant)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook_gate(unit: nn.Module, keep: Callable[[Sequence[Tensor]], None]) -> list[Any]:
    """Call `keep` with the factors of a gate after each forward pass; return hook handles."""
    gate = unit.get_submodule(_children_of(unit)[0])
    if _has_one_factor(unit):
        return [gate.register_forward_hook(lambda module, inputs, output: keep([output.detach()]))]
    factors: list[Tensor] = []
    return [
        unit.register_forward_pre_hook(lambda module, inputs: factors.clear()),
        gate.register_forward_hook(lambda module, inputs, output: factors.append(output.detach())),
        unit.register_forward_hook(lambda module, inputs, output: keep(factors)),
    ]


def _has_one_factor(unit: nn.Module) -> bool:
    """Return whether a gate has one factor, so that no hooks on the unit prevent fusion."""
    return not isinstance(unit, Unit) or not unit.why_not_fused()


def _mean_gate(factors: Sequence[Tensor]) -> Tensor:
    """Return the product (N, C) of a gate's factors, averaged over H×W."""
    if len(factors) == 1 and (factors[0].dim() == 2 or factors[0].shape[2:] == (1, 1)):
        return factors[0].flatten(1)
    maps = [_wide(factor) for factor in factors]
    for axis in (2, 3):  # if only one factor varies along an axis, average first, to keep the product small
        indices = [number for number, factor in enumerate(maps) if factor.shape[axis] > 1]
        if len(indices) == 1:
            maps[indices[0]] = maps[indices[0]].mean(axis, keepdim=True)
    return functools.reduce(torch.mul, maps).mean((2, 3))


def _product(factors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, map(_wide, factors))


def _wide(factor: Tensor) -> Tensor:
    gate = factor[:, :, None, None] if factor.dim() == 2 else factor
    return gate.to(torch.promote_types(gate.dtype, torch.float32))


def gate_sites(model: nn.Module) -> list[GateSite]:
    """Return the units of a net with a gate, in order, with names as in the paper.

    Stages and units are numbered as in the family table. For an unknown family, the k-th container of blocks with SE
    units is stage k + 1, and units are numbered from 1 by their block in the container.

    Raises:
        ExcitationError: if no unit has a gate.
    """
    unit_prefixes = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Unit))
    units = {
        path: module
        for path, module in model.named_modules()
        if _children_of(module)[0] and not path.startswith(unit_prefixes)  # a unit may contain a timm layer
    }
    if not units:
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
        raise ExcitationError(
            f"{name} has no unit with a gate to inspect; build the net with units (model.se.insertion=standard), "
            "or use a net that has units, such as timm's seresnet50"
        )
    sites = {site.path: site for site in getattr(model, "se_sites", ())}
    numbers = _numbers(model, list(units))
    numbers |= {path: (site.stage, site.unit) for path, site in sites.items()}
    names: dict[str, str] = {}
    for path in sorted(units, key=lambda path: not isinstance(units[path], Unit)):
        stage, unit = numbers[path]
        count = sum(numbers[other] == numbers[path] for other in names) + 1
        inserted_site = sites.get(path)
        names[path] = inserted_site.name if inserted_site else f"SE_{stage}_{unit}" + (f"_{count}" if count > 1 else "")
    return [
        GateSite(names[path], *numbers[path], _channels(unit), path, *_limits(unit)) for path, unit in units.items()
    ]


def _limits(unit: nn.Module) -> tuple[float | None, float | None]:
    """Return the bounds of a unit's gate."""
    if isinstance(unit, Unit):
        return unit.bounds()
    return bounds_of(unit.get_submodule(_children_of(unit)[0]), _channels(unit))


def _children_of(unit: nn.Module) -> tuple[str, str]:
    if isinstance(unit, Unit) and unit.gate is None:
        return "", ""
    return next((GATES[cls] for cls in type(unit).__mro__ if cls in GATES), ("", ""))


def _channels(unit: nn.Module) -> int:
    if isinstance(unit, Unit):
        return unit.channels
    return [layer for layer in unit.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels


def _numbers(model: nn.Module, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the (stage, unit) of each SE unit's path."""
    try:
        block_numbers = {place.path: (place.stage, place.unit) for place in find_places(model)}
    except SpecError:
        block_numbers = {}
    numbers: dict[str, tuple[int, int]] = {}
    for path in paths:
        parts = path.split(".")
        parents = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        numbers.update((path, block_numbers[block]) for block in parents if block in block_numbers)
    if len(numbers) == len(paths):
        return numbers
    blocks = [path.rpartition(".")[0] for path in paths]
    # A block that is a direct child of the net, such as a stem, is a separate stage.
    containers = list(dict.fromkeys(block.rpartition(".")[0] or block for block in blocks))
    first = 2 if "." in blocks[0] else 1
    for path, block in zip(paths, blocks, strict=True):
        container, _, name = block.rpartition(".")
        siblings = [child for child, _ in model.get_submodule(container).named_children()] if container else [name]
        numbers[path] = (containers.index(container or block) + first, siblings.index(name) + 1)
    return numbers


def _hookable(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    for condition, kind, advice in (
        (compiled, "compiled by torch.compile", "the original net (compiled._orig_mod)"),
        (isinstance(model, torch.jit.ScriptModule), "a TorchScript module", "the original net"),
        (isinstance(model, nn.DataParallel), "in DataParallel", "its .module, or use DistributedDataParallel"),
    ):
        if condition:
            raise ExcitationError(f"the net is {kind}, so hooks of its modules do not run; pass {advice}")
    return model
