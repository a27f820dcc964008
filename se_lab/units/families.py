"""Where each family's units, branches and shortcuts are. Data: insertion.py holds the surgery.

A row names the points of one class of block, by insertion, where a unit computes join(branch(x), shortcut(x)):

- standard: the end of the branch, before drop path and join. A unit without a join takes it at its output (VGG: after
  the non-linearity that follows each convolution; inception modules: the concatenation; MobileNet: the pointwise
  convolution's activation).
- pre: the start of the branch, past where the shortcut leaves; in pre-activation units the first convolution.
- post: the unit's output, after what follows the join.
- identity: the shortcut, after its projection where there is one.
- conv3x3: inside the branch, after the spatial convolution with its norm and activation.

A point that a family has no module for, or that would not be the paper's, is left out. Selective-kernel and
split-attention convolutions (SKNet, ResNeSt) count as convolutions, not as SE units to keep or replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Point:
    """One place for an SE unit inside a block."""

    host: str
    """Path, from the block, of the module that the unit hangs on; empty for the block itself."""
    how: Literal["slot", "input", "output", "shortcut", "added", "argument"] = "output"
    """slot: the host attribute is the family's own place for attention, None or an identity when empty; input, output:
    the unit becomes a child of the host and scales what goes into or comes out of it; shortcut: likewise on the output
    of the projection, which is None where the shortcut is the identity; added: the shortcut has no module, but the
    block returns branch + shortcut, so that its output gains SE(x) − x; argument: the block takes the shortcut as its
    second argument."""
    channels: str = ""
    """The number of channels there: a sum of modules' widths (`conv3`), of the widths of what modules take (`>conv1`)
    and of attributes that hold a number. By default the host's."""
    when: str = ""
    """An attribute of the block without which (None or False) it has no such point; `no X` the other way round."""
    channels_last: bool = False
    """The tensor is (N, H, W, C)."""


Layout = dict[str, tuple[Point, ...]]
"""The points of one class of block, by insertion; of several the first that the block has."""


def _layout(**points: Point | tuple[Point, ...]) -> Layout:
    return {name: point if isinstance(point, tuple) else (point,) for name, point in points.items()}


def _out(host: str, channels: str = "", when: str = "") -> Point:
    return Point(host, "output", channels, when)


def _into(host: str, channels: str = "", when: str = "") -> Point:
    return Point(host, "input", channels, when)


def _slot(host: str, channels: str) -> Point:
    return Point(host, "slot", channels)


def _shortcut(host: str, channels: str, when: str = "") -> Point:
    return Point(host, "shortcut", channels, when)


def _added(channels: str, when: str = "") -> Point:
    return Point("", "added", channels, when)


def _resnet(last: int, wide: int | None = None) -> Layout:
    """Return the layout of timm's ResNet blocks: `last` convolutions, the `wide`-th of them the 3×3 of a bottleneck."""
    inner = wide or 1  # a basic block has two 3×3: the paper's conv3x3 is then the one inside the branch
    return _layout(
        standard=_slot("se", f"conv{last}"),
        pre=_into("conv1"),
        post=_out(f"act{last}", f"conv{last}"),
        identity=_shortcut("downsample", f"conv{last}"),
        conv3x3=_out(f"act{inner}", f"bn{inner}"),
    )


def _shared_relu(branch: Point, last: str, shortcut: str = "downsample") -> Layout:
    """Return the layout of a ResNet block that has one activation module for all its activations."""
    return _layout(
        standard=branch,
        pre=_into("conv1"),
        post=_out("", branch.channels),
        identity=_shortcut(shortcut, branch.channels),
        conv3x3=_into(last),
    )


def _dla(last: int) -> Layout:
    return _layout(
        standard=_out(f"bn{last}"),
        pre=_into("conv1"),
        post=_out("", f"bn{last}"),
        identity=Point("", "argument", f"bn{last}"),
        conv3x3=_into(f"conv{last}"),
    )


