"""Layouts of torchvision's blocks, and stages of its nets; `rows` explains the strings."""

from __future__ import annotations

from se_lab.units.families.rows import BY_STRIDE, Layout, Stages, concatenated, into, layout, out, projected, summed
from se_lab.units.families.timm_nets import DENSE_LAYER, INCEPTION_V3


def _resnet(last: int) -> Layout:
    """Return the layout of a ResNet block, which uses one module for all its activations."""
    return projected("conv1", f"bn{last}", conv3x3=into(f"conv{last}"))


# the index of the last convolution depends on whether the block has an expansion and an SE unit
_MOBILE = summed(
    "block",
    "block",
    when="use_res_connect",
    conv3x3=(into("block.3", when="block.3"), into("block.2", when="block.2"), into("block.1")),
)

LAYOUTS: dict[str, Layout] = {
    "torchvision.models.resnet.BasicBlock": _resnet(2),
    "torchvision.models.resnet.Bottleneck": _resnet(3),
    "torchvision.models.regnet.ResBottleneckBlock": projected(
        "f", "f", "activation", identity=out("proj", when="proj"), conv3x3=into("f.c")
    ),
    "torchvision.models.mobilenetv2.InvertedResidual": summed(
        "conv", "conv", when="use_res_connect", conv3x3=(into("conv.2", when="conv.3"), into("conv.1"))
    ),
    "torchvision.models.mobilenetv3.InvertedResidual": _MOBILE,
    "torchvision.models.efficientnet.MBConv": _MOBILE,
    "torchvision.models.efficientnet.FusedMBConv": summed(
        "block", "block", when="use_res_connect", conv3x3=into("block.1", when="block.1")
    ),
    "torchvision.models.convnext.CNBlock": summed(
        "block.0", "block.0", standard=into("stochastic_depth", "block.0"), conv3x3=out("block.0")
    ),
    "torchvision.models.mnasnet._InvertedResidual": summed(
        "layers", "layers", when="apply_residual", conv3x3=into("layers.6")
    ),
    "torchvision.models.shufflenetv2.InvertedResidual": layout(
        standard=out("branch2"),
        pre=into("branch2"),
        post=out("", "branch2+branch2"),
        identity=out("branch1", when="branch1.0"),
        conv3x3=into("branch2.5"),
    ),
    "torchvision.models.densenet._DenseLayer": DENSE_LAYER,
    "torchvision.models.googlenet.Inception": concatenated("branch1+branch2+branch3+branch4"),
    **{f"torchvision.models.inception.{name}": row for name, row in INCEPTION_V3.items()},
}

STAGES: dict[str, Stages] = {
    "torchvision.models.mobilenetv2.MobileNetV2": BY_STRIDE,
    "torchvision.models.mobilenetv3.MobileNetV3": BY_STRIDE,
    "torchvision.models.googlenet.GoogLeNet": ("inception3", "inception4", "inception5"),
    "torchvision.models.inception.Inception3": BY_STRIDE,
}

FLAT: dict[str, str] = {"torchvision.models.vgg.VGG": "features"}

ATTENTION: dict[str, str] = {"torchvision.ops.misc.SqueezeExcitation": "SE"}

LAST_NORMS: dict[str, str] = {
    "torchvision.models.resnet.BasicBlock": "bn2",
    "torchvision.models.resnet.Bottleneck": "bn3",
}
"""The norms at the end of residual branches; timm's blocks have a method `zero_init_last` instead."""
