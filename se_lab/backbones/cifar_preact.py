"""Pre-activation nets for CIFAR: ResNet-164 and the wide ResNet WRN-16-8.

ResNet-164 (He et al. 2016, arXiv 1603.05027, appendix) has three stages of 18 bottlenecks with 64, 128 and 256 output
channels; the first 1×1 convolution has the stride. WRN-16-8 (Zagoruyko and Komodakis 2016, arXiv 1605.07146, section 2)
has three stages of two basic blocks with 8 times 16, 32 and 64 channels. In both, as in the authors' code, a block that
changes the width projects the activated input by a 1×1 convolution as its shortcut, and no convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from se_lab.backbones.cifar import CifarNet, build_cifar, cifar_cfg
from se_lab.backbones.residual import Add, ResidualBlock


class PreActBlock(ResidualBlock):
    """Shortcut + branch: bn1, act1, conv1, bn2, … for each width and kernel size of `convs`.

    (N, in_channels, H, W) to (N, channels, H / stride, W / stride); the last convolution has the channels, and the
    first one has the stride. The branch ends in the last convolution; nothing follows the join.
    """

    if TYPE_CHECKING:  # not annotations, since TorchScript rejects nn.Module
        bn1 = act1 = conv1 = bn2 = act2 = conv2 = bn3 = act3 = conv3 = nn.Module()

    def __init__(
        self,
        convs: Sequence[tuple[int, int]],
        in_channels: int,
        stride: int = 1,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        channels = convs[-1][0]
        projects = stride > 1 or in_channels != channels
        projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False, **factory) if projects else None
        super().__init__(projection, Add())
        self.projects, self.depth = projects, len(convs)
        for number, (width, side) in enumerate(convs, 1):
            self.add_module(f"bn{number}", norm_layer(in_channels, **factory))
            self.add_module(f"act{number}", act_layer(inplace=True))
            conv = nn.Conv2d(in_channels, width, side, stride=stride, padding=side // 2, bias=False, **factory)
            self.add_module(f"conv{number}", conv)
            in_channels, stride = width, 1

    def zero_init_last(self) -> None:
        """Set the last weights of the branch to 0, so that the block starts as its shortcut."""
        last: Any = self.get_submodule(f"conv{self.depth}")
        nn.init.zeros_(last.weight)


class PreActBottleneck(PreActBlock):
    """Shortcut + conv3(act3(bn3(conv2(act2(bn2(conv1(act1(bn1(x))))))))): 1×1, 3×3, 1×1."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, **layers: Any) -> None:
        super().__init__([(channels // 4, 1), (channels // 4, 3), (channels, 1)], in_channels, stride, **layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shortcut + branch."""
        activated = self.act1(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(self.act2(self.bn2(branch)))
        branch = self.conv3(self.act3(self.bn3(branch)))
        return self.close(branch, activated if self.projects else x)


class PreActBasic(PreActBlock):
    """Shortcut + conv2(act2(bn2(conv1(act1(bn1(x)))))): two 3×3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, **layers: Any) -> None:
        super().__init__([(channels, 3), (channels, 3)], in_channels, stride, **layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shortcut + branch."""
        activated = self.act1(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(self.act2(self.bn2(branch)))
        return self.close(branch, activated if self.projects else x)


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
