"""Pre-activation nets for CIFAR: ResNet-164 and the wide ResNet WRN-16-8.

ResNet-164: He et al. 2016, arXiv 1603.05027, appendix: three stages of 18 bottlenecks ending in 64, 128 and 256
channels, the stride in the first 1×1. WRN-16-8: Zagoruyko and Komodakis 2016, arXiv 1605.07146, section 2: three
stages of two basic units at 8 times 16, 32 and 64 channels. In both, a unit that changes the width projects its
shortcut by a 1×1 convolution that sees the activated input, as in the authors' released code, and no convolution has
a bias.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from se_lab.backbones.cifar import CifarNet, build_cifar, cifar_cfg
from se_lab.backbones.residual import Add, ResidualUnit


class PreActBottleneck(ResidualUnit):
    """Shortcut + conv3(act3(bn3(conv2(act2(bn2(conv1(act1(bn1(x))))))))): 1×1, 3×3, 1×1.

    (N, in_channels, H, W) to (N, channels, H / stride, W / stride). The branch ends in `conv3`; nothing follows the
    join.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        drop_path: nn.Module | None = None,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        projection = _projection(in_channels, channels, stride, **factory)
        super().__init__(projection, drop_path, Add())
        self.projects = projection is not None
        width = channels // 4
        self.bn1 = norm_layer(in_channels, **factory)
        self.act1 = act_layer(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False, **factory)
        self.bn2 = norm_layer(width, **factory)
        self.act2 = act_layer(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False, **factory)
        self.bn3 = norm_layer(width, **factory)
        self.act3 = act_layer(inplace=True)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False, **factory)

    def zero_init_last(self) -> None:
        """Start as the shortcut alone."""
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shortcut + branch."""
        activated = self.act1(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(self.act2(self.bn2(branch)))
        branch = self.conv3(self.act3(self.bn3(branch)))
        return self.close(branch, activated if self.projects else x)


class PreActBasic(ResidualUnit):
    """Shortcut + conv2(act2(bn2(conv1(act1(bn1(x)))))): two 3×3 convolutions.

    (N, in_channels, H, W) to (N, channels, H / stride, W / stride). The branch ends in `conv2`; nothing follows the
    join.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        drop_path: nn.Module | None = None,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        projection = _projection(in_channels, channels, stride, **factory)
        super().__init__(projection, drop_path, Add())
        self.projects = projection is not None
        self.bn1 = norm_layer(in_channels, **factory)
        self.act1 = act_layer(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False, **factory)
        self.bn2 = norm_layer(channels, **factory)
        self.act2 = act_layer(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **factory)

    def zero_init_last(self) -> None:
        """Start as the shortcut alone."""
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shortcut + branch."""
        activated = self.act1(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(self.act2(self.bn2(branch)))
        return self.close(branch, activated if self.projects else x)


def _projection(in_channels: int, channels: int, stride: int, **factory: Any) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False, **factory)


default_cfgs = generate_default_cfgs(
    {"cifar_preact_resnet164": cifar_cfg("1603.05027"), "cifar_wrn16_8": cifar_cfg("1605.07146")}
)


@register_model
def cifar_preact_resnet164(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """Pre-activation ResNet-164, 1.7M parameters; a net of the SE paper's Tables 4 and 5."""
    args = {"units": 18, "channels": (64, 128, 256), "stem": (), "tail": ("norm", "act")}
    return build_cifar("cifar_preact_resnet164", pretrained, PreActBottleneck, **{**args, **kwargs})


@register_model
def cifar_wrn16_8(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-16-8, 11.0M parameters; a net of the SE paper's Tables 4 and 5."""
    args = {"units": 2, "channels": (128, 256, 512), "stem": (), "tail": ("norm", "act")}
    return build_cifar("cifar_wrn16_8", pretrained, PreActBasic, **{**args, **kwargs})
