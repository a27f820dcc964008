"""The places of a backbone that can take units, by the family tables, and a spec's choice among them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce as fold
from typing import Any, TypeVar

from torch import Tensor, nn

from se_lab.spec import SESpec, SpecError
from se_lab.units.families import ATTENTION, BY_STRIDE, FLAT, GAINED, LAYOUTS, STAGES, STEMS, UNIT_WHEN, Layout
from se_lab.units.hosts import is_sequential
from se_lab.units.unit import Unit

T = TypeVar("T")


@dataclass(frozen=True)
class Spot:
    """One place for an SE unit, in a backbone at hand."""

    host: str
    """Path of the module that the unit hangs on, or of the slot that it fills."""
    how: str
    """As in `families.Point`; block: on the output of the whole block; swap: in the place of the net's own unit."""
    channels: int
    channels_last: bool = False
    gained: bool = False
    """The block multiplies what comes from here by a gain (NFNets, for their own attention)."""


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
    strided: bool
    """The block reduces the resolution."""
    spots: dict[str, Spot]
    """Where each insertion goes: a unit without a shortcut has no identity."""
    own: tuple[Spot, ...] = ()
    """The channel attention that the backbone has there of its own."""


def find_places(backbone: nn.Module) -> list[Place]:
    """Return the units of a backbone that can take SE, in the order of the network.

    Raises:
        SpecError: where there is none.

    Examples:
        >>> import timm
        >>> places = find_places(timm.create_model("resnet18"))
        >>> len(places), places[0].name
        (8, 'SE_2_1')
    """
    return [place for place in survey(backbone) if place.spots]


def survey(backbone: nn.Module) -> list[Place]:
    """Return the places of `find_places`, then one without spots for each attention module outside any block.

    Raises:
        SpecError: where the backbone has no unit that the tables know.
    """
    modules = dict(backbone.named_modules())
    units = {path: (key, spots) for path, key, spots in _units(backbone, modules)}
    if not units:
        raise SpecError(
            f"{kind_of(backbone)} has no block that SE-Lab knows: name the modules whose outputs get units, as in "
            'insert_se(…, at=["layer1.0"]), or add its blocks to se_lab.LAYOUTS; se-lab models lists the backbones '
            "that can take units"
        )
    keys = list(dict.fromkeys(key for key, _ in units.values()))
    own_spots: dict[str, list[Spot]] = {path: [] for path in units}
    outside_spots: list[tuple[int, str, Spot]] = []
    current_stage = 1
    prefixes = tuple(f"{path}." for path, module in modules.items() if isinstance(module, Unit))  # skips their layers
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
    count: dict[int, int] = {}  # units a stage has so far

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
    """Return the spots that a spec's units go to; `backbone` is its name, for errors.

    Raises:
        SpecError: as `insert_se`.
    """
    spots = [spot for place in places for spot in place.own]
    if spots and existing_se == "refuse":
        raise SpecError(
            f"{backbone} has channel attention of its own, at {spots[0].host} and {len(spots) - 1} more places; "
            "set model.existing_se=keep or model.existing_se=replace"
        )
    if se.insertion == "none":
        return []
    stages = sorted({place.stage for place in places if place.spots})
    if se.stages != "all" and (missing := [stage for stage in se.stages if stage not in stages]):
        raise SpecError(
            f"model.se.stages asks for stage {', '.join(map(str, missing))}; "
            f"{backbone} has {', '.join(map(str, stages))}"
        )
    placements: list[tuple[Place, Spot]] = []
    for place in places:
        if (se.stages != "all" and place.stage not in se.stages) or (se.units == "stride_1" and place.strided):
            continue
        if spots and existing_se == "replace" and se.insertion == "standard":
            for number, spot in enumerate(place.own, 1):  # names seed the weights: each unit needs its own
                name = place.name if number == 1 else f"{place.name}_{number}"
                placements.append((replace(place, name=name), spot))
        elif se.insertion in place.spots and (place.own or not spots or existing_se == "keep"):
            placements.append((place, place.spots[se.insertion]))
    if not placements:
        insertions = sorted({insertion for place in places for insertion in place.spots})
        raise SpecError(
            f"model.se.insertion is {se.insertion!r}, for which {backbone} has no place in the units asked for; "
            f"it has {', '.join(insertions)}"
        )
    return placements


def name_of(backbone: nn.Module) -> str:
    """Return timm's name of a backbone, or its class."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(backbone).__name__


def kind_of(net: nn.Module) -> str:
    """Return a net's name and its class with the library that it comes from, for errors."""
    cls = f"{type(net).__module__}.{type(net).__qualname__}"
    return f"{name} ({cls})" if (name := name_of(net)) != type(net).__name__ else cls


def own_units(net: nn.Module) -> list[str]:
    """Return the paths of the channel attention that a net has of its own."""
    return [path for path, module in net.named_modules() if row_of(module, ATTENTION)]


def post_channels(block: nn.Module) -> int:
    """Return the channels of a known block's output, 0 for another module."""
    for point in (row_of(block, LAYOUTS) or {}).get("post", ()):
        if not point.host and _holds(block, point.when):
            return _channels(block, point.channels)
    return 0


def gains(block: nn.Module) -> bool:
    """Tell whether a block multiplies its own attention's output by a gain."""
    return row_of(block, dict.fromkeys(GAINED, True)) is not None


def _units(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Hashable, dict[str, Spot]]]:
    """Yield each block's path, stage key and spots, in the order of the network."""
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
        while how == "input" and is_sequential(module):  # its child would run last: hang it on the first module
            name, module = next(iter(module.named_children()))
            host = f"{host}.{name}"
        full = f"{path}.{host}" if host else path
        yield insertion, Spot(full, "block" if full == path and how == "output" else how, channels, point.channels_last)


def own_channels(backbone: nn.Module, path: str, spots: Iterable[Spot]) -> int:
    """Return the channels that a net's own attention scales: its slot's, its layers' input's, or its predecessor's."""
    for spot in spots:
        if spot.host == path:
            return spot.channels
    if width := _width(backbone.get_submodule(path), _TAKES):
        return width
    parent, _, attribute = path.rpartition(".")
    channels = 0
    for name, module in backbone.get_submodule(parent).named_children():  # ECA's layers do not know their channels
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
    """Return a module's output (or input) channels: those of its last (or first) layer that has any."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) or hasattr(m, "weight")]
    for layer in layers if attributes is _TAKES else reversed(layers):
        if isinstance(layer, nn.Conv1d):
            continue
        for attribute in attributes:
            width = getattr(layer, attribute, None)
            if width is not None:
                return int(width[-1] if isinstance(width, tuple) else width)
        weight = layer.weight
        if isinstance(weight, Tensor) and weight.dim() == 1:  # a norm that does not keep its width
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
    """Tell whether a module or one inside it has a stride above 1."""
    steps = (getattr(m, "stride", 1) for m in module.modules())
    return any(max(s) > 1 if isinstance(s, tuple) else isinstance(s, int) and s > 1 for s in steps)


def row_of(module: nn.Module, table: Mapping[str, T]) -> T | None:
    """Return a table's row for a module's class or its nearest parent class; None if there is none."""
    for cls in type(module).__mro__:
        row = table.get(f"{cls.__module__}.{cls.__qualname__}")
        if row is not None:
            return row
    return None


def _above(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
