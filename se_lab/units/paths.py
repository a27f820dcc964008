"""Places for units by module path, for `insert_se(at=…)` on any net."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from se_lab.spec import SESpec, SpecError, nearest
from se_lab.spec.text import listed
from se_lab.units.hosts import is_sequential
from se_lab.units.places import Place, Spot, kind_of, own_channels, own_units, post_channels, strides

Example = Tensor | tuple[Tensor, ...] | None


def own_attention(net: nn.Module, existing_se: str) -> list[str]:
    """Return the paths of a net's existing channel attention.

    Raises:
        SpecError: if there is any and `existing_se` is refuse.
    """
    paths = own_units(net)
    if paths and existing_se == "refuse":
        raise SpecError(
            f"{kind_of(net)} already has channel attention, at {listed(paths, 1)}; set existing_se to keep or replace"
        )
    return paths


def at_paths(
    net: nn.Module, se: SESpec, at: Sequence[str] | Mapping[str, str], example: Example, existing_se: str
) -> list[tuple[Place, Spot]]:
    """Return a place for each path, in order, named by the mapping's key or by the path.

    A name such as SE_3_2 gives the stage and the unit. Otherwise the modules of one container are a stage (a child of
    the net itself is a stage of its own), and stages and units are numbered from 1.

    Raises:
        SpecError: as `insert_se` does.
    """
    if isinstance(at, str):
        raise SpecError(f"at is {at!r}; it must be a list of module paths, or a mapping of names to paths: [{at!r}]")
    paths = dict(at) if isinstance(at, Mapping) else {path: path for path in at}
    _check_names(net, se, paths, len(at))
    if se.insertion == "none":
        return []
    own_paths = own_units(net)
    if existing_se == "replace":
        _check_removed(paths.values(), own_paths)
    widths = _probe(net, paths.values(), example)
    placements = []
    stages = list(dict.fromkeys(path.rpartition(".")[0] or path for path in paths.values()))
    count: dict[int, int] = {}
    for name, path in paths.items():
        module = net.get_submodule(path)
        stage = stages.index(path.rpartition(".")[0] or path) + 1
        count[stage] = unit = count.get(stage, 0) + 1
        if match := re.fullmatch(r"SE_(\d+)_(\d+)(_\d+)?", name):
            stage, unit = int(match[1]), int(match[2])
        channels = widths.get(path) or (own_channels(net, path, ()) if path in own_paths else _stated_width(module))
        if path in own_paths and existing_se == "replace":
            spot = Spot(path, "swap", channels)
        else:
            if not channels:
                raise SpecError(
                    f"at has {path}, a {type(module).__name__} with an unknown number of output channels; give an "
                    "input of the net, such as insert_se(…, example=torch.zeros(1, 3, 224, 224))"
                )
            spot = Spot(path, "output" if is_sequential(module) else "block", channels)
        placements.append((Place(name, stage, unit, path, strides(module), {se.insertion: spot}), spot))
    return placements


def _check_names(net: nn.Module, se: SESpec, paths: Mapping[str, str], count: int) -> None:
    default = SESpec()
    fields = [name for name in ("stages", "units") if getattr(se, name) != getattr(default, name)]
    fields += ["insertion"] if se.insertion not in ("standard", "none") else []
    if fields:
        raise SpecError(
            f"{fields[0]} is {getattr(se, fields[0])!r}; with at, which names the places, leave it at its default"
        )
    modules = dict(net.named_modules())
    if not paths or len(paths) < count or len(set(paths.values())) < len(paths):
        raise SpecError(f"at is {list(paths.values())!r}; it must have at least one module, and no module twice")
    for path in paths.values():
        if not path or path not in modules:
            raise SpecError(f"at has {path!r}, which is not a module of {kind_of(net)}{nearest(path, modules)}")
        if isinstance(modules[path], (nn.ModuleList, nn.ModuleDict)):
            raise SpecError(f"at has {path}, a {type(modules[path]).__name__}, which is never called; name its items")


def _check_removed(paths: Iterable[str], own_paths: Sequence[str]) -> None:
    """Raise SpecError for a path inside existing attention, which will be removed."""
    for path in paths:
        if host := next((host for host in own_paths if path.startswith(f"{host}.")), None):
            raise SpecError(
                f"at has {path}, a part of the existing attention {host}, which existing_se=replace removes; name "
                f"{host} instead"
            )


def _probe(net: nn.Module, paths: Iterable[str], example: Example) -> dict[str, int]:
    """Return each module's output channels in a forward pass of the example; {} without one."""
    if example is None:
        return {}
    shapes: dict[str, list[object]] = {path: [] for path in paths}
    modes = {module: module.training for module in net.modules()}
    handles = [
        net.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: shapes[path].append(getattr(output, "shape", type(output)))
        )
        for path in shapes
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net.eval()(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    for path, calls in shapes.items():
        if len(calls) != 1:
            raise SpecError(f"at has {path}, which is called {len(calls)} times in a forward pass; it must be once")
        if not isinstance(calls[0], torch.Size) or len(calls[0]) != 4:
            description = tuple(calls[0]) if isinstance(calls[0], torch.Size) else calls[0]
            raise SpecError(f"at has {path}, whose output is {description}; it must be (N, C, H, W)")
    return {path: calls[0][1] for path, calls in shapes.items()}  # type: ignore[index]


_KEEP_WIDTH = ("activation", "batchnorm", "dropout", "pooling", "linear")
"""Files of torch.nn whose modules keep the number of channels (in `linear`, only Identity)."""


def _stated_width(module: nn.Module) -> int:
    """Return the output channels that a module's attributes give, or 0."""
    for attribute in ("out_channels", "num_features", "num_channels"):
        if isinstance(width := getattr(module, attribute, None), int):
            return width
    if is_sequential(module):
        for child in reversed(list(module.children())):
            if width := _stated_width(child):
                return width
            if type(child).__module__ not in {f"torch.nn.modules.{kind}" for kind in _KEEP_WIDTH}:
                return 0
    return post_channels(module)
