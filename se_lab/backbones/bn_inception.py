"""BN-Inception (Ioffe and Szegedy 2015, arXiv 1502.03167, appendix, Figure 5).

Ten inception modules follow a stem of three convolutions. The pooling path averages in 3a to 5a and takes the maximum
in 5b and in the stride-2 modules 3c and 4e, which have no 1×1 path and pass the pooled input through. Convolutions
have no bias, since batch norm follows each; the SE paper's costs do not count biases either. The Caffe version of the
net rounds pooled sizes up, and this one pads by a pixel; sizes are equal at 224 pixels, and with padding the paths of
a stride-2 module have equal sizes for every image size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from se_lab.backbones.net import ConvNet, NetOptions, build, imagenet_cfg


class Widths(NamedTuple):
    """The channels of the convolutions in a module's paths; 0 for an absent one."""

    conv1: int
    reduce3: int
    conv3: int
    reduce33: int
    conv33: int
    pool: int
    pool_type: str = "avg"
    stride: int = 1


STAGES = (
    (
        Widths(64, 64, 64, 64, 96, 32),  # 3a
        Widths(64, 64, 96, 64, 96, 64),  # 3b
        Widths(0, 128, 160, 64, 96, 0, "max", stride=2),  # 3c
    ),
    (
        Widths(224, 64, 96, 96, 128, 128),  # 4a
        Widths(192, 96, 128, 96, 128, 128),  # 4b
        Widths(160, 128, 160, 128, 160, 128),  # 4c
        Widths(96, 128, 192, 160, 192, 128),  # 4d
        Widths(0, 128, 192, 192, 256, 0, "max", stride=2),  # 4e
    ),
    (
        Widths(352, 192, 320, 160, 224, 128),  # 5a
        Widths(352, 192, 320, 192, 224, 128, "max"),  # 5b
    ),
)


class ConvNormAct(nn.Module):
    """A convolution without bias, its norm and its activation."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        **factory: Any,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, bias=False, **factory)
        self.bn = norm_layer(channels, **factory)
        self.act = act_layer(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        x = self.act(self.bn(self.conv(x)))
        return x


class Inception(nn.Module):
    """The concatenation of up to four parallel paths.

    (N, in_channels, H, W) to (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉). The paths are `conv1` (1×1), `conv3` (1×1,
    3×3), `conv33` (1×1, 3×3, 3×3) and `pool` (3×3 pooling, 1×1).
    """

    def __init__(self, in_channels: int, widths: Widths, **layers: Any) -> None:
        super().__init__()
        w = widths
        pool: nn.Module = nn.AvgPool2d(3, w.stride, padding=1)
        if w.pool_type == "max":
            pool = nn.MaxPool2d(3, w.stride, padding=1)
        paths: dict[str, nn.Module] = {}
        if w.conv1:
            paths["conv1"] = ConvNormAct(in_channels, w.conv1, 1, **layers)
        paths["conv3"] = nn.Sequential(
            ConvNormAct(in_channels, w.reduce3, 1, **layers),
            ConvNormAct(w.reduce3, w.conv3, 3, w.stride, **layers),
        )
        paths["conv33"] = nn.Sequential(
            ConvNormAct(in_channels, w.reduce33, 1, **layers),
            ConvNormAct(w.reduce33, w.conv33, 3, **layers),
            ConvNormAct(w.conv33, w.conv33, 3, w.stride, **layers),
        )
        paths["pool"] = nn.Sequential(pool, ConvNormAct(in_channels, w.pool, 1, **layers)) if w.pool else pool
        self.paths = nn.ModuleDict(paths)
        self.out_channels = w.conv1 + w.conv3 + w.conv33 + (w.pool or in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the concatenated outputs of the paths."""
        return torch.cat([path(x) for path in self.paths.values()], dim=1)


class BNInception(ConvNet):
    """Images (N, in_chans, H, W) to (N, num_classes); the last map is ⌈H/32⌉ × ⌈W/32⌉.

    `conv1` to `pool2` are the stem, `layer1` the modules 3a to 3c, `layer2` 4a to 4e, `layer3` 5a and 5b.
    """

    def __init__(self, **options: Any) -> None:
        common = NetOptions(**options)
        super().__init__(common)
        layers = common.layers

        self.conv1 = ConvNormAct(common.in_chans, 64, 7, 2, **layers)
        self.pool1 = nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = ConvNormAct(64, 64, 1, **layers)
        self.conv3 = ConvNormAct(64, 192, 3, **layers)
        self.pool2 = nn.MaxPool2d(3, 2, padding=1)
        self.add_feature("conv1", 64, 2)
        self.add_feature("conv3", 192, 4)

        stages = []
        channels = 192
        for stage in STAGES:
            modules = []
            for widths in stage:
                modules.append(Inception(channels, widths, **layers))
                channels = modules[-1].out_channels
            stages.append(nn.Sequential(*modules))
        self.layer1, self.layer2, self.layer3 = stages
        # The last modules at each scale: 3b, 4d and 5b.
        self.add_feature("layer1.1", 320, 8)
        self.add_feature("layer2.3", 608, 16)
        self.add_feature("layer3.1", 1024, 32)

        self.add_head(channels, common.global_pool, common.factory)
        self.init_weights()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to features (N, 1024, ⌈H/32⌉, ⌈W/32⌉)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv3(self.conv2(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x


default_cfgs = generate_default_cfgs({"bn_inception": imagenet_cfg("1502.03167", first_conv="conv1.conv")})


@register_model
def bn_inception(pretrained: bool = False, **kwargs: Any) -> BNInception:
    """BN-Inception, 11,285,224 parameters, 2.033 GMACs."""
    net: BNInception = build(
        BNInception, "bn_inception", pretrained, feature_cfg={"flatten_sequential": True}, **kwargs
    )
    return net
