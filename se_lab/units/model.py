"""Create the net of a ModelSpec: backbone, weights and units."""

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
    """Create the net of a spec, with its units listed in `model.se_sites`.

    Each weight has its own random stream: (seed, parameter) for the backbone, (seed, site) for units. All variants of
    one seed therefore start from the same backbone weights, and units at the same site from the same weights.

    Args:
        spec: The backbone and its units.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input images, (N, in_chans, H, W).
        seed: Seed of the initial weights, unless the spec has an `init_seed`.
        sync_bn: Whether batch norms use the images of all ranks.

    Raises:
        SpecError: for an unknown backbone, arguments that it rejects, weights that cannot be read or downloaded, or
            units that do not fit. On the meta device no weights are downloaded.

    Examples:
        >>> model = create_model(ModelSpec("resnet18", SESpec(reduction=8)), num_classes=10)
        >>> model(torch.randn(2, 3, 64, 64)).shape, len(model.se_sites)
        (torch.Size([2, 10]), 8)
    """
    seed = seed if spec.init_seed is None else spec.init_seed
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator
        torch.manual_seed(seed_of(seed, "weights"))
        model = build_backbone(spec, num_classes, in_chans)
    if spec.pretrained is False and spec.init != "timm":
        _he_init(model, seed)
        if spec.init == "zero_init_last":
            _zero_init_last(model, spec.backbone)
    if isinstance(spec.pretrained, str):
        load_weights(model, spec.pretrained)
    if sync_bn:  # before the units are inserted, since the conversion drops hooks
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
        _perturb(model, spec.rounding)
    if spec.fused == "on" and sites and UNITS[spec.se.unit].why_not_fused is Unit.why_not_fused:
        raise SpecError(
            f"model.fused is 'on', but model.se.unit={spec.se.unit} has no fused form; it must be auto or off"
        )
    if spec.fused == "on":  # the caller resolves auto, which depends on the device and the length of the trial
        fuse(model)
    return model


def build_backbone(spec: ModelSpec, num_classes: int, in_chans: int = 3) -> nn.Module:
    """Build the backbone of a spec on the current device, with the library's weights.

    On the meta device no weights are downloaded.

    Raises:
        SpecError: for an unknown backbone, arguments that it rejects, or weights that do not exist or cannot be
            downloaded.
    """
    name, downloads = spec.backbone, spec.pretrained is True
    create: Callable[..., nn.Module] = build_torchvision if name.startswith(PREFIX) else timm.create_model
    if name.startswith(PREFIX):
        if name not in (names := torchvision_names()):
            raise SpecError(f"model.backbone is {name!r}, which torchvision does not have{nearest(name, names)}")
    elif not timm.is_model(name):
        raise SpecError(
            f"model.backbone is {name!r}, which neither timm nor SE-Lab has"
            f"{nearest(name, [*timm.list_models(), *torchvision_names()])}; search with se-lab models PART"
        )
    elif downloads and not timm.models.is_model_pretrained(name):
        raise SpecError(
            f"model.pretrained is true, but timm has no weights of {name}; it must be false or a file of weights"
        )
    downloads = downloads and torch.get_default_device().type != "meta"
    try:
        return create(name, pretrained=downloads, num_classes=num_classes, in_chans=in_chans, **spec.kwargs)
    except TypeError as error:
        raise SpecError(f"model.kwargs is {spec.kwargs!r}, which {name} rejects: {error}") from error
    except Exception as error:  # the download can raise any exception
        if not downloads:
            raise
        raise SpecError(
            f"model.pretrained is true, but the weights of {name} cannot be downloaded ({type(error).__name__}: "
            f"{error}); without a network, set model.pretrained to a file of weights, or fill the cache beforehand "
            "(HF_HOME for timm's weights, TORCH_HOME for torchvision's)"
        ) from error


def _stream(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def _perturb(model: nn.Module, number: int) -> None:
    """Multiply each weight by 1 + 1e-7 · N(0, 1), which changes about the last bit of a float32."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.is_meta:
                weight.mul_(1 + 1e-7 * torch.randn(weight.shape, generator=_stream(number, "rounding", name)))


def _he_init(model: nn.Module, seed: int) -> None:
    """Draw convolutions from N(0, 2 / fan-out) (He et al. 2015) and reset norms, in place."""
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
        raise SpecError(f"model.init is 'zero_init_last', but {backbone} has no residual branch that ends in a norm")
