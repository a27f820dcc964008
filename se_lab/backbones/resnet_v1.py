"""ResNets of the SE paper that differ from timm's in their strides, or have no SE units.

ResNet-50, 101 and 152 have the stride in a bottleneck's first 1×1 convolution, as in He et al. 2015 (arXiv 1512.03385,
section 4.1 and Table 1) and in the SE paper's costs. timm's nets have it in the 3×3 convolution; all else, parameter
names included, is the same, so that timm's weights fit: the tags of `resnet50` are tags of `resnet50_v1`.

SENet-154 without its SE units (Hu et al., arXiv 1709.01507, appendix) is ResNeXt-152 64×4d with half the channels in a
bottleneck's first 1×1, a stem of three 3×3 convolutions, 3×3 projections for stride 2, and dropout of 0.2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnet import default_cfgs as timm_cfgs

from se_lab.backbones.net import build, imagenet_cfg

STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


def resnet_v1(**kwargs: Any) -> ResNet:
    """Return timm's ResNet of bottlenecks with each stride moved from `conv2` to `conv1`."""
    if kwargs.get("aa_layer") is not None:
        raise ValueError(
            "aa_layer needs the stride in the 3×3 convolution: use timm's resnet50, resnet101 or resnet152"
        )
    net: Any = _bottlenecks(**kwargs)
    for stage in (net.layer2, net.layer3, net.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    resnet: ResNet = net
    return resnet


def _bottlenecks(**kwargs: Any) -> ResNet:
    block: Any = Bottleneck  # timm annotates the class's instances
    return ResNet(block=block, **kwargs)


def _timm_weights(name: str) -> dict[str, Any]:
    """Return the cfgs of timm's pretrained weights under the name of SE-Lab's net."""
    cfgs: Any = timm_cfgs[name]
    return {
        f"{name}_v1.{tag}": replace(cfg, hf_hub_id=f"timm/{name}.{tag}" if cfg.hf_hub_id == "timm/" else cfg.hf_hub_id)
        for tag, cfg in ((tag, cfgs.cfgs[tag]) for tag in cfgs.tags)
    }


default_cfgs = generate_default_cfgs(
    {
        **_timm_weights("resnet50"),
        **_timm_weights("resnet101"),
        **_timm_weights("resnet152"),
        "senet154_base": imagenet_cfg("1709.01507", first_conv="conv1.0"),
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> ResNet:
    net: ResNet = build(resnet_v1, f"{name}_v1", pretrained, **{"layers": STAGES[name], **kwargs})
    return net


@register_model
def resnet50_v1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50, 25,557,032 parameters, 3.858 GMACs."""
    return _create("resnet50", pretrained, **kwargs)


@register_model
def resnet101_v1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101, 44,549,160 parameters, 7.570 GMACs."""
    return _create("resnet101", pretrained, **kwargs)


@register_model
def resnet152_v1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-152, 60,192,808 parameters, 11.282 GMACs."""
    return _create("resnet152", pretrained, **kwargs)


@register_model
def senet154_base(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """SENet-154 without its SE units; with r = 16 and biases it has 115,088,984 parameters."""
    args = {
        "layers": STAGES["resnet152"],
        "cardinality": 64,
        "base_width": 4,
        "stem_type": "deep",
        "down_kernel_size": 3,
        "block_reduce_first": 2,
        "drop_rate": 0.2,
    }
    net: ResNet = build(_bottlenecks, "senet154_base", pretrained, **{**args, **kwargs})
    return net
