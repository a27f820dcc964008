"""From a ModelSpec to a net: timm's backbone, its weights, and the SE units."""

from __future__ import annotations

import math

import timm
import torch
from torch import nn

import se_lab.backbones  # noqa: F401  (registers SE-Lab's own nets with timm)
from se_lab.insertion import Site, insert_se
from se_lab.spec import ModelSpec, SpecError, nearest, seed_of


def create_model(spec: ModelSpec, num_classes: int, in_chans: int = 3, *, seed: int = 0) -> nn.Module:
    """Build the net of a spec, with its SE units listed in `model.se_sites`.

    Weights come from streams keyed by name: the backbone's by (seed, parameter), a unit's by (seed, site). All
    variants of one seed therefore start from equal backbone weights, and equal sites from equal units.

    Args:
        spec: The backbone and its SE units.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input images, (N, in_chans, H, W).
        seed: Seeds every weight that is drawn.

    Raises:
        SpecError: for a backbone timm does not know, arguments it refuses, or SE units that do not fit.
    """
    if not timm.is_model(spec.backbone):
        raise SpecError(
            f"model.backbone is {spec.backbone!r}, which neither timm nor SE-Lab has"
            f"{nearest(spec.backbone, timm.list_models())}; timm.list_models('*part*') searches"
        )
    with torch.random.fork_rng(devices=[]):  # timm draws from the global stream: lend it ours
        torch.manual_seed(seed_of(seed, "weights"))
        try:
            model: nn.Module = timm.create_model(
                spec.backbone,
                pretrained=spec.pretrained is True,
                num_classes=num_classes,
                in_chans=in_chans,
                **spec.kwargs,
            )
        except TypeError as error:
            raise SpecError(f"model.kwargs is {spec.kwargs!r}, and {spec.backbone} says: {error}") from error
    if spec.pretrained is False and spec.init != "timm":
        _he_init(model, seed)
        if spec.init == "zero_init_last":
            _zero_init_last(model, spec.backbone)
    if isinstance(spec.pretrained, str):
        _load_plain_weights(model, spec.pretrained)
    sites: list[Site] = insert_se(model, spec.se, spec.existing_se)
    for site in sites:
        unit = model.get_submodule(site.path)
        unit.reset_parameters(_stream(seed, "se", site.name))  # type: ignore[operator]
    model.se_sites = sites  # type: ignore[assignment]
    return model


def _stream(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def _he_init(model: nn.Module, seed: int) -> None:
    """He et al. 2015: convolutions normal with variance 2 / fan-out, norms 1 and 0; the classifier stays timm's."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.is_meta:
            continue
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) / module.groups
            draw = torch.randn(weight.shape, generator=_stream(seed, "weights", name))
            with torch.no_grad():
                weight.copy_(draw * math.sqrt(2 / fan_out))
                if module.bias is not None:
                    module.bias.zero_()
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(weight)
            nn.init.zeros_(module.bias)


def _zero_init_last(model: nn.Module, backbone: str) -> None:
    blocks = [module for module in model.modules() if module is not model and hasattr(module, "zero_init_last")]
    if not blocks:
        raise SpecError(f"model.init is 'zero_init_last', and {backbone} has no residual branch that ends in a norm")
    for block in blocks:
        block.zero_init_last()  # type: ignore[operator]


def _load_plain_weights(model: nn.Module, path: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpecError(f"model.pretrained is {path!r}, and there is no such file") from None
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or misshapen:
        raise SpecError(
            f"model.pretrained is {path!r}, which does not fit: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape {misshapen[:5]} ({len(missing)}, {len(unexpected)} and {len(misshapen)} in all)"
        )
    model.load_state_dict(state)
