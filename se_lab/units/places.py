"""Find the places of a backbone that can take units, and choose those that a spec describes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce as fold
from typing import Any, TypeVar

from torch import Tensor, nn

from se_lab.spec import SESpec, SpecError
from se_lab.spec.text import listed
from se_lab.units.families import ATTENTION, BY_STRIDE, FLAT, GAINED, LAYOUTS, STAGES, STEMS, UNIT_WHEN, Layout
from se_lab.units.hosts import is_sequential
from se_lab.units.unit import Unit

T = TypeVar("T")


@dataclass(frozen=True)
class Spot:
    """A position for a unit in a backbone."""

    host: str
    """The path of the module that the unit is attached to, or of the slot that it fills."""
    how: str
    """As in `families.Point`, or block (on the output of the block), or swap (in place of existing attention)."""
    channels: int
    channels_last: bool = False
    gained: bool = False
    """Whether the block multiplies the unit's output by a gain, as NFNets do."""


@dataclass(frozen=True)
class Place:
    """A block of a backbone that can take a unit."""

    name: str
    """SE_{stage}_{unit}, as in the paper."""
    stage: int
    """The stage: 1 is the stem, and the k-th container of blocks is stage k + 1 (ResNet: 2 to 5)."""
    unit: int
    """The number of the block within its stage, from 1."""
    path: str
    """The path of the block in the backbone."""
    strided: bool
    """Whether the block reduces the resolution."""
    spots: dict[str, Spot]
    """The spot of each insertion that the block can take."""
    own: tuple[Spot, ...] = ()
    """The existing channel attention of the block."""


def find_places(backbone: nn.Module) -> list[Place]:
    """Return the blocks of a backbone that can take units, in the order of the net.

    Raises:
        SpecError: if there are none.

    Examples:
        >>> import timm
        >>> places = find_places(timm.create_model("resnet18"))
        >>> len(places), places[0].name
        (8, 'SE_2_1')
    """
    return [place for place in survey(backbone) if place.spots]


def survey(backbone: nn.Module) -> list[Place]:
    """Return a backbone's blocks, and a place without spots per attention module elsewhere.

    Raises:
        SpecError: if the backbone has no known block.
    """
    modules = dict(backbone.named_modules())
    units = {path: (key, spots) for path, key, spots in _units(backbone, modules)}
    if not units:
        raise SpecError(
            f"{kind_of(backbone)} has no known blocks; name the modules whose outputs get units, as in "
            'insert_se(…, at=["layer1.0"]), or add the blocks to se_lab.LAYOUTS; se-lab models lists the backbones '
            "that can take units"
        )
    keys = list(dict.fromkeys(key for key, _ in units.values()))
    own_spots: dict[str, list[Spot]] = {path: [] for path in units}
    outside_spots: list[tuple[int, str, Spot]] = []
    current_stage = 1
    prefixes = tuple(f"{path}." for path, module in modules.items() if isinstance(module, Unit))  # to skip
    for path, module in modules.items():
        if path in units:
            current_stage = keys.index(units[path][0]) + 2
        if row_of(module, ATTENTION) and not path.startswith(prefixes):
            block = next((block for block in _above(path) if block in units), None)
            spots = units[block][1].values() if block else ()
            has_gain = gains(modules[path.rpartition(".")[0]])
            spot = Spot(path, "swap", own_channels(backbone, path, spots), gained=has_gain)
            if block:
                own_spots[block].append(spot)
            else:
                outside_spots.append((current_stage, path, spot))
    places: list[Place] = []
    count: dict[int, int] = {}  # units by stage

    def add(stage: int, path: str, spots: dict[str, Spot], own_spots: Sequence[Spot]) -> None:
        number = count[stage] = count.get(stage, 0) + 1
        name = f"SE_{stage}_{number}"
        places.append(Place(name, stage, number, path, strides(modules[path]), spots, tuple(own_spots)))

    for path, (key, block_spots) in units.items():
        add(keys.index(key) + 2, path, block_spots, own_spots[path])
    for stage, path, spot in outside_spots:
        add(stage, path, {}, [spot])
    return places


def choose(places: Sequence[Place], se: SESpec, existing_se: str, backbone: str) -> list[tuple[Place, Spot]]:
    """Return the places and spots of a spec's units; `backbone` is a name for errors.

    Raises:
        SpecError: as `insert_se` does.
    """
    spots = [spot for place in places for spot in place.own]
    if spots and existing_se == "refuse":
        raise SpecError(
            f"{backbone} already has channel attention, at {listed([spot.host for spot in spots], 1)}; "
            "set model.existing_se=keep or model.existing_se=replace"
        )
    if se.insertion == "none":
        return []
    stages = sorted({place.stage for place in places if place.spots})
    if se.stages != "all" and (missing := [stage for stage in se.stages if stage not in stages]):
        raise SpecError(
            f"model.se.stages has {', '.join(map(str, missing))}; "
            f"the stages of {backbone} are {', '.join(map(str, stages))}"
        )
    placements: list[tuple[Place, Spot]] = []
    for place in places:
        if (se.stages != "all" and place.stage not in se.stages) or (se.units == "stride_1" and place.strided):
            continue
        if spots and existing_se == "replace" and se.insertion == "standard":
            for number, spot in enumerate(place.own, 1):  # unique names, since they seed the weights
                name = place.name if number == 1 else f"{place.name}_{number}"
                placements.append((replace(place, name=name), spot))
        elif se.insertion in place.spots and (place.own or not spots or existing_se == "keep"):
            placements.append((place, place.spots[se.insertion]))
    if not placements:
        insertions = sorted({insertion for place in places for insertion in place.spots})
        raise SpecError(
            f"model.se.insertion is {se.insertion!r}, for which the chosen blocks of {backbone} have no place; "
            f"allowed are {', '.join(insertions)}"
        )
    return placements


