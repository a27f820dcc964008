"""What a net costs: parameters and multiply-accumulates, counted, or by the closed form."""

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
    """The cost of one image's forward pass. 1 FLOP = 1 multiply-accumulate (MAC), as in the paper.

    Examples:
        >>> cost = profile(create_model(ModelSpec("cifar_resnet20"), num_classes=10), (3, 32, 32))
        >>> cost.macs_se == cost.params_se  # each weight of a unit is used once an image
        True
    """

    params: int
    """Trainable parameters."""
    params_se: int
    """Those of the SE units."""
    macs: int
    """Multiply-accumulates of convolutions and linears."""
    macs_se: int
    """Those of the SE units."""
    elementwise: int
    """Operations of everything else that is counted: norms (2 an element, as fvcore has it), pools, means, gates,
    activations, scalings and additions (1 an element of the larger side)."""
    elementwise_se: int
    """Those of the SE units: squeeze, inner ReLU, gate and scale."""
    activations: int
    """Elements that convolutions and linears put out."""
    by_module: dict[str, ModuleCost] = dataclasses.field(repr=False)
    """Costs by module path; "" is the whole net. Empty where the closed form gave the costs."""
    uncounted: dict[str, int]
    """Operators that neither fvcore nor SE-Lab counts, and how often they ran."""


def profile(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Complexity:
    """Count a net with one traced forward pass of one image, (1, *input_size), in eval mode.

    The net's mode is restored; its weights and buffers are not touched.

    Examples:
        >>> model = create_model(ModelSpec("cifar_resnet20"), num_classes=10)
        >>> profile(model, (3, 32, 32)).params_se
        2016
    """
    by_module, uncounted = count(model, input_size)
    units = [by_module[path] for path, module in model.named_modules() if isinstance(module, Unit)]
    whole = by_module[""]
    return Complexity(
        params=whole.params,
        params_se=sum(unit.params for unit in units),
        macs=whole.macs,
        macs_se=sum(unit.macs for unit in units),
        elementwise=whole.elementwise,
        elementwise_se=sum(unit.elementwise for unit in units),
        activations=whole.activations,
        by_module=by_module,
        uncounted=uncounted,
    )


@dataclass(frozen=True)
class Trace:
    """A backbone counted once, from which the cost of each of its variants follows.

    `variant` equals `profile` of the patched net exactly: units are counted on their own, by their closed forms or
    once for each (unit, C, H, W) by fvcore.
    """

    backbone: str
    existing_se: str
    base: Complexity
    """The net with insertion none."""
    places: tuple[Place, ...]
    sizes: Mapping[str, tuple[int, int]]
    """Height and width of the map at each spot."""

    def variant(self, se: SESpec) -> Complexity:
        """Return the costs of the backbone with these SE units, without building it.

        Raises:
            SpecError: as `insert_se`.
        """
        placements = choose(self.places, se, self.existing_se, self.backbone)
        costs = [self._unit_cost(se, place, spot) for place, spot in placements]
        join_cost = sum(  # SE(x) − x and adding it; the gain
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
    """Count a spec's backbone once, for `Trace.variant`; the spec's own SE units do not matter.

    Raises:
        SpecError: for a backbone that timm does not know or that has no known units.
    """
    with torch.device("meta"):
        net = build_backbone(dataclasses.replace(spec, pretrained=False), num_classes, input_size[0]).eval()
    places = tuple(survey(net))
    sizes = _sizes(net, places, input_size)
    insert_se(net, SESpec(insertion="none"), spec.existing_se if spec.existing_se == "replace" else "keep")
    net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):  # uninitialised numbers may be slow
            tensor.zero_()
    return Trace(name_of(net), spec.existing_se, profile(net, input_size), places, sizes)


@functools.lru_cache(maxsize=4096)
def _cost_of(unit: Callable[[int, SESpec], Unit], se: SESpec, channels: int, height: int, width: int) -> ModuleCost:
    """Return the cost of a unit for maps of (channels, height, width), by formula or one count by fvcore."""
    with torch.random.fork_rng(devices=[]):
        return unit(channels, se).cost(height, width)


def _key(spot: Spot) -> str:
    return f"{spot.host} {spot.how}"


def _sizes(net: nn.Module, places: Iterable[Place], input_size: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Return the size of the map at every spot, from one forward pass on the meta device."""
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
            if host is None:  # an empty slot at the branch's end, or a shortcut that is the identity
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
