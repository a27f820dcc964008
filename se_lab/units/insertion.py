"""Insert attention units into a net at the places that a spec describes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from se_lab.spec import SESpec, SpecError, check_choice
from se_lab.units.hosts import attach, watch
from se_lab.units.paths import Example, at_paths, own_attention
from se_lab.units.places import Place, Spot, choose, gains, name_of, survey
from se_lab.units.places import find_places as find_places
from se_lab.units.table import build_unit
from se_lab.units.unit import Unit


@dataclass(frozen=True)
class Site:
    """One inserted unit.

    Examples:
        >>> model = create_model(ModelSpec("cifar_resnet20"), num_classes=10)
        >>> model.se_sites[0].name, model.se_sites[0].channels, model.se_sites[0].path
        ('SE_2_1', 16, 'layer1.0.se')
    """

    name: str
    """SE_{stage}_{unit}, as in the paper, or the name from `at`."""
    stage: int
    unit: int
    channels: int
    """The number of channels that the unit scales."""
    hidden: int | None
    """The width of the unit's bottleneck, or None; for SE C // r, at least 1."""
    insertion: str
    path: str
    """The unit's path, for `get_submodule`."""


def insert_se(
    net: nn.Module,
    se: SESpec,
    existing_se: str = "refuse",
    at: Sequence[str] | Mapping[str, str] | None = None,
    example: Example = None,
) -> list[Site]:
    """Insert units into a net in place; return their sites and store them in `net.se_sites`.

    Other modules keep their state-dict keys. Call this function before creating the optimizer.

    Args:
        net: A net from timm, torchvision or SE-Lab whose blocks are in the family tables, or, with `at`, any net; not
            wrapped by DistributedDataParallel or torch.compile.
        se: The units and their positions.
        existing_se: For a net that already has channel attention: refuse (an error); keep (add the units of `se` as
            well); replace (with insertion standard, replace each existing unit by one of `se`; with none, remove the
            existing units; with others, remove them and add units of `se` to the same blocks).
        at: Paths of modules whose outputs, (N, C, H, W), get one unit each: ["layer1.0", "layer1.1.bn2"], or a mapping
            from unit names, {"first": "layer1.0"}.
        example: With `at`, an input of the net, or a tuple of its inputs. It is needed for modules without an attribute
            such as out_channels: a forward pass in eval mode finds their channels.

    Raises:
        SpecError: for a net without known blocks, a stage, an insertion or a path that the net does not have, an
            unknown number of channels, or existing attention with refuse.

    Examples:
        >>> import timm
        >>> net = timm.create_model("resnet18")
        >>> sites = insert_se(net, SESpec(reduction=8))
        >>> len(sites), net.get_submodule(sites[0].path).hidden
        (8, 8)
    """
    check_choice("model.existing_se", existing_se, ("refuse", "keep", "replace"))
    _check_plain(net)
    if at is None:
        places = survey(net)
        own_hosts = [spot.host for place in places for spot in place.own]
        placements = choose(places, se, existing_se, name_of(net))
    else:
        own_hosts = own_attention(net, existing_se)
        placements = at_paths(net, se, at, example, existing_se)
    if existing_se == "replace":
        swapped_hosts = {spot.host for _, spot in placements if spot.how == "swap"}
        for host in own_hosts:
            if host not in swapped_hosts:
                _clear(net, host)
    sites = [_insert(net, place, spot, se) for place, spot in placements]
    watch(net, {site.name: spot.host for site, (_, spot) in zip(sites, placements, strict=True) if _on_norm(net, spot)})
    net.se_sites = sites  # type: ignore[assignment]
    return sites


def _check_plain(net: nn.Module) -> None:
    """Raise SpecError for a net that already has units, or is wrapped, compiled or scripted."""
    if any(isinstance(module, Unit) for module in net.modules()):
        raise SpecError(f"{name_of(net)} already has units of SE-Lab; create a new net for another insertion")
    wrapped = isinstance(net, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    if wrapped or hasattr(net, "_orig_mod") or isinstance(net, torch.jit.ScriptModule):
        raise SpecError(
            f"the net is a {type(net).__name__}, which does not run added modules; insert units before the net is "
            "wrapped, compiled or scripted"
        )


def _clear(net: nn.Module, host: str) -> None:
    """Remove an existing attention module from the net."""
    parent, _, attribute = host.rpartition(".")
    block = net.get_submodule(parent)
    setattr(block, attribute, None if gains(block) else nn.Identity())


def _insert(net: nn.Module, place: Place, spot: Spot, se: SESpec) -> Site:
    weight = next(net.parameters(), torch.empty(0))
    with torch.device("meta") if weight.is_meta else contextlib.nullcontext():
        unit = build_unit(se, spot.channels)
    unit = unit.to(device=weight.device, dtype=weight.dtype).train(net.training)
    path = _attach(net, spot, unit)
    return Site(place.name, place.stage, place.unit, spot.channels, unit.hidden, se.insertion, path)


def _attach(net: nn.Module, spot: Spot, unit: Unit) -> str:
    """Attach a unit to its host; return the unit's path."""
    parent, _, attribute = spot.host.rpartition(".")
    block = net.get_submodule(parent)
    host = getattr(block, attribute)
    if spot.how == "swap" or (spot.how == "slot" and (host is None or isinstance(host, nn.Identity))):
        setattr(block, attribute, unit)
        return spot.host
    if host is None:  # an identity shortcut
        host = nn.Identity()
        setattr(block, attribute, host)
    return f"{spot.host}.{attach(host, spot.how, spot.channels_last, unit)}"


def _on_norm(net: nn.Module, spot: Spot) -> bool:
    """Return whether a unit scales the output of a batch norm, which conversions would replace."""
    host = net.get_submodule(spot.host) if spot.how in ("output", "shortcut", "slot", "block") else None
    return isinstance(host, nn.modules.batchnorm._BatchNorm)
