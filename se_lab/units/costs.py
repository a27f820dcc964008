"""What a net costs: parameters and multiply-accumulates, counted by fvcore with handles for what it leaves out."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import addmm_flop_jit, conv_flop_jit, linear_flop_jit
from torch import Tensor, nn

from se_lab.spec import ModelSpec, SESpec
from se_lab.units.insertion import insert_se
from se_lab.units.model import build_backbone, create_model
from se_lab.units.places import Place, Spot, choose, name_of, survey
from se_lab.units.squeeze_excite import SqueezeExcite, hidden_width

MAC_OPS = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum")
"""fvcore's names for what counts as multiply-accumulates: convolutions, linears and matrix products."""


@dataclass(frozen=True)
class ModuleCost:
    """The cost of one module, its children included."""

    params: int
    macs: int
    elementwise: int
    activations: int


@dataclass(frozen=True)
class Complexity:
    """The cost of one image's forward pass. 1 FLOP = 1 multiply-accumulate (MAC), as in the paper."""

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
    by_module: dict[str, ModuleCost]
    """Costs by module path; "" is the whole net. Empty where the closed form gave the costs."""
    uncounted: dict[str, int]
    """Operators that neither fvcore nor SE-Lab counts, and how often they ran."""


def profile(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Complexity:
    """Count a net with one traced forward pass of one image, (1, *input_size), in eval mode.

    The net's mode is restored; its weights and buffers are not touched.
    """
    training = {module: module.training for module in model.modules()}
    weight = next(model.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    try:
        analysis = FlopCountAnalysis(model.eval(), image).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False).tracer_warnings("none").set_op_handle(**_handles())
        with torch.no_grad():
            counts = analysis.by_module_and_operator()
        uncounted = dict(analysis.unsupported_ops())
    finally:
        for module, mode in training.items():
            module.training = mode
    by_module = {path: _module_cost(module, counts[path]) for path, module in model.named_modules() if path in counts}
    units = [by_module[path] for path, module in model.named_modules() if isinstance(module, SqueezeExcite)]
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
    """A backbone counted once, from which the closed form gives the cost of each of its SE variants.

    `variant` equals `profile` of the patched net to the unit, for the operators that come with SE-Lab.
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
        chosen = choose(self.places, se, self.existing_se, self.backbone)
        costs = [_unit_cost(spot, se, *self.sizes[_key(spot)]) for _, spot in chosen]
        beside = sum(  # SE(x) − x and adding it; the gain
            (2 * (spot.how == "added") + spot.gained) * spot.channels * math.prod(self.sizes[_key(spot)])
            for _, spot in chosen
        )
        return dataclasses.replace(
            self.base,
            params=self.base.params + sum(cost.params for cost in costs),
            params_se=sum(cost.params for cost in costs),
            macs=self.base.macs + sum(cost.macs for cost in costs),
            macs_se=sum(cost.macs for cost in costs),
            elementwise=self.base.elementwise + sum(cost.elementwise for cost in costs) + beside,
            elementwise_se=sum(cost.elementwise for cost in costs),
            activations=self.base.activations + sum(cost.activations for cost in costs),
        )


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
        for tensor in (*net.parameters(), *net.buffers()):  # what memory held may slow a processor down
            tensor.zero_()
    return Trace(name_of(net), spec.existing_se, profile(net, input_size), places, sizes)


def count_variant(spec: ModelSpec, traced: Trace, num_classes: int, input_size: tuple[int, int, int]) -> Complexity:
    """Return the costs of a spec from its backbone's trace, or, with operators of a user's own, by counting the net."""
    if spec.se.insertion == "none" or (spec.se.squeeze in _POOLS and spec.se.excitation in _ELEMENTWISE):
        return traced.variant(spec.se)
    net = create_model(dataclasses.replace(spec, pretrained=False, init="timm"), num_classes, input_size[0])
    return profile(net, input_size)


_POOLS = ("avg", "max", "none")
_ELEMENTWISE = ("sigmoid", "tanh", "relu")


def _unit_cost(spot: Spot, se: SESpec, height: int, width: int) -> ModuleCost:
    channels, hidden = spot.channels, hidden_width(spot.channels, se.reduction)
    pixels = height * width
    gates = pixels if se.squeeze == "none" else 1
    squeeze = 0 if se.squeeze == "none" else channels * pixels
    return ModuleCost(
        params=2 * channels * hidden + se.bias * (hidden + channels),
        macs=2 * channels * hidden * gates,
        elementwise=squeeze + (hidden + channels) * gates + channels * pixels,
        activations=(hidden + channels) * gates,
    )


def _key(spot: Spot) -> str:
    return f"{spot.host} {spot.how}"


def _sizes(net: nn.Module, places: Iterable[Place], input_size: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Return the size of the map at every spot, from one forward pass on the meta device."""
    seen: dict[str, tuple[int, int]] = {}
    fallback: dict[str, str] = {}
    handles = []

    def note(key: str, channels_last: bool, side: int) -> Callable[..., None]:
        def hook(module: nn.Module, *values: Any) -> None:
            value = values[side]
            while not isinstance(value, Tensor):
                value = value[0]
            seen[key] = (value.shape[1], value.shape[2]) if channels_last else (value.shape[2], value.shape[3])

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
    return seen | {key: seen[path] for key, path in fallback.items()}


def _module_cost(module: nn.Module, counts: Counter[str]) -> ModuleCost:
    macs = sum(counts[op] for op in MAC_OPS)
    activations = counts[_ACTIVATIONS]
    params = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return ModuleCost(params, int(macs), int(sum(counts.values()) - macs - activations), int(activations))


_ACTIVATIONS = "activations"
Handle = Callable[[list[Any], list[Any]], Any]


def _handles() -> dict[str, Handle]:
    reads = ("mean", "sum", "amax", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d")  # one operation an input element
    writes = ("add", "mul", "sub", "div", "sigmoid", "tanh", "relu", "silu", "gelu", "hardsigmoid", "hardswish")
    handles: dict[str, Handle] = {f"aten::{op}": _elements_read for op in reads}
    for op in writes:
        handles[f"aten::{op}"] = handles[f"aten::{op}_"] = _elements_written
    for op, name, macs in (
        ("_convolution", "conv", conv_flop_jit),
        ("addmm", "addmm", addmm_flop_jit),
        ("linear", "linear", linear_flop_jit),
    ):
        handles[f"aten::{op}"] = _with_activations(name, macs)
    return handles


def _with_activations(name: str, macs: Handle) -> Handle:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        counted = macs(inputs, outputs)  # a number, or by the operator's name
        total = sum(counted.values()) if isinstance(counted, Mapping) else counted
        return Counter({name: total, _ACTIVATIONS: _elements_written(inputs, outputs)})

    return handle


def _elements_read(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(inputs[0].type().sizes() or ())


def _elements_written(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(outputs[0].type().sizes() or ())


logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
