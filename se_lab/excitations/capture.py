"""Capture of what SE units do to images: their gates s, and on request their squeezed descriptors z (section 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
    """Excitations that cannot be had: the message says why, and what to do."""


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
    """What `get_submodule` takes to reach the unit."""
    low: float | None = 0.0
    """The lower bound of the gate, from its excitation; None where there is none."""
    high: float | None = 1.0
    """The upper bound of the gate: 1 for sigmoid and tanh, None for ReLU."""


class Capture:
    """The gates of the last forward pass."""

    def __init__(self, sites: list[GateSite]) -> None:
        self.sites = sites
        self.excitations: dict[str, Tensor] = {}
        """By site name, (N, C), in the net's dtype; for squeeze none, in float32 or wider, the mean over H×W."""
        self.squeezed: dict[str, Tensor] = {}
        """By site name, (N, C): the squeezed descriptors, where they were asked for."""


@contextlib.contextmanager
def capture_excitations(model: nn.Module, *, squeezed: bool = False) -> Iterator[Capture]:
    """Capture the gates s (section 3.2) of every SE unit, ours and timm's own, while the context is open.

    The net's outputs do not change by a bit. Works under inference_mode, autocast and channels_last, and on a net in
    DistributedDataParallel, where each process captures its own images. The hooks go when the context closes, whatever
    happened inside.

    Args:
        model: The net, in eval mode for the gates that it is tested with.
        squeezed: Capture the squeezed descriptors z (equation 2) as well.

    Raises:
        ExcitationError: for a net without SE units, or one that runs other code than its modules' (torch.compile,
            TorchScript, DataParallel): pass the net that it was made from.
    """
    net = _hookable(model)
    capture = Capture(gate_sites(net))
    handles = []

    def keep(into: dict[str, Tensor], name: str, value: Tensor) -> None:
        value = value.detach()
        if value.dim() == 4 and value.shape[2:] != (1, 1):
            value = value.mean((2, 3), dtype=torch.promote_types(value.dtype, torch.float32))
        into[name] = value.flatten(1)

    def hook_gate(name: str) -> Any:
        return lambda module, inputs, output: keep(capture.excitations, name, output)

    def hook_descriptor(name: str, unit: nn.Module) -> Any:
        if isinstance(unit, Unit):  # its first layer may run as a convolution, or as part of a larger kernel
            return lambda module, inputs: keep(capture.squeezed, name, unit.squeezed(inputs[0]))
        return lambda module, inputs: keep(capture.squeezed, name, inputs[0])

    try:
        for site in capture.sites:
            unit = net.get_submodule(site.path)
            gate, first = _children_of(unit)
            handles.append(unit.get_submodule(gate).register_forward_hook(hook_gate(site.name)))
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

    def constant(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        fixed = gate.to(output)
        return fixed.view(1, -1, *[1] * (output.dim() - 2)).expand_as(output)

    handle = unit.get_submodule(_children_of(unit)[0]).register_forward_hook(constant)
    try:
        yield
    finally:
        handle.remove()


def gate_sites(model: nn.Module) -> list[GateSite]:
    """Return the SE units of a net in its order, under the paper's names.

    Units are counted as the family table counts them. For a family it does not know, the k-th container of blocks with
    SE units is stage k + 1, and a unit's number is its block's in there, from 1.

    Raises:
        ExcitationError: where there is none.
    """
    units = {path: module for path, module in model.named_modules() if _children_of(module)[0]}
    if not units:
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
        raise ExcitationError(
            f"{name} has no SE unit to look into; build it with units (model.se.insertion=standard), "
            "or take a net that has them, such as timm's seresnet50"
        )
    numbers = _numbers(model, list(units))
    names: dict[str, str] = {}
    for path in sorted(units, key=lambda path: not isinstance(units[path], Unit)):
        stage, unit = numbers[path]
        again = sum(numbers[other] == numbers[path] for other in names) + 1
        names[path] = f"SE_{stage}_{unit}" + (f"_{again}" if again > 1 else "")
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
        known = {place.path: (place.stage, place.unit) for place in find_places(model)}
    except SpecError:
        known = {}
    found: dict[str, tuple[int, int]] = {}
    for path in paths:
        parts = path.split(".")
        above = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        found.update((path, known[block]) for block in above if block in known)
    if len(found) == len(paths):
        return found
    blocks = [path.rpartition(".")[0] for path in paths]
    # a block that hangs on the net itself, such as a stem, is a stage of its own
    containers = list(dict.fromkeys(block.rpartition(".")[0] or block for block in blocks))
    first = 2 if "." in blocks[0] else 1
    for path, block in zip(paths, blocks, strict=True):
        container, _, name = block.rpartition(".")
        siblings = [child for child, _ in model.get_submodule(container).named_children()] if container else [name]
        found[path] = (containers.index(container or block) + first, siblings.index(name) + 1)
    return found


def _hookable(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    for found, what, instead in (
        (compiled, "compiled by torch.compile", "the net before it was compiled (compiled._orig_mod)"),
        (isinstance(model, torch.jit.ScriptModule), "a TorchScript module", "the net it was made from"),
        (isinstance(model, nn.DataParallel), "in DataParallel", "its .module, or use DistributedDataParallel"),
    ):
        if found:
            raise ExcitationError(f"the net is {what}, and its modules' hooks do not run: pass {instead}")
    return model
