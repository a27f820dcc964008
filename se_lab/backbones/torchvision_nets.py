"""torchvision's classifiers, by names such as torchvision:resnet50."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models, regnet

PREFIX = "torchvision:"
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""The auxiliary classifiers of some nets, which are removed, so that each net has one output."""


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers, with the prefix."""
    return [PREFIX + name for name in list_models(module=models)]


def build_torchvision(
    name: str, pretrained: bool, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any
) -> nn.Module:
    """Build a torchvision net, (N, in_chans, H, W) to (N, num_classes).

    If `num_classes` is not that of the pretrained weights, the classifier is replaced; if `in_chans` is not 3, the
    weights of the first convolution are adapted.

    Args:
        name: A name from `torchvision_names`.
        pretrained: Use torchvision's default weights, which are downloaded unless they are in the cache.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the images.
        kwargs: Additional arguments for torchvision's constructor.

    Raises:
        TypeError: for arguments that the constructor does not accept.
        OSError: if the weights cannot be downloaded.
    """
    short = name.removeprefix(PREFIX)
    if kwargs.get("aux_logits"):
        raise TypeError("aux_logits is not supported: the net would have more than one output")
    if pretrained:  # the weights include the auxiliary classifiers, which are removed after loading
        arguments = {"weights": "DEFAULT", "progress": False} | kwargs
    else:
        defaults = {"aux_logits": False, "init_weights": True} if short in _AUXILIARY else {}
        arguments = {"num_classes": num_classes} | defaults | kwargs
    with _widths_on_cpu():
        net: Any = get_model(short, **arguments)
    for path in _AUXILIARY.get(short, ()):
        net.aux_logits = False
        setattr(net, path, None)
    path, classifier = _last_linear(net)
    if classifier.out_features != num_classes:
        _put(net, path, nn.Linear(classifier.in_features, num_classes))
    first_conv = _adapt_input(net, in_chans, pretrained)
    net.num_classes = num_classes
    net.pretrained_cfg = {"architecture": name, "classifier": path, "first_conv": first_conv, **_preprocessing(short)}
    model: nn.Module = net
    return model


@contextlib.contextmanager
def _widths_on_cpu() -> Iterator[None]:
    """Compute the widths of RegNets on the CPU in a context, so that they can be built on meta."""
    original = vars(regnet.BlockParams)["from_init_params"]
    compute = regnet.BlockParams.from_init_params

    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return compute(*args, **kwargs)

    regnet.BlockParams.from_init_params = on_cpu
    try:
        yield
    finally:
        regnet.BlockParams.from_init_params = original


def _last_linear(net: nn.Module) -> tuple[str, nn.Linear]:
    linears = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise TypeError("it has no linear classifier")  # SqueezeNet
    return linears[-1]


def _first_conv(net: nn.Module) -> tuple[str, Any]:
    return next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, attribute = path.rpartition(".")
    setattr(net.get_submodule(parent), attribute, module)


def _adapt_input(net: nn.Module, in_chans: int, pretrained: bool) -> str:
    """Adapt the first convolution to images of in_chans channels; return its path."""
    path, old = _first_conv(net)
    if in_chans == 3:
        return path
    bias = old.bias is not None
    new = nn.Conv2d(in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=bias)
    if pretrained:
        new.load_state_dict(old.state_dict() | {"weight": adapt_input_conv(in_chans, old.weight.detach())})
    _put(net, path, new)
    if hasattr(net, "transform_input"):  # it needs three channels
        net.transform_input = False  # type: ignore[assignment]
    return path


def _preprocessing(short: str) -> dict[str, Any]:
    """Return the preprocessing of torchvision's default weights as a timm config."""
    transforms = get_model_weights(short).DEFAULT.transforms()
    side, resize_side = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "input_size": (3, side, side),
        "crop_pct": side / resize_side,
        "interpolation": transforms.interpolation.value,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }
