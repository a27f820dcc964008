"""Put attention units into a net, exactly where a spec says: surgery on modules, not a fork of a library."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from se_lab.spec import SESpec, SpecError, check_choice
from se_lab.units.hosts import hang, watch
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
    """The paper's name, SE_{stage}_{unit}, or the name that `at` gave it."""
    stage: int
    unit: int
    channels: int
    """Channels that the unit scales."""
    hidden: int | None
    """Width of its bottleneck, for SE C // r, at least 1; None for a unit without one."""
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
    """Insert units into a net, in place, and return their sites, also stored in `net.se_sites`.

    Other modules keep their state-dict keys, for every insertion. Call it before creating the optimizer.

    Args:
        net: A net of timm's, torchvision's or SE-Lab's, whose blocks the family tables know, or with `at` any other;
            not wrapped by DistributedDataParallel or torch.compile.
        se: Which units, and where.
        existing_se: What to do about a net that has channel attention of its own: refuse; keep (those of `se` come
            in addition, at the family's places or on the outputs of `at`); replace (insertion standard: each of its
            units becomes one of SE-Lab's, where it is; none: its units are removed; any other: they are removed, and
            the blocks that had them take SE-Lab's there).
        at: Paths of modules whose outputs, (N, C, H, W), get a unit each: ["layer1.0", "layer1.1.bn2"], or under
            names of your own, {"first": "layer1.0"}. Their channels are those that a module says it returns.
        example: With `at`, an input of the net, or a tuple of its inputs, for modules that do not say their channels:
            one forward pass of it, in eval mode, counts them.

    Raises:
        SpecError: for a net without known blocks, a stage, an insertion or a path that it does not have, channels that
            cannot be known, or attention of its own to refuse.

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
    """Raise SpecError for a net that has units already, or that runs other code than its modules'."""
    if any(isinstance(module, Unit) for module in net.modules()):
        raise SpecError(f"{name_of(net)} already has SE-Lab's units; build it anew for another insertion")
    wrapped = isinstance(net, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    if wrapped or hasattr(net, "_orig_mod") or isinstance(net, torch.jit.ScriptModule):
        raise SpecError(
            f"the net is a {type(net).__name__}, which does not run modules that are added to it; insert units before "
            "the net is wrapped, compiled or scripted"
        )


def _clear(net: nn.Module, host: str) -> None:
    """Remove an attention unit that the net has of its own."""
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
    """Hang the unit on its host, and return its path."""
    parent, _, attribute = spot.host.rpartition(".")
    block = net.get_submodule(parent)
    host = getattr(block, attribute)
    if spot.how == "swap" or (spot.how == "slot" and (host is None or isinstance(host, nn.Identity))):
        setattr(block, attribute, unit)
        return spot.host
    if host is None:  # a shortcut that is the identity
        host = nn.Identity()
        setattr(block, attribute, host)
    return f"{spot.host}.{hang(host, spot.how, spot.channels_last, unit)}"


def _on_norm(net: nn.Module, spot: Spot) -> bool:
    """Tell whether a unit hangs on the output of a norm, which a conversion of norms would replace."""
    host = net.get_submodule(spot.host) if spot.how in ("output", "shortcut", "slot", "block") else None
    return isinstance(host, nn.modules.batchnorm._BatchNorm)
