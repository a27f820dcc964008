"""ShuffleNet v1, 1× with three groups (Zhang et al. 2018, arXiv 1707.01083).

A 3×3 convolution of 24 channels and max pooling are followed by three stages of 4, 8 and 4 blocks with 240, 480 and 960
channels; the first block of each stage has stride 2. The first 1×1 convolution of the first block is not grouped, since
its input is narrow. Convolutions have no bias; the classifier has one.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from se_lab.backbones.net import ConvNet, ResidualOptions, build, imagenet_cfg, residual_stages
from se_lab.backbones.residual import Add, Concat, ResidualBlock

DEPTHS = (4, 8, 4)


class ChannelShuffle(nn.Module):
    """The channel shuffle: channels (groups, C / groups) transposed, which mixes the groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Permute the channels of (N, C, H, W)."""
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleBlock(ResidualBlock):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1, join, `act3` (Figure 2, b and c).

    (N, in_channels, H, W) to (N, channels, ⌈H / stride⌉, ⌈W / stride⌉). The branch ends in `bn3`. With stride 1 its
    output is added to the input; with stride 2 its `channels` − `in_channels` channels are appended to the averaged
    input. `groups` are the numbers of groups of the first and the last 1×1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        groups: tuple[int, int] = (3, 3),
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        if stride == 1:
            super().__init__(None, Add())
        else:
            super().__init__(nn.AvgPool2d(3, stride, padding=1), Concat())
        width = channels // 4
        outputs = channels if stride == 1 else channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, width, 1, groups=groups[0], bias=False, **factory)
        self.bn1 = norm_layer(width, **factory)
        self.act1 = act_layer(inplace=True)
        self.shuffle = ChannelShuffle(groups[1])
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False, **factory)
        self.bn2 = norm_layer(width, **factory)
        self.conv3 = nn.Conv2d(width, outputs, 1, groups=groups[1], bias=False, **factory)
        self.bn3 = norm_layer(outputs, **factory)
        self.act3 = act_layer(inplace=True)

    def zero_init_last(self) -> None:
        """Set the last weights of the branch to 0, so that the block starts as its shortcut."""
        if self.bn3.weight is not None:
            nn.init.zeros_(self.bn3.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return act3 of the joined branch and shortcut."""
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(self.shuffle(branch)))
        branch = self.bn3(self.conv3(branch))
        x = self.act3(self.close(branch, x))
        return x


class ShuffleNet(ConvNet):
    """Images (N, in_chans, H, W) to (N, num_classes); the last map is ⌈H/32⌉ × ⌈W/32⌉.

    `layer1`, `layer2` and `layer3` are the paper's stages 2, 3 and 4.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        groups: int,
        stem_channels: int = 24,
        **options: Any,
    ) -> None:
        common = ResidualOptions(**options)
        super().__init__(common)
        factory, layers = common.factory, common.layers
        act, norm = layers["act_layer"], layers["norm_layer"]

        self.conv1 = nn.Conv2d(common.in_chans, stem_channels, 3, stride=2, padding=1, bias=False, **factory)
        self.bn1 = norm(stem_channels, **factory)
        self.act1 = act(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.add_feature("act1", stem_channels, 2)
        self.add_feature("maxpool", stem_channels, 4)

        def block(in_channels: int, width: int, stride: int) -> ShuffleBlock:
            first = 1 if in_channels == stem_channels else groups  # section 3.2: too few channels for groups
            return ShuffleBlock(in_channels, width, stride, (first, groups), **layers)

        stages = residual_stages(block, stem_channels, channels, DEPTHS, (2, 2, 2), common.drop_path_rate)
        for index, width in enumerate(channels):
            self.add_feature(f"layer{index + 1}", width, 8 * 2**index)
        self.layer1, self.layer2, self.layer3 = stages

        self.add_head(channels[-1], common.global_pool, factory)
        self.init_weights(common.zero_init_last)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to features (N, num_features, ⌈H/32⌉, ⌈W/32⌉)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x


default_cfgs = generate_default_cfgs({"shufflenet_v1_g3": imagenet_cfg("1707.01083", first_conv="conv1")})


@register_model
def shufflenet_v1_g3(pretrained: bool = False, **kwargs: Any) -> ShuffleNet:
    """ShuffleNet 1× with three groups, 1,865,728 parameters, 0.1375 GMACs."""
    args = {"channels": (240, 480, 960), "groups": 3}
    net: ShuffleNet = build(ShuffleNet, "shufflenet_v1_g3", pretrained, **{**args, **kwargs})
    return net