def _mobile(first: str, last: str, after_slot: str) -> Layout:
    """Return the layout of an inverted residual: nothing on the shortcut, nothing after the join, an `se` slot."""
    return _layout(
        standard=_out(last),
        pre=(_into("conv_s2d", when="conv_s2d"), _into(first)),
        post=_out("", last),
        identity=_added(last, when="has_skip"),
        conv3x3=_slot("se", f">{after_slot}"),
    )


def _next(first: str, channels: str, middle: str) -> Layout:
    """Return the layout of a ConvNeXt-like unit, whose branch goes through a `drop_path` module in any case."""
    return _layout(
        standard=_into("drop_path", channels),
        pre=_into(first, channels),
        post=_out("", channels),
        identity=_added(channels),
        conv3x3=_out(middle, channels),
    )


def _inception(channels: str) -> Layout:
    """Return the layout of a unit that concatenates its paths and has no shortcut."""
    return _layout(standard=_out("", channels))


def _byob(first: str, last: str, middle: Point | None) -> Layout:
    points = _layout(
        standard=_slot("attn_last", last),
        pre=_into(first),
        post=_out("act", last),
        identity=_out("shortcut", last, when="shortcut"),
    )
    return points | ({"conv3x3": (middle,)} if middle else {})


_GHOST = _layout(
    standard=_out("ghost2", "ghost2.out_chs"),
    pre=_into("ghost1"),
    post=_out("", "ghost2.out_chs"),
    identity=_out("shortcut", "ghost2.out_chs"),
    conv3x3=_slot("se", ">ghost2"),
)
_INVERTED = _mobile("conv_pw", "bn3", "conv_pwl")
_CELL = "comb_iter_0_left+comb_iter_1_left+comb_iter_2_left+comb_iter_3_left+comb_iter_4_left"

