"""From a ModelSpec to a net: timm's backbone, its weights, and the SE units."""

from __future__ import annotations

import math
import pickle
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import convert_sync_batchnorm
from torch import nn

import se_lab.backbones  # noqa: F401  (registers SE-Lab's own nets with timm)
from se_lab.spec import ModelSpec, SpecError, expand_path, nearest, seed_of
from se_lab.units.fused import fuse
from se_lab.units.insertion import Site, insert_se
from se_lab.units.table import UNITS
from se_lab.units.unit import Unit


def create_model(
    spec: ModelSpec, num_classes: int, in_chans: int = 3, *, seed: int = 0, sync_bn: bool = False
) -> nn.Module:
    """Build the net of a spec, with its SE units listed in `model.se_sites`.

    Weights come from streams keyed by name: the backbone's by (seed, parameter), a unit's by (seed, site). All
    variants of one seed therefore start from equal backbone weights, and equal sites from equal units.

    Args:
        spec: The backbone and its SE units.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input images, (N, in_chans, H, W).
        seed: Seeds every weight that is drawn.
        sync_bn: Let batch norms see the images of all ranks.

    Raises:
        SpecError: for a backbone timm does not know, arguments it refuses, or SE units that do not fit.
    """
    with torch.random.fork_rng(devices=[]):  # timm draws from the global stream: lend it ours
        torch.manual_seed(seed_of(seed, "weights"))
        model = build_backbone(spec, num_classes, in_chans)
    if spec.pretrained is False and spec.init != "timm":
        _he_init(model, seed)
        if spec.init == "zero_init_last":
            _zero_init_last(model, spec.backbone)
    if isinstance(spec.pretrained, str):
        _load_plain_weights(model, spec.pretrained)
    if sync_bn:  # before there are SE units, whose hooks a conversion would drop
        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        sites: list[Site] = insert_se(model, spec.se, spec.existing_se)
    for site in sites:
        unit = model.get_submodule(site.path)
        assert isinstance(unit, Unit)
        if sync_bn:  # the norms of a unit, in place
            convert_sync_batchnorm(unit)  # type: ignore[no-untyped-call]
        unit.reset(_stream(seed, "se", site.name))
        if spec.se.start == "identity":
            unit.start_as_identity()
    model.se_sites = sites  # type: ignore[assignment]
    if spec.fused == "on" and sites and UNITS[spec.se.unit].why_not_fused is Unit.why_not_fused:
        raise SpecError(
            f"model.fused is 'on', and model.se.unit={spec.se.unit} has no fused form; allowed with it are auto and off"
        )
    if spec.fused == "on":  # auto is for who knows the device and how long it will run
        fuse(model)
    return model


def build_backbone(spec: ModelSpec, num_classes: int, in_chans: int = 3) -> nn.Module:
    """Build timm's net of a spec, on the current device, with timm's weights and without SE units of ours.

    Raises:
        SpecError: for a backbone timm does not know, arguments it refuses, or one without pretrained weights.
    """
    if not timm.is_model(spec.backbone):
        raise SpecError(
            f"model.backbone is {spec.backbone!r}, which neither timm nor SE-Lab has"
            f"{nearest(spec.backbone, timm.list_models())}; timm.list_models('*part*') searches"
        )
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
    except RuntimeError as error:
        if spec.pretrained is True and "pretrained" in str(error).lower():
            raise SpecError(f"model.pretrained is true, and timm has no weights of {spec.backbone}: {error}") from error
        raise
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
    """Load a state dict, or a checkpoint that holds one, from a file of safetensors or of torch's (weights only)."""
    own = model.state_dict()
    state = _read_weights(path)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or misshapen:
        raise SpecError(
            f"model.pretrained is {path!r}, which does not fit: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape {misshapen[:5]} ({len(missing)}, {len(unexpected)} and {len(misshapen)} in all)"
        )
    model.load_state_dict(state)


def _read_weights(path: str) -> dict[str, torch.Tensor]:
    try:
        if path.endswith(".safetensors"):
            state: Any = load_file(expand_path(path))
        else:
            state = torch.load(expand_path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpecError(f"model.pretrained is {path!r}, and there is no such file") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        told = str(error).splitlines()[0]
        raise SpecError(f"model.pretrained is {path!r}, which holds no weights that can be read: {told}") from error
    for key in ("state_dict", "model"):  # as training scripts save them
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SpecError(f"model.pretrained is {path!r}, which holds no state dict but a {type(state).__name__}")
    for prefix in ("module.", "model.", "net."):  # DataParallel's, and those of modules that hold the net
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return cast(dict[str, torch.Tensor], state)
