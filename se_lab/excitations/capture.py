"""Capture of what units do to images: their gates s, and on request squeezed descriptors z (section 3) and maps."""

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
"""By class of unit: the child whose output is the gate, and the child whose input is the squeezed descriptor."""


class ExcitationError(SpecError):
    """Excitations are unavailable: the message says why, and what to do."""


@dataclass(frozen=True)
class GateSite:
    """One SE unit whose gate can be captured."""

    name: str
    """The paper's name, SE_{stage}_{unit}; with _2 where a block has a second one, such as timm's own beside ours."""
    stage: int
    unit: int
    channels: int
    """Channels of the gate."""
    path: str
    """The unit's path, for `get_submodule`."""
    low: float | None = 0.0
    """The lower bound of the gate, from its excitation; None where there is none."""
    high: float | None = 1.0
    """The upper bound of the gate: 1 for sigmoid and tanh, None for ReLU."""


class Capture:
    """The gates of the last forward pass."""

    def __init__(self, sites: list[GateSite]) -> None:
        self.sites = sites
        self.excitations: dict[str, Tensor] = {}
        """By site name, (N, C), in the net's dtype; of a gate that varies over H×W the mean, in float32 or wider."""
        self.maps: dict[str, Tensor] = {}
        """By site name, (N, H, W), where they were asked for and the gate varies over H×W: its mean over channels."""
        self.squeezed: dict[str, Tensor] = {}
        """By site name, (N, C): the squeezed descriptors, where they were asked for."""


@contextlib.contextmanager
def capture_excitations(model: nn.Module, *, squeezed: bool = False, maps: bool = False) -> Iterator[Capture]:
    """Capture the gates s (section 3.2) of every unit that has one, and of timm's own SE, while the context is open.

    The net's outputs do not change by a bit. Works under inference_mode, autocast and channels_last, and on a net in
    DistributedDataParallel, where each process captures its own images. The hooks are removed when the context closes,
    also after an error.

    Args:
        model: The net, in eval mode for the gates that it is tested with.
        squeezed: Capture the squeezed descriptors z (equation 2) as well.
        maps: Capture maps of the gates that vary over H×W as well.

    Raises:
        ExcitationError: for a net without gates, or one that runs other code than its modules' (torch.compile,
            TorchScript, DataParallel): pass the net that it was made from.

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
        if isinstance(unit, Unit):  # its first layer may run as a convolution, or as part of a larger kernel
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
    """Let a unit scale by a constant gate, (C,), instead of its own, while the context is open."""
    unit = _hookable(model).get_submodule(site.path)
    passed = 0

    def begin(*_: object) -> None:
        nonlocal passed
        passed = 0

    def constant(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        nonlocal passed
        passed += 1
        ones = torch.ones_like(output)  # the first factor is the gate, all others are 1
        return ones * gate.to(output).view(1, -1, *[1] * (output.dim() - 2)) if passed == 1 else ones

    gate_module = unit.get_submodule(_children_of(unit)[0])
    start_module = gate_module if _has_one_factor(unit) else unit
    handles: list[Any] = [start_module.register_forward_pre_hook(begin), gate_module.register_forward_hook(constant)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook_gate(unit: nn.Module, keep: Callable[[Sequence[Tensor]], None]) -> list[Any]:
    """Hand `keep` the factors of a unit's gate after each forward pass; return the handles of the hooks."""
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
    """Return whether a gate has one factor: the unit then needs no hooks, which would make it run unfused."""
    return not isinstance(unit, Unit) or not unit.why_not_fused()


def _mean_gate(factors: Sequence[Tensor]) -> Tensor:
    """Return the mean over H×W, (N, C), of the product of a gate's factors; of one without H and W the gate itself."""
    if len(factors) == 1 and (factors[0].dim() == 2 or factors[0].shape[2:] == (1, 1)):
        return factors[0].flatten(1)
    maps = [_wide(factor) for factor in factors]
    for axis in (2, 3):  # what one factor alone varies along is averaged before the product, which is then small
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
    """Return the units of a net that have a gate, in its order, under the paper's names.

    Units are counted as the family table counts them. For a family it does not know, the k-th container of blocks with
    SE units is stage k + 1, and a unit's number is its block's in there, from 1.

    Raises:
        ExcitationError: where there is none.
    """
    unit_prefixes = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Unit))
    units = {
        path: module
        for path, module in model.named_modules()
        if _children_of(module)[0] and not path.startswith(unit_prefixes)  # a unit may be built from a layer of timm's
    }
    if not units:
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
        raise ExcitationError(
            f"{name} has no unit with a gate to inspect; build it with units (model.se.insertion=standard), "
            "or take a net that has them, such as timm's seresnet50"
        )
    sites = {site.path: site for site in getattr(model, "se_sites", ())}  # by tables or by paths, as they are named
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
    # a block that hangs on the net itself, such as a stem, is a stage of its own
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
        (compiled, "compiled by torch.compile", "the net before it was compiled (compiled._orig_mod)"),
        (isinstance(model, torch.jit.ScriptModule), "a TorchScript module", "the net it was made from"),
        (isinstance(model, nn.DataParallel), "in DataParallel", "its .module, or use DistributedDataParallel"),
    ):
        if condition:
            raise ExcitationError(f"the net is {kind}, and its modules' hooks do not run: pass {advice}")
    return model