LAYOUTS: dict[str, Layout] = {
    "timm.models.resnet.BasicBlock": _resnet(last=2),
    "timm.models.resnet.Bottleneck": _resnet(last=3, wide=2),
    "timm.models.resnetv2.PreActBasic": _layout(
        standard=_into("drop_path", "conv2"),
        pre=_into("conv1"),
        post=_out("", "conv2"),
        identity=(_out("downsample", "conv2", when="downsample"), _added("conv2")),
        conv3x3=_out("norm2"),
    ),
    "timm.models.resnetv2.PreActBottleneck": _layout(
        standard=_into("drop_path", "conv3"),
        pre=_into("conv1"),
        post=_out("", "conv3"),
        identity=(_out("downsample", "conv3", when="downsample"), _added("conv3")),
        conv3x3=_out("norm3"),
    ),
    "timm.models.res2net.Bottle2neck": _shared_relu(_slot("se", "conv3"), "conv3"),
    "timm.models.regnet.Bottleneck": _layout(
        standard=_out("conv3"),
        pre=_into("conv1"),
        post=_out("act3", "conv3"),
        identity=_out("downsample", "conv3", when="downsample"),
        conv3x3=_slot("se", ">conv3"),
    ),
    "timm.models.regnet.PreBottleneck": _layout(
        standard=_out("conv3"),
        pre=_into("conv1"),
        post=_out("", "conv3"),
        identity=_out("downsample", "conv3", when="downsample"),
        conv3x3=_out("norm3"),
    ),
    "timm.models.resnest.ResNestBottleneck": _layout(
        standard=_out("bn3"),
        pre=_into("conv1"),
        post=_out("act3", "bn3"),
        # with drop path timm's block leaves a shortcut alone only where it has no projection
        identity=(_out("downsample", "bn3", when="downsample"), _shortcut("downsample", "bn3", when="no drop_path")),
        conv3x3=_out("act2", ">conv3"),
    ),
    "timm.models.sknet.SelectiveKernelBasic": _layout(
        standard=_slot("se", "conv2"),
        pre=_into("conv1", "conv1.in_channels"),
        post=_out("act", "conv2"),
        identity=_shortcut("downsample", "conv2"),
        conv3x3=_out("conv1", ">conv2"),
    ),
    "timm.models.sknet.SelectiveKernelBottleneck": _layout(
        standard=_slot("se", "conv3"),
        pre=_into("conv1"),
        post=_out("act", "conv3"),
        identity=_shortcut("downsample", "conv3"),
        conv3x3=_out("conv2", ">conv3"),
    ),
    "timm.models.senet.Bottleneck": _shared_relu(_slot("se_module", "bn3"), "conv3"),
    "timm.models.senet.SEResNetBlock": _shared_relu(_slot("se_module", "bn2"), "conv2"),
    "timm.models.dla.DlaBasic": _dla(2),
    "timm.models.dla.DlaBottleneck": _dla(3),
    "timm.models.dla.DlaBottle2neck": _dla(3),
    "timm.models.densenet.DenseLayer": _layout(standard=_out("conv2"), pre=_into("norm1")),
    "timm.models.rdnet.DenseBlock": _layout(standard=_into("drop_path", "layers"), pre=_into("layers")),
    "timm.models.dpn.DualPathBlock": _layout(
        # the newer blocks (b) split their branch's last convolution in two, and have no one place at its end
        standard=_out("c1x1_c", when="no b"),
        pre=_into("c1x1_a"),
        conv3x3=_out("c1x1_c.bn"),
    ),
    "timm.models.inception_v3.InceptionA": _inception("branch1x1+branch5x5_2+branch3x3dbl_3+branch_pool"),
    "timm.models.inception_v3.InceptionB": _inception("branch3x3+branch3x3dbl_3+>branch3x3"),
    "timm.models.inception_v3.InceptionC": _inception("branch1x1+branch7x7_3+branch7x7dbl_5+branch_pool"),
    "timm.models.inception_v3.InceptionD": _inception("branch3x3_2+branch7x7x3_4+>branch3x3_1"),
    "timm.models.inception_v3.InceptionE": _inception(
        "branch1x1+branch3x3_2a+branch3x3_2b+branch3x3dbl_3a+branch3x3dbl_3b+branch_pool"
    ),
    "timm.models.inception_v4.InceptionA": _inception("branch0+branch1+branch2+branch3"),
    "timm.models.inception_v4.InceptionB": _inception("branch0+branch1+branch2+branch3"),
    "timm.models.inception_v4.InceptionC": _inception("branch0+branch1_1a+branch1_1b+branch2_3a+branch2_3b+branch3"),
    "timm.models.inception_v4.ReductionA": _inception("branch0+branch1+>branch0"),
    "timm.models.inception_v4.ReductionB": _inception("branch0+branch1+>branch0"),
    "se_lab.backbones.bn_inception.Inception": _inception("out_channels"),
    "timm.models.inception_resnet_v2.Block35": _layout(standard=_out("conv2d"), post=_out("", "conv2d")),
    "timm.models.inception_resnet_v2.Block17": _layout(standard=_out("conv2d"), post=_out("", "conv2d")),
    "timm.models.inception_resnet_v2.Block8": _layout(standard=_out("conv2d"), post=_out("", "conv2d")),
    "timm.models.pnasnet.Cell": _inception(_CELL),
    "timm.models.xception.Block": _layout(
        standard=_out("rep"),
        pre=_into("rep"),
        post=_out("", "rep"),
        identity=(_out("skipbn", when="skip"), _added("rep")),
    ),
    "timm.models.xception_aligned.XceptionModule": _layout(
        standard=_out("stack.conv3"),
        pre=_into("stack"),
        post=_out("", "stack.conv3"),
        identity=(_out("shortcut", when="shortcut"), _added("stack.conv3", when="no no_skip")),
    ),
    "timm.models.xception_aligned.PreXceptionModule": _layout(
        standard=_out("stack.conv3"),
        pre=_into("stack"),
        post=_out("", "stack.conv3"),
        identity=_out("shortcut", "stack.conv3", when="no no_skip"),
    ),
    "timm.models._efficientnet_blocks.ConvBnAct": _layout(
        standard=_out("aa", "bn1"), pre=_into("conv"), post=_out("", "bn1"), identity=_added("bn1", when="has_skip")
    ),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": _mobile("conv_dw", "bn2", "conv_pw"),
    "timm.models._efficientnet_blocks.InvertedResidual": _INVERTED,
    # its convolutions take the routing weights as a second argument
    "timm.models._efficientnet_blocks.CondConvResidual": {k: v for k, v in _INVERTED.items() if k != "pre"},
    "timm.models._efficientnet_blocks.EdgeResidual": _mobile("conv_exp", "bn2", "conv_pwl")
    | {"pre": (_into("conv_exp"),)},
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": _layout(
        standard=_out("layer_scale", "pw_proj"),
        pre=_into("dw_start", ">pw_exp"),
        post=_out("", "pw_proj"),
        identity=_added("pw_proj", when="has_skip"),
        conv3x3=_slot("se", ">pw_proj"),
    ),
    "timm.models.ghostnet.GhostBottleneck": _GHOST,
    "timm.models.ghostnet.GhostBottleneckV3": _GHOST,
    "timm.models.repghost.RepGhostBottleneck": _GHOST,
    "timm.models.rexnet.LinearBottleneck": _layout(
        standard=_out("conv_pwl"),
        pre=(_into("conv_exp", when="conv_exp"), _into("conv_dw")),
        post=_out("", "conv_pwl"),
        conv3x3=_out("act_dw", "conv_dw"),
    ),
    "timm.models.lcnetv2.RepDepthwiseSeparable": _layout(
        standard=_out("pw_conv"),
        post=_out("", "pw_conv"),
        identity=_added("pw_conv", when="use_shortcut"),
        conv3x3=_slot("se", ">pw_conv"),
    ),
    "timm.models.convnext.ConvNeXtBlock": _next("conv_dw", "conv_dw", "conv_dw")
    | {"identity": (_out("shortcut", "conv_dw"),), "pre": (_into("conv_dw"),)},
    "timm.models.inception_next.MetaNeXtBlock": _next("token_mixer", "norm", "norm"),
    "timm.models.starnet.Block": _next("dwconv", "dwconv", "dwconv"),
    "timm.models.fasternet.MLPBlock": _next("spatial_mixing", ">mlp", "spatial_mixing"),
    "timm.models.metaformer.MetaFormerBlock": _layout(
        standard=_into("drop_path2", "mlp"),
        pre=_into("norm2", "mlp"),
        post=_out("", "mlp"),
        identity=_out("res_scale2", "mlp"),
        conv3x3=_out("token_mixer", "mlp"),
    ),
    "timm.models.focalnet.FocalNetBlock": _layout(
        standard=_into("drop_path2", "mlp"),
        pre=_into("norm2", "mlp"),
        post=_out("", "mlp"),
        conv3x3=_out("modulation", "mlp"),
    ),
    "timm.models.fastvit.RepMixerBlock": _layout(
        standard=_into("drop_path", "mlp"),
        pre=_into("mlp"),
        post=_out("", "mlp"),
        conv3x3=_out("token_mixer", "mlp"),
    ),
    "timm.models.mambaout.GatedConvBlock": _layout(
        standard=Point("drop_path", "input", "fc2", channels_last=True),
        pre=Point("norm", "input", ">fc1", channels_last=True),
        post=Point("", "output", "fc2", channels_last=True),
    ),
    "timm.models.repvit.RepViTBlock": _layout(
        standard=_out("channel_mixer"),
        pre=_into("channel_mixer"),
        post=_out("", "channel_mixer"),
        conv3x3=_slot("se", ">channel_mixer"),
    ),
    "timm.models.convmixer.Residual": _layout(
        standard=_out("fn"), pre=_into("fn"), post=_out("", "fn"), identity=_added("fn")
    ),
    "timm.models.vovnet.OsaBlock": _layout(
        standard=_slot("attn", "conv_concat"),
        post=_out("", "conv_concat"),
        identity=_added("conv_concat", when="residual"),
    ),
    "timm.models.hgnet.HighPerfGpuBlock": _layout(
        standard=_out("aggregation"),
        post=_out("", "aggregation"),
        identity=_added("aggregation", when="residual"),
    ),
    "timm.models.selecsls.SelecSlsBlock": _layout(standard=_out("conv6")),
    "timm.models.cspnet.BottleneckBlock": _layout(
        standard=_slot("attn3", "conv3"),
        pre=_into("conv1"),
        post=_out("act3", "conv3"),
        conv3x3=_slot("attn2", "conv2"),
    ),
    "timm.models.cspnet.DarkBlock": _layout(
        standard=_out("conv2"), pre=_into("conv1"), post=_out("", "conv2"), identity=_added("conv2")
    ),
    "timm.models.cspnet.EdgeBlock": _layout(
        standard=_out("conv2"),
        pre=_into("conv1"),
        post=_out("", "conv2"),
        identity=_added("conv2"),
        conv3x3=_slot("attn", "conv1"),
    ),
    "timm.models.cspnext.CspNextBlock": _layout(
        standard=_out("conv2"),
        pre=_into("conv1"),
        post=_out("", "conv2"),
        identity=_added("conv2", when="add_identity"),
        conv3x3=_out("conv1"),
    ),
    "timm.models.nfnet.NormFreeBlock": _layout(
        standard=_into("drop_path", "conv3"),
        pre=_into("conv1"),
        post=_out("", "conv3"),
        identity=(_out("downsample", when="downsample"), _added("conv3")),
        conv3x3=_out("act3", ">conv3"),
    ),
    "timm.models.tresnet.BasicBlock": _layout(
        standard=_slot("se", "conv2"),
        pre=_into("conv1"),
        post=_out("act", "conv2"),
        identity=_shortcut("downsample", "conv2"),
        conv3x3=_out("conv1"),
    ),
    "timm.models.tresnet.Bottleneck": _layout(
        standard=_out("conv3"),
        pre=_into("conv1"),
        post=_out("act", "conv3"),
        identity=_shortcut("downsample", "conv3"),
        conv3x3=_slot("se", ">conv3"),
    ),
    "timm.models.byobnet.BasicBlock": _byob("conv1_kxk", "conv2_kxk", _slot("attn", "conv1_kxk")),
    "timm.models.byobnet.BottleneckBlock": _byob("conv1_1x1", "conv3_1x1", _slot("attn", "conv2_kxk")),
    "timm.models.byobnet.DarkBlock": _byob("conv1_1x1", "conv2_kxk", None),
    "timm.models.byobnet.EdgeBlock": _byob("conv1_kxk", "conv2_1x1", _slot("attn", "conv1_kxk")),
    # re-parametrised units: the branches are summed, attention comes before the activation
    "timm.models.byobnet.RepVggBlock": _layout(standard=_slot("attn", "conv_1x1"), post=_out("act", "conv_1x1")),
    "timm.models.byobnet.MobileOneBlock": _layout(standard=_slot("attn", "conv_kxk"), post=_out("act", "conv_kxk")),
    "se_lab.backbones.shufflenet.ShuffleUnit": _layout(
        standard=_slot("se", "bn3"),
        pre=_into("conv1"),
        # beside the branch stands the shortcut, except where the two are added
        post=(_out("act3", ">conv1+bn3", when="downsample"), _out("act3", "bn3")),
        identity=_shortcut("downsample", ">conv1"),
        conv3x3=_out("bn2"),
    ),
    "se_lab.backbones.cifar_preact.PreActBasic": _layout(
        standard=_slot("se", "conv2"),
        pre=_into("conv1"),
        post=_out("", "conv2"),
        identity=_shortcut("downsample", "conv2"),
        conv3x3=_out("act2", ">conv2"),
    ),
    "se_lab.backbones.cifar_preact.PreActBottleneck": _layout(
        standard=_slot("se", "conv3"),
        pre=_into("conv1"),
        post=_out("", "conv3"),
        identity=_shortcut("downsample", "conv3"),
        conv3x3=_out("act3", ">conv3"),
    ),
    "se_lab.backbones.cifar_shake.ShakeBasic": _layout(
        standard=_slot("se", "shake"),
        pre=_into("shake"),
        post=_out("", "shake"),
        identity=_shortcut("downsample", "shake"),
    ),
    "se_lab.backbones.cifar_shake.ShakeBottleneck": _layout(
        standard=_slot("se", "shake"),
        pre=_into("shake"),
        post=_out("act", "shake"),
        identity=_shortcut("downsample", "shake"),
    ),
}
"""Layouts by the full name of the block's class; a subclass has its parent's."""