def name_of(backbone: nn.Module) -> str:
    """Return timm's name of a backbone, or the name of its class."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(backbone).__name__


def kind_of(net: nn.Module) -> str:
    """Return a net's name and its class with module path, for errors."""
    cls = f"{type(net).__module__}.{type(net).__qualname__}"
    return f"{name} ({cls})" if (name := name_of(net)) != type(net).__name__ else cls


def own_units(net: nn.Module) -> list[str]:
    """Return the paths of a net's existing channel attention."""
    return [path for path, module in net.named_modules() if row_of(module, ATTENTION)]


def post_channels(block: nn.Module) -> int:
    """Return the output channels of a known block, or 0 for another module."""
    for point in (row_of(block, LAYOUTS) or {}).get("post", ()):
        if not point.host and _holds(block, point.when):
            return _channels(block, point.channels)
    return 0


def gains(block: nn.Module) -> bool:
    """Return whether a block multiplies the output of its attention by a gain."""
    return row_of(block, dict.fromkeys(GAINED, True)) is not None


def _units(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Hashable, dict[str, Spot]]]:
    """Yield each block's path, stage key and spots, in the order of the net."""
    rule = row_of(backbone, STAGES)
    container = row_of(backbone, FLAT)
    if container is not None:
        yield from _flat_units(container, modules[container])
        return
    stage = -1
    for path, block in modules.items():
        layout = row_of(block, LAYOUTS)
        if layout is None or path.startswith(STEMS) or not _holds(block, row_of(block, UNIT_WHEN) or ""):
            continue
        key: Hashable = path.rpartition(".")[0]
        if rule == BY_STRIDE:
            key = stage = stage + 1 if stage < 0 or strides(block) else stage
        elif rule is not None:
            key = next((number for number, start in enumerate(rule) if f"{path}.".startswith(start)), None)
            if key is None:
                continue
        yield path, key, dict(_spots(path, block, layout))


def _flat_units(container: str, features: nn.Module) -> Iterator[tuple[str, Hashable, dict[str, Spot]]]:
    pools = channels = 0
    for name, module in features.named_children():
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
        elif strides(module):
            pools += 1
        elif channels and not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            yield f"{container}.{name}", pools, {"standard": Spot(f"{container}.{name}", "block", channels)}
            channels = 0


def _spots(path: str, block: nn.Module, layout: Layout) -> Iterator[tuple[str, Spot]]:
    for insertion, points in layout.items():
        point = next((point for point in points if _holds(block, point.when)), None)
        if point is None:
            continue
        host, how = point.host, point.how
        channels = _channels(block, point.channels or (f">{host}" if how == "input" else host))
        module = _get(block, host)
        while how == "input" and is_sequential(module):  # a child of a Sequential runs last: use its first module
            name, module = next(iter(module.named_children()))
            host = f"{host}.{name}"
        full = f"{path}.{host}" if host else path
        yield insertion, Spot(full, "block" if full == path and how == "output" else how, channels, point.channels_last)


def own_channels(backbone: nn.Module, path: str, spots: Iterable[Spot]) -> int:
    """Return the number of channels of existing attention: of its slot, layers or predecessor."""
    for spot in spots:
        if spot.host == path:
            return spot.channels
    if width := _width(backbone.get_submodule(path), _TAKES):
        return width
    parent, _, attribute = path.rpartition(".")
    channels = 0
    for name, module in backbone.get_submodule(parent).named_children():  # ECA's layers do not have C
        if name == attribute:
            break
        channels = _width(module, _GIVES) or channels
    return channels


_GIVES = ("out_channels", "out_features", "num_features", "num_channels", "normalized_shape")
_TAKES = ("in_channels", "in_features", "num_features", "num_channels", "normalized_shape")


def _channels(block: nn.Module, terms: str) -> int:
    total = 0
    for term in terms.split("+"):
        value = _get(block, term.lstrip(">"))
        total += value if isinstance(value, int) else _width(value, _TAKES if term.startswith(">") else _GIVES)
    return total


def _width(module: nn.Module, attributes: tuple[str, ...]) -> int:
    """Return the output (or input) channels of a module's last (or first) layer that has any."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) or hasattr(m, "weight")]
    for layer in layers if attributes is _TAKES else reversed(layers):
        if isinstance(layer, nn.Conv1d):
            continue
        for attribute in attributes:
            width = getattr(layer, attribute, None)
            if width is not None:
                return int(width[-1] if isinstance(width, tuple) else width)
        weight = layer.weight
        if isinstance(weight, Tensor) and weight.dim() == 1:  # a norm without an attribute for its width
            return weight.numel()
    return 0


def _get(block: nn.Module, path: str) -> Any:
    return fold(getattr, path.split("."), block) if path else block


def _holds(block: nn.Module, when: str) -> bool:
    if not when:
        return True
    value: object = block
    for attribute in when.removeprefix("no ").split("."):
        value = getattr(value, attribute, None)
    return (value is None or value is False) == when.startswith("no ")


def strides(module: nn.Module) -> bool:
    """Return whether a module or one of its children has a stride above 1."""
    steps = (getattr(m, "stride", 1) for m in module.modules())
    return any(max(s) > 1 if isinstance(s, tuple) else isinstance(s, int) and s > 1 for s in steps)


def row_of(module: nn.Module, table: Mapping[str, T]) -> T | None:
    """Return the row of a table for a module's class or nearest parent class, or None."""
    for cls in type(module).__mro__:
        row = table.get(f"{cls.__module__}.{cls.__qualname__}")
        if row is not None:
            return row
    return None


def _above(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
