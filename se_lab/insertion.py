"""Put SE units into a backbone, exactly where a spec says: surgery on modules, not a fork of timm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

from torch import Tensor, nn

from se_lab.families import LAYOUTS, Layout, Point
from se_lab.spec import SESpec, SpecError, check_choice
from se_lab.squeeze_excite import SqueezeExcite


@dataclass(frozen=True)
class Place:
    """One unit (block) of a backbone, and the insertions it can take."""

    name: str
    """The paper's name, SE_{stage}_{unit}, units from 1."""
    stage: int
    """Stage 1 is the stem; the k-th container of units is stage k + 1 (ResNet: 2 to 5)."""
    unit: int
    """The unit's number within its stage, from 1."""
    path: str
    """The block's path in the backbone."""
    layout: Layout
    """Where in the block each insertion goes."""


@dataclass(frozen=True)
class Site:
    """One inserted SE unit."""

    name: str
    """The paper's name, SE_{stage}_{unit}."""
    stage: int
    unit: int
    channels: int
    """Channels the unit scales."""
    hidden: int
    """Width of its bottleneck, C // r, at least 1."""
    insertion: str
    path: str
    """What `get_submodule` takes to reach the SqueezeExcite."""


def find_places(backbone: nn.Module) -> list[Place]:
    """Return the units of a backbone that can take SE, in the order of the network.

    Raises:
        SpecError: where there is none, naming the block classes that are known.
    """
    places: list[Place] = []
    containers: dict[str, int] = {}  # path of a container of units -> how many it has so far
    for path, module in backbone.named_modules():
        layout = _layout_of(module)
        if layout is None:
            continue
        container = path.rpartition(".")[0]
        unit = containers[container] = containers.get(container, 0) + 1
        stage = list(containers).index(container) + 2
        places.append(Place(f"SE_{stage}_{unit}", stage, unit, path, layout))
    if not places:
        raise SpecError(f"{_name(backbone)} has no unit that SE-Lab knows; it knows {', '.join(sorted(LAYOUTS))}")
    return places


def insert_se(backbone: nn.Module, se: SESpec, existing_se: str = "refuse") -> list[Site]:
    """Insert SE units into a backbone, in place, and return where they are.

    What is not SE keeps its state-dict keys, for every insertion. Call it before the optimizer is made, and after any
    SyncBatchNorm conversion (timm's `convert_sync_batchnorm`, which keeps its fused norm-activation layers).

    Args:
        backbone: A timm model, not wrapped by DistributedDataParallel or torch.compile.
        se: Which units, and where.
        existing_se: What to do about a backbone that has channel attention of its own: refuse; keep (ours come in
            addition, after theirs); replace (theirs go, ours come; with insertion none theirs just go).

    Raises:
        SpecError: for a backbone without known units, a stage it has not got, or attention of its own to refuse.
    """
    check_choice("model.existing_se", existing_se, ("refuse", "keep", "replace"))
    if any(isinstance(module, SqueezeExcite) for module in backbone.modules()):
        raise SpecError(f"{_name(backbone)} already has SE-Lab's units; build it anew for another insertion")
    places = find_places(backbone)
    _settle_existing(backbone, places, existing_se)
    if se.insertion == "none":
        return []
    stages = sorted({place.stage for place in places})
    wanted = stages if se.stages == "all" else se.stages
    if missing := [stage for stage in wanted if stage not in stages]:
        raise SpecError(
            f"model.se.stages asks for stage {', '.join(map(str, missing))}; "
            f"{_name(backbone)} has {', '.join(map(str, stages))}"
        )
    return [_insert(backbone, place, se) for place in places if place.stage in wanted]


def _name(backbone: nn.Module) -> str:
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(backbone).__name__


def _layout_of(module: nn.Module) -> Layout | None:
    for cls in type(module).__mro__:
        if layout := LAYOUTS.get(f"{cls.__module__}.{cls.__qualname__}"):
            return layout
    return None


def _settle_existing(backbone: nn.Module, places: list[Place], existing_se: str) -> None:
    """Refuse attention that a family's own slots hold, leave it, or take it out."""
    blocks = [(place, backbone.get_submodule(place.path)) for place in places]
    slots = [(place, block, p.host) for place, block in blocks for p in place.layout.values() if p.how == "slot"]
    held = [(place, block, host) for place, block, host in slots if getattr(block, host) is not None]
    if not held:
        return
    if existing_se == "refuse":
        place, block, host = held[0]
        raise SpecError(
            f"{_name(backbone)} has channel attention of its own: {type(getattr(block, host)).__name__} at "
            f"{place.path}.{host} and {len(held) - 1} more; set model.existing_se=keep or model.existing_se=replace"
        )
    if existing_se == "replace":
        for _, block, host in held:
            setattr(block, host, None)


def _insert(backbone: nn.Module, place: Place, se: SESpec) -> Site:
    if se.insertion not in place.layout:
        raise SpecError(
            f"model.se.insertion is {se.insertion!r}, for which {_name(backbone)}'s {place.path} has no place; "
            f"it has {', '.join(place.layout)}"
        )
    point = place.layout[se.insertion]
    block = backbone.get_submodule(place.path)
    channels = fold(getattr, point.channels.split("."), block)
    assert isinstance(channels, int)
    weight = next(backbone.parameters())
    unit = SqueezeExcite(channels, se).to(device=weight.device, dtype=weight.dtype).train(backbone.training)
    path = f"{place.path}.{_attach(block, point, unit)}"
    return Site(place.name, place.stage, place.unit, channels, unit.reduce.out_features, se.insertion, path)


def _attach(block: nn.Module, point: Point, unit: SqueezeExcite) -> str:
    """Hang the unit on its host, and return its path from the block."""
    host = getattr(block, point.host)
    if host is None and point.how == "slot":
        setattr(block, point.host, unit)
        return point.host
    if host is None:  # a shortcut that is the identity
        host = nn.Identity()
        setattr(block, point.host, host)
    host.add_module("se", unit)
    if point.how == "input":
        host.register_forward_pre_hook(scale_input)
    elif not isinstance(host, nn.Sequential):  # in a Sequential the child simply runs last
        host.register_forward_hook(scale_output)
    return f"{point.host}.se"


# The hooks are functions of this module, so that a patched net can be pickled, copied, scripted and exported.
# `self` is Any because TorchScript compiles them as methods of the host.
def scale_input(self: Any, inputs: tuple[Tensor]) -> Tensor:
    """Forward pre-hook: the host sees its input, (N, C, H, W), scaled by the host's SE unit."""
    scaled: Tensor = self.se(inputs[0])
    return scaled


def scale_output(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: the host's output, (N, C, H, W), is scaled by the host's SE unit."""
    scaled: Tensor = self.se(output)
    return scaled