UNIT_WHEN: dict[str, str] = {
    "timm.models._efficientnet_blocks.ConvBnAct": "has_skip",
    "timm.models.metaformer.MetaFormerBlock": "no token_mixer.qkv",
}
"""Blocks that are units only if an attribute holds, or is not there: MobileNetV3's last stage is one 1×1 convolution,
CAFormer's last two are of attention, on tokens."""

BY_STRIDE: Final = "by stride"
STAGES: dict[str, tuple[str | tuple[str, ...], ...] | Literal["by stride"]] = {
    "timm.models.dla.DLA": ("level2.", "level3.", "level4.", "level5."),
    "timm.models.hrnet.HighResolutionNet": ("layer1.", "stage2.", "stage3.", "stage4.", "incre_modules."),
    "timm.models.rdnet.RDNet": tuple(f"dense_stages.{stage}." for stage in range(12)),
    "timm.models.inception_resnet_v2.InceptionResnetV2": ("repeat.", "repeat_1.", ("repeat_2.", "block8")),
    "timm.models.repvit.RepVit": tuple(f"stages.{stage}." for stage in range(4)),
    "timm.models.pnasnet.PNASNet5Large": tuple(
        tuple(f"cell_{cell}." for cell in range(first, first + 4)) for first in (0, 4, 8)
    ),
    "timm.models.convmixer.ConvMixer": ("blocks.",),
    "timm.models.inception_v3.InceptionV3": BY_STRIDE,
    "timm.models.inception_v4.InceptionV4": BY_STRIDE,
    "timm.models.xception.Xception": BY_STRIDE,
    "timm.models.xception_aligned.XceptionAligned": BY_STRIDE,
    "timm.models.dpn.DPN": BY_STRIDE,
    "timm.models.rexnet.RexNet": BY_STRIDE,
    "timm.models.selecsls.SelecSls": BY_STRIDE,
}
"""Nets whose stages are not the containers of their units: the paths of each stage, or "by stride", where a unit that
strides opens the next stage."""

