"""Put SE units into a backbone, exactly where a spec says: surgery on modules, not a fork of timm."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from se_lab.spec import SESpec, SpecError, check_choice
from se_lab.units.places import Place, Spot, choose, gains, is_sequential, name_of, survey
from se_lab.units.places import find_places as find_places
from se_lab.units.table import build_unit
from se_lab.units.unit import Unit


@dataclass(frozen=True)
class Site:
    """One inserted SE unit."""

    name: str
    """The paper's name, SE_{stage}_{unit}."""
    stage: int
    unit: int
    channels: int
    """Channels the unit scales."""
    hidden: int | None
    """Width of its bottleneck, for SE C // r, at least 1; None for a unit without one."""
    insertion: str
    path: str
    """What `get_submodule` takes to reach the unit."""


def insert_se(backbone: nn.Module, se: SESpec, existing_se: str = "refuse") -> list[Site]:
    """Insert SE units into a backbone, in place, and return where they are.

    What is not SE keeps its state-dict keys, for every insertion. Call it before the optimizer is made, and after any
    SyncBatchNorm conversion (timm's `convert_sync_batchnorm`, which keeps its fused norm-activation layers).

    Args:
        backbone: A timm model, not wrapped by DistributedDataParallel or torch.compile.
        se: Which units, and where.
        existing_se: What to do about a backbone that has channel attention of its own: refuse; keep (ours come in
            addition, at the family's places); replace (insertion standard: each of its units becomes one of ours,
            where it is; none: they just go; any other: they go, and the units that had them take ours there).

    Raises:
        SpecError: for a backbone without known units, a stage or insertion it has not got, or attention of its own to
            refuse.
    """
    check_choice("model.existing_se", existing_se, ("refuse", "keep", "replace"))
    if any(isinstance(module, Unit) for module in backbone.modules()):
        raise SpecError(f"{name_of(backbone)} already has SE-Lab's units; build it anew for another insertion")
    places = survey(backbone)
    chosen = choose(places, se, existing_se, name_of(backbone))
    if existing_se == "replace":
        swapped = {spot.host for _, spot in chosen if spot.how == "swap"}
        for host in (spot.host for place in places for spot in place.own if spot.host not in swapped):
            _clear(backbone, host)
    return [_insert(backbone, place, spot, se) for place, spot in chosen]


def _clear(backbone: nn.Module, host: str) -> None:
    """Take out a unit that the net has of its own."""
    parent, _, attribute = host.rpartition(".")
    block = backbone.get_submodule(parent)
    setattr(block, attribute, None if gains(block) else nn.Identity())


def _insert(backbone: nn.Module, place: Place, spot: Spot, se: SESpec) -> Site:
    weight = next(backbone.parameters())
    with torch.device("meta") if weight.is_meta else contextlib.nullcontext():
        unit = build_unit(se, spot.channels)
    unit = unit.to(device=weight.device, dtype=weight.dtype).train(backbone.training)
    path = _attach(backbone, spot, unit)
    return Site(place.name, place.stage, place.unit, spot.channels, unit.hidden, se.insertion, path)


def _attach(backbone: nn.Module, spot: Spot, unit: Unit) -> str:
    """Hang the unit on its host, and return its path."""
    parent, _, attribute = spot.host.rpartition(".")
    host = getattr(backbone.get_submodule(parent), attribute)
    if spot.how == "swap" or (spot.how == "slot" and (host is None or isinstance(host, nn.Identity))):
        setattr(backbone.get_submodule(parent), attribute, unit)
        return spot.host
    if host is None:  # a shortcut that is the identity
        host = nn.Identity()
        setattr(backbone.get_submodule(parent), attribute, host)
    if spot.how in ("block", "added", "argument"):  # a block may have an attribute `se` of its own
        child = "se_unit"
        host.add_module(child, unit)
        if spot.how == "argument":
            host.register_forward_pre_hook(scale_shortcut_argument)
        elif spot.how == "added":
            host.register_forward_hook(scale_added_shortcut)
        else:
            host.register_forward_hook(scale_block_channels_last if spot.channels_last else scale_block)
        return f"{spot.host}.{child}"
    host.add_module("se", unit)
    if spot.how == "input":
        host.register_forward_pre_hook(scale_input_channels_last if spot.channels_last else scale_input)
    elif not is_sequential(host):  # in a Sequential the child simply runs last
        host.register_forward_hook(scale_output)
    return f"{spot.host}.se"


# The hooks are functions of this module, so that a patched net can be pickled, copied, scripted and exported.
# `self` is Any because TorchScript compiles them as methods of the host.
def scale_input(self: Any, inputs: tuple[Tensor]) -> Tensor:
    """Forward pre-hook: the host sees its input, (N, C, H, W), scaled by the host's SE unit."""
    scaled: Tensor = self.se(inputs[0])
    return scaled


def scale_input_channels_last(self: Any, inputs: tuple[Tensor]) -> Tensor:
    """Forward pre-hook: the host sees its input, (N, H, W, C), scaled by the host's SE unit."""
    scaled: Tensor = self.se(inputs[0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return scaled


def scale_output(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: the host's output, (N, C, H, W), is scaled by the host's SE unit."""
    scaled: Tensor = self.se(output)
    return scaled


def scale_block(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: the block's output, (N, C, H, W), is scaled by the block's SE unit."""
    scaled: Tensor = self.se_unit(output)
    return scaled


def scale_block_channels_last(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: the block's output, (N, H, W, C), is scaled by the block's SE unit."""
    scaled: Tensor = self.se_unit(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return scaled


def scale_added_shortcut(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: in the block's output, branch + x, the shortcut x is scaled by the block's SE unit.

    With a gate of 1 the output is what it was, to the bit: x · 1 − x is 0.
    """
    x = inputs[0]
    scaled: Tensor = output + (self.se_unit(x) - x)
    return scaled


def scale_shortcut_argument(self: Any, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: the block's shortcut, its second argument or else x, is scaled by the block's SE unit."""
    x, *rest = inputs
    shortcut = rest[0] if rest and rest[0] is not None else x
    return (x, self.se_unit(shortcut), *rest[1:])
