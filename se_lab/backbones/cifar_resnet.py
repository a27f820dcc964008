"""ResNet-20, 32, 44, 56 and 110 for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2).

A 3×3 convolution of 16 channels is followed by three stages of n = (depth − 2) / 6 basic blocks with 16, 32 and 64
channels and parameter-free shortcuts (option A). The blocks are timm's `BasicBlock`, so that tools for timm's ResNets
work on these nets as well.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import nn
from torch.nn import functional as F

from se_lab.backbones.cifar import CifarNet, build_cifar, cifar_cfg

DEPTHS = (20, 32, 44, 56, 110)


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2015, option A: subsampled and padded with zeros.

    (N, C_in, H, W) to (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉): every `stride`-th pixel, and C_out − C_in channels of 0.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, subsampled and padded with zero channels."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        """Return the stride and the number of zero channels as text."""
        return f"stride={self.stride}, extra_channels={self.extra_channels}"


def basic_block(in_channels: int, channels: int, stride: int, **kwargs: Any) -> BasicBlock:
    """Return timm's basic block with a shortcut of option A."""
    downsample = PadShortcut(in_channels, channels, stride) if stride > 1 else None
    return BasicBlock(in_channels, channels, stride, downsample, **kwargs)


def _create(depth: int, pretrained: bool, **kwargs: Any) -> CifarNet:
    units = (depth - 2) // 6
    return build_cifar(
        f"cifar_resnet{depth}", pretrained, basic_block, **{"units": units, "channels": (16, 32, 64), **kwargs}
    )


default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}": cifar_cfg("1512.03385") for depth in DEPTHS})


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-20, 0.27M parameters."""
    return _create(20, pretrained, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-32, 0.46M parameters."""
    return _create(32, pretrained, **kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-44, 0.66M parameters."""
    return _create(44, pretrained, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-56, 0.85M parameters."""
    return _create(56, pretrained, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-110, 1.7M parameters; a net of the SE paper's Tables 4 and 5."""
    return _create(110, pretrained, **kwargs)