FLAT: dict[str, str] = {"timm.models.vgg.VGG": "features"}
"""Nets that are one Sequential of convolutions: each activation after a convolution is a unit, each pooling ends a
stage."""

STEMS = ("stem", "conv_stem", "head", "cell_stem")
"""How the paths of what is no unit begin: stage 1 is the stem."""

ATTENTION: dict[str, str] = {
    "timm.layers.squeeze_excite.SEModule": "SE",
    "timm.layers.squeeze_excite.EffectiveSEModule": "effective SE",
    "timm.models._efficientnet_blocks.SqueezeExcite": "SE",
    "timm.models.senet.SEModule": "SE",
    "timm.models.hgnet.EseModule": "effective SE",
    "timm.layers.eca.EcaModule": "ECA",
    "timm.layers.eca.CecaModule": "circular ECA",
    "timm.layers.gather_excite.GatherExcite": "gather-excite",
    "timm.layers.global_context.GlobalContext": "global context",
    "timm.layers.cbam.CbamModule": "CBAM",
    "timm.layers.cbam.LightCbamModule": "light CBAM",
}
"""timm's channel attention, which a net may have of its own, by the class's full name."""

GAINED = ("timm.models.nfnet.NormFreeBlock",)
"""Blocks that multiply their attention's output by a gain: without attention the slot is None, not an identity."""
