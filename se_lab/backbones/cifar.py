"""Nets for small images: a 3×3 stem and three stages of blocks; stages 2 and 3 have stride 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from se_lab.backbones.net import ConvNet, ResidualOptions, build, residual_stages

# Mean and standard deviation of the training images' pixels, by the number of classes: CIFAR-10 and CIFAR-100.
STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class CifarNet(ConvNet):
    """A net for images of 8 to 64 pixels, (N, in_chans, H, W) to (N, num_classes).

    Its modules are `conv1`, `bn1`, `act1`; `layer1`, `layer2` and `layer3`, each of `units` modules made by
    `block(in_channels, channels, stride, act_layer=…, norm_layer=…, device=…, dtype=…)`; `norm`, `act` and
    the head. `stem` and `tail` name those of "norm" and "act" that follow the first convolution and the last stage;
    the others are identities. `zero_init_last` is off by default, as in the nets' papers, and unlike timm's ResNets.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        units: int,
        channels: tuple[int, int, int],
        stem_channels: int = 16,
        stem: Sequence[str] = ("norm", "act"),
        tail: Sequence[str] = (),
        **options: Any,
    ) -> None:
        common = ResidualOptions(**{"num_classes": 10, **options})
        super().__init__(common)
        factory, layers = common.factory, common.layers
        act, norm = layers["act_layer"], layers["norm_layer"]

        self.conv1 = nn.Conv2d(common.in_chans, stem_channels, 3, padding=1, bias=False, **factory)
        self.bn1 = norm(stem_channels, **factory) if "norm" in stem else nn.Identity()
        self.act1 = act(inplace=True) if "act" in stem else nn.Identity()
        self.add_feature("act1", stem_channels, 1)

        depths, rate = [units] * 3, common.drop_path_rate
        stages = residual_stages(partial(block, **layers), stem_channels, channels, depths, (1, 2, 2), rate)
        for name, width, reduction in zip(("layer1", "layer2", "act"), channels, (1, 2, 4), strict=True):
            self.add_feature(name, width, reduction)
        self.layer1, self.layer2, self.layer3 = stages

        self.norm = norm(channels[-1], **factory) if "norm" in tail else nn.Identity()
        self.act = act(inplace=True) if "act" in tail else nn.Identity()
        self.add_head(channels[-1], common.global_pool, factory)
        self.init_weights(common.zero_init_last)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to features (N, num_features, ⌈H/4⌉, ⌈W/4⌉)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.act(self.norm(x))
        return x


def cifar_cfg(paper: str, num_classes: int = 10) -> dict[str, Any]:
    """Return timm's default cfg for a net on CIFAR-10 or CIFAR-100; `paper` is an arXiv number."""
    mean, std = STATISTICS[num_classes]
    return {
        "num_classes": num_classes,
        "input_size": (3, 32, 32),
        "min_input_size": (3, 8, 8),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": mean,
        "std": std,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": f"arXiv:{paper}",
    }


def build_cifar(variant: str, pretrained: bool, block: Callable[..., nn.Module], **kwargs: Any) -> CifarNet:
    """Build a registered net; with `features_only` timm returns the stem and the three stages."""
    net: CifarNet = build(
        CifarNet, variant, pretrained, feature_cfg={"out_indices": (0, 1, 2, 3)}, block=block, **kwargs
    )
    return net
