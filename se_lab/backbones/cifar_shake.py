"""Shake-shake nets for CIFAR: 26 2×96d and 29 2×4×64d (Gastaldi 2017, arXiv 1705.07485).

26 2×96d (section 2.1) has three stages of four blocks, each with two branches of ReLU, 3×3, BN, ReLU, 3×3, BN.
29 2×4×64d (section 2.2) is ResNeXt-29 (Xie et al. 2017, arXiv 1611.05431, section 5.3) with two branches of four
groups, of 64 channels each in the first stage; in its "Shake-Even" form α is random in the forward pass and 1/2 in the
backward pass. It has the published 34.4M parameters for 10 classes, and 34.5M for the 100 classes of CIFAR-100.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from se_lab.backbones.cifar import CifarNet, build_cifar, cifar_cfg
from se_lab.backbones.residual import Add, ResidualBlock
from se_lab.backbones.shake import ShakeShake, ShiftShortcut

GROUPS, BASE_WIDTH = 4, 64
"""The numbers 4 and 64 in the net's name, 29 2×4×64d."""


class ShakeBasic(ResidualBlock):
    """Shortcut + shake(act1(x)); each of two branches is conv1, bn1, act1, conv2, bn2 (3×3).

    (N, in_channels, H, W) to (N, channels, H / stride, W / stride). The branch ends in `shake`; nothing follows the
    join. A shortcut that changes the width takes the activated input.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        alphas: tuple[str, str] = ("shake", "shake"),
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        projects = stride > 1 or in_channels != channels
        shortcut = ShiftShortcut(in_channels, channels, stride, norm_layer, **factory) if projects else None
        super().__init__(shortcut, Add())
        self.projects = projects
        # not in place: the shortcut needs the input
        self.act1 = act_layer(inplace=False)

        def branch() -> nn.Sequential:
            return nn.Sequential(
                OrderedDict(
                    conv1=nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False, **factory),
                    bn1=norm_layer(channels, **factory),
                    act1=act_layer(inplace=True),
                    conv2=nn.Conv2d(channels, channels, 3, padding=1, bias=False, **factory),
                    bn2=norm_layer(channels, **factory),
                )
            )

        self.shake = ShakeShake(branch(), branch(), *alphas)

    def zero_init_last(self) -> None:
        """Set the last weights of the branch to 0, so that the block starts as its shortcut."""
        _zero_norm(self.shake.branch1.get_submodule("bn2"))
        _zero_norm(self.shake.branch2.get_submodule("bn2"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shortcut + mixed branches."""
        activated = self.act1(x)
        return self.close(self.shake(activated), activated if self.projects else x)


class ShakeBottleneck(ResidualBlock):
    """act(shortcut + shake(x)); each of two branches is a ResNeXt bottleneck.

    (N, in_channels, H, W) to (N, channels, H / stride, W / stride). The 3×3 convolution has 4 groups of channels / 4
    channels. The branch ends in `shake`; `act` follows the join.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        alphas: tuple[str, str] = ("shake", "even"),
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        shortcut = None
        if stride > 1 or in_channels != channels:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False, **factory),
                norm_layer(channels, **factory),
            )
        super().__init__(shortcut, Add())
        width = GROUPS * (channels * BASE_WIDTH // 256)

        def branch() -> nn.Sequential:
            return nn.Sequential(
                OrderedDict(
                    conv1=nn.Conv2d(in_channels, width, 1, bias=False, **factory),
                    bn1=norm_layer(width, **factory),
                    act1=act_layer(inplace=True),
                    conv2=nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=GROUPS, bias=False, **factory),
                    bn2=norm_layer(width, **factory),
                    act2=act_layer(inplace=True),
                    conv3=nn.Conv2d(width, channels, 1, bias=False, **factory),
                    bn3=norm_layer(channels, **factory),
                )
            )

        self.shake = ShakeShake(branch(), branch(), *alphas)
        self.act = act_layer(inplace=True)

    def zero_init_last(self) -> None:
        """Set the last weights of the branch to 0, so that the block starts as its shortcut."""
        _zero_norm(self.shake.branch1.get_submodule("bn3"))
        _zero_norm(self.shake.branch2.get_submodule("bn3"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return act(shortcut + mixed branches)."""
        x = self.act(self.close(self.shake(x), x))
        return x


def _zero_norm(norm: Any) -> None:
    if norm.weight is not None:
        nn.init.zeros_(norm.weight)


default_cfgs = generate_default_cfgs(
    {
        "cifar_shake_shake26_2x96d": cifar_cfg("1705.07485"),
        "cifar_shake_shake29_2x4x64d": cifar_cfg("1705.07485", num_classes=100),
    }
)


@register_model
def cifar_shake_shake26_2x96d(
    pretrained: bool = False, forward_alpha: str = "shake", backward_alpha: str = "shake", **kwargs: Any
) -> CifarNet:
    """Shake-Shake 26 2×96d, 26.2M parameters (SE paper, Table 4); see `ShakeShake` for modes."""
    block = partial(ShakeBasic, alphas=(forward_alpha, backward_alpha))
    args = {"units": 4, "channels": (96, 192, 384), "stem": ("norm",), "tail": ("act",)}
    return build_cifar("cifar_shake_shake26_2x96d", pretrained, block, **{**args, **kwargs})


@register_model
def cifar_shake_shake29_2x4x64d(
    pretrained: bool = False, forward_alpha: str = "shake", backward_alpha: str = "even", **kwargs: Any
) -> CifarNet:
    """Shake-Even 29 2×4×64d, 34.4M parameters (SE paper, Table 5); see `ShakeShake` for modes."""
    block = partial(ShakeBottleneck, alphas=(forward_alpha, backward_alpha))
    args = {"units": 3, "channels": (256, 512, 1024), "stem_channels": 64}
    return build_cifar("cifar_shake_shake29_2x4x64d", pretrained, block, **{**args, **kwargs})
