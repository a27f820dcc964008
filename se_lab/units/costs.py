"""The cost of a net in parameters and multiply-accumulates, counted or in closed form."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from se_lab.spec import ModelSpec, SESpec
from se_lab.units.counting import ModuleCost, count
from se_lab.units.insertion import insert_se
from se_lab.units.model import build_backbone
from se_lab.units.places import Place, Spot, choose, name_of, survey
from se_lab.units.table import UNITS
from se_lab.units.unit import Unit


@dataclass(frozen=True)
class Complexity:
    """The cost of a forward pass of one image; 1 FLOP = 1 multiply-accumulate (MAC).

    Examples:
        >>> cost = profile(create_model(ModelSpec("cifar_resnet20"), num_classes=10), (3, 32, 32))
        >>> cost.macs_se == cost.params_se  # each weight of a unit is used once per image
        True
    """

    params: int
    """Trainable parameters."""
    params_se: int
    """Trainable parameters of the units."""
    macs: int
    """Multiply-accumulates of convolutions and linear layers."""
    macs_se: int
    """Multiply-accumulates of the units."""
    elementwise: int
    """Other operations: norms (2 per element, as in fvcore), pooling, means, gates, activations, scaling and additions
    (1 per element of the larger of input and output)."""
    elementwise_se: int
    """Other operations of the units: squeeze, inner ReLU, gate and scale."""
    activations: int
    """Output elements of convolutions and linear layers."""
    by_module: dict[str, ModuleCost] = dataclasses.field(repr=False)
    """Costs by module path; "" is the whole net."""
    uncounted: dict[str, int]
    """Operators that neither fvcore nor SE-Lab counts, with their numbers of calls."""


def profile(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Complexity:
    """Count the cost of a net for one image of `input_size`, (C, H, W).

    A forward pass is traced in eval mode; the net's mode is restored, and weights and buffers are not changed.

    Examples:
        >>> model = create_model(ModelSpec("cifar_resnet20"), num_classes=10)
        >>> profile(model, (3, 32, 32)).params_se
        2016
    """
    by_module, uncounted = count(model, input_size)
    units = [by_module[path] for path, module in model.named_modules() if isinstance(module, Unit)]
    total = by_module[""]
    return Complexity(
        params=total.params,
        params_se=sum(unit.params for unit in units),
        macs=total.macs,
        macs_se=sum(unit.macs for unit in units),
        elementwise=total.elementwise,
        elementwise_se=sum(unit.elementwise for unit in units),
        activations=total.activations,
        by_module=by_module,
        uncounted=uncounted,
    )


@dataclass(frozen=True)
class Trace:
    """The cost of a backbone, from which the costs of all its variants are computed.

    `variant` equals `profile` of the patched net exactly: the cost of a unit is its closed form, or is counted by
    fvcore once for each (unit, C, H, W).
    """

    backbone: str
    existing_se: str
    base: Complexity
    """The cost of the net with insertion none."""
    places: tuple[Place, ...]
    sizes: Mapping[str, tuple[int, int]]
    """Height and width of the maps at each spot."""

    def variant(self, se: SESpec) -> Complexity:
        """Return the cost of the backbone with these units, without building the net.

        Raises:
            SpecError: as `insert_se` does.
        """
        placements = choose(self.places, se, self.existing_se, self.backbone)
        costs = [self._unit_cost(se, place, spot) for place, spot in placements]
        join_cost = sum(  # output + (SE(x) − x), and the gain of NFNets
            (2 * (spot.how == "added") + spot.gained) * spot.channels * math.prod(self.sizes[_key(spot)])
            for _, spot in placements
        )
        return dataclasses.replace(
            self.base,
            params=self.base.params + sum(cost.params for cost in costs),
            params_se=sum(cost.params for cost in costs),
            macs=self.base.macs + sum(cost.macs for cost in costs),
            macs_se=sum(cost.macs for cost in costs),
            elementwise=self.base.elementwise + sum(cost.elementwise for cost in costs) + join_cost,
            elementwise_se=sum(cost.elementwise for cost in costs),
            activations=self.base.activations + sum(cost.activations for cost in costs),
        )

    def _unit_cost(self, se: SESpec, place: Place, spot: Spot) -> ModuleCost:
        height, width = self.sizes[_key(spot)]
        unit: Any = UNITS[se.unit]
        unit.check_map(se.unit, f"{place.name} of {self.backbone}", height, width)
        unit_spec = dataclasses.replace(se, insertion="standard", stages="all", units="all", start="random")
        return _cost_of(unit, unit_spec, spot.channels, height, width)


def trace(spec: ModelSpec, num_classes: int = 1000, input_size: tuple[int, int, int] = (3, 224, 224)) -> Trace:
    """Count the cost of a spec's backbone for `Trace.variant`; the spec's units are ignored.

    Raises:
        SpecError: for a backbone that is unknown or has no known blocks.
    """
    with torch.device("meta"):
        net = build_backbone(dataclasses.replace(spec, pretrained=False), num_classes, input_size[0]).eval()
    places = tuple(survey(net))
    sizes = _sizes(net, places, input_size)
    insert_se(net, SESpec(insertion="none"), spec.existing_se if spec.existing_se == "replace" else "keep")
    net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):  # uninitialised values may be subnormal, which is slow
            tensor.zero_()
    return Trace(name_of(net), spec.existing_se, profile(net, input_size), places, sizes)


@functools.lru_cache(maxsize=4096)
def _cost_of(unit: Callable[[int, SESpec], Unit], se: SESpec, channels: int, height: int, width: int) -> ModuleCost:
    """Return the cost of a unit for maps of (channels, height, width)."""
    with torch.random.fork_rng(devices=[]):
        return unit(channels, se).cost(height, width)


def _key(spot: Spot) -> str:
    return f"{spot.host} {spot.how}"


def _sizes(net: nn.Module, places: Iterable[Place], input_size: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Return the size of the maps at each spot, from a forward pass on the meta device."""
    sizes: dict[str, tuple[int, int]] = {}
    fallback: dict[str, str] = {}
    handles = []

    def note(key: str, channels_last: bool, side: int) -> Callable[..., None]:
        def hook(module: nn.Module, *values: Any) -> None:
            value = values[side]
            while not isinstance(value, Tensor):
                value = value[0]
            sizes[key] = (value.shape[1], value.shape[2]) if channels_last else (value.shape[2], value.shape[3])

        return hook

    for place in places:
        block = net.get_submodule(place.path)
        channels_last = any(spot.channels_last for spot in place.spots.values())
        if place.spots:
            handles.append(block.register_forward_hook(note(place.path, channels_last, 1)))
        for spot in (*place.spots.values(), *place.own):
            parent, _, attribute = spot.host.rpartition(".")
            host = getattr(net.get_submodule(parent), attribute)
            if host is None:  # an empty slot at the end of the branch, or an identity shortcut
                fallback[_key(spot)] = place.path
            elif spot.how == "input":
                handles.append(host.register_forward_pre_hook(note(_key(spot), spot.channels_last, 0)))
            else:
                handles.append(host.register_forward_hook(note(_key(spot), spot.channels_last, 1)))
    try:
        with torch.no_grad():
            net(torch.empty(1, *input_size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return sizes | {key: sizes[path] for key, path in fallback.items()}
