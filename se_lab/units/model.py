"""From a ModelSpec to a net: timm's or torchvision's backbone, its weights, and the units."""

from __future__ import annotations

import math
from collections.abc import Callable

import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from se_lab.backbones import PREFIX, build_torchvision, torchvision_names
from se_lab.spec import ModelSpec, SpecError, nearest, seed_of
from se_lab.units.families import LAST_NORMS
from se_lab.units.fused import fuse
from se_lab.units.insertion import insert_se
from se_lab.units.places import row_of
from se_lab.units.table import UNITS
from se_lab.units.unit import Unit
from se_lab.units.weights import load_weights


def create_model(
    spec: ModelSpec, num_classes: int, in_chans: int = 3, *, seed: int = 0, sync_bn: bool = False
) -> nn.Module:
    """Build the net of a spec, with its units listed in `model.se_sites`.

    Weights come from streams keyed by name: the backbone's by (seed, parameter), a unit's by (seed, site). All
    variants of one seed therefore start from equal backbone weights, and equal sites from equal units.

    Args:
        spec: The backbone and its SE units.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input images, (N, in_chans, H, W).
        seed: Seeds every weight that is drawn, unless the spec has an `init_seed`.
        sync_bn: Let batch norms see the images of all ranks.

    Raises:
        SpecError: for a backbone that neither timm nor torchvision knows, arguments that it refuses, weights that
            cannot be read or fetched, or units that do not fit. On the meta device no weights are fetched.

    Examples:
        >>> model = create_model(ModelSpec("resnet18", SESpec(reduction=8)), num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape, len(model.se_sites)
        (torch.Size([2, 10]), 8)
    """
    seed = seed if spec.init_seed is None else spec.init_seed
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator: seed it
        torch.manual_seed(seed_of(seed, "weights"))
        model = build_backbone(spec, num_classes, in_chans)
    if spec.pretrained is False and spec.init != "timm":
        _he_init(model, seed)
        if spec.init == "zero_init_last":
            _zero_init_last(model, spec.backbone)
    if isinstance(spec.pretrained, str):
        load_weights(model, spec.pretrained)
    if sync_bn:  # before there are SE units, whose hooks a conversion would drop
        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        sites = insert_se(model, spec.se, spec.existing_se)
    for site in sites:
        unit = model.get_submodule(site.path)
        assert isinstance(unit, Unit)
        if sync_bn:  # the norms of a unit, in place
            convert_sync_batchnorm(unit)  # type: ignore[no-untyped-call]
        unit.reset(_stream(seed, "se", site.name))
        if spec.se.start == "identity":
            unit.start_as_identity()
    if spec.rounding:
        _round_otherwise(model, spec.rounding)
    if spec.fused == "on" and sites and UNITS[spec.se.unit].why_not_fused is Unit.why_not_fused:
        raise SpecError(
            f"model.fused is 'on', and model.se.unit={spec.se.unit} has no fused form; allowed with it are auto and off"
        )
    if spec.fused == "on":  # the caller resolves auto: it knows device and run time
        fuse(model)
    return model


def build_backbone(spec: ModelSpec, num_classes: int, in_chans: int = 3) -> nn.Module:
    """Build the backbone of a spec, on the current device, with its library's weights and without SE-Lab's units.

    On the meta device no weights are fetched.

    Raises:
        SpecError: for an unknown backbone, arguments that it refuses, or weights that it does not have or that cannot
            be fetched.
    """
    name, fetches = spec.backbone, spec.pretrained is True
    create: Callable[..., nn.Module] = build_torchvision if name.startswith(PREFIX) else timm.create_model
    if name.startswith(PREFIX):
        if name not in (names := torchvision_names()):
            raise SpecError(f"model.backbone is {name!r}, which torchvision does not have{nearest(name, names)}")
    elif not timm.is_model(name):
        raise SpecError(
            f"model.backbone is {name!r}, which neither timm nor SE-Lab has"
            f"{nearest(name, [*timm.list_models(), *torchvision_names()])}; se-lab models PART searches"
        )
    elif fetches and not timm.models.is_model_pretrained(name):
        raise SpecError(
            f"model.pretrained is true, and timm has no weights of {name}; give a file of weights, or false"
        )
    fetches = fetches and torch.get_default_device().type != "meta"
    try:
        return create(name, pretrained=fetches, num_classes=num_classes, in_chans=in_chans, **spec.kwargs)
    except TypeError as error:
        raise SpecError(f"model.kwargs is {spec.kwargs!r}, and {name} says: {error}") from error
    except Exception as error:  # whatever the library that fetches the weights raises
        if not fetches:
            raise
        raise SpecError(
            f"model.pretrained is true, and the weights of {name} cannot be fetched ({type(error).__name__}: {error}); "
            "without a network, set model.pretrained to the path of a file of weights, or fill the cache once (HF_HOME "
            "for timm's weights, TORCH_HOME for torchvision's)"
        ) from error


def _stream(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def _round_otherwise(model: nn.Module, number: int) -> None:
    """Multiply each parameter by 1 + 1e-7 · N(0, 1), about the last bit of a float32."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.is_meta:
                weight.mul_(1 + 1e-7 * torch.randn(weight.shape, generator=_stream(number, "rounding", name)))


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
    count = 0
    for block in model.modules():
        if block is not model and hasattr(block, "zero_init_last"):
            block.zero_init_last()  # type: ignore[operator]
        elif name := row_of(block, LAST_NORMS):
            nn.init.zeros_(block.get_submodule(name).weight)  # type: ignore[arg-type]
        else:
            continue
        count += 1
    if not count:
        raise SpecError(f"model.init is 'zero_init_last', and {backbone} has no residual branch that ends in a norm")
