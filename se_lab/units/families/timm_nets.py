"""Layouts of timm's blocks, and stages of its nets; `rows` explains the strings."""

from __future__ import annotations

from se_lab.units.families.rows import (
    BY_STRIDE,
    Layout,
    Point,
    Stages,
    added,
    concatenated,
    into,
    layout,
    out,
    projected,
    shortcut,
    slot,
    summed,
)


def _resnet(last: int, wide: int | None = None) -> Layout:
    """Return the layout of a ResNet block whose last and 3×3 convolutions are `last` and `wide`."""
    inner = wide or 1  # of the two 3×3 convolutions of a basic block, the first is inside the branch
    conv = f"conv{last}"
    return projected("conv1", conv, f"act{last}", standard=slot("se", conv), conv3x3=out(f"act{inner}", f"bn{inner}"))


def _senet(last: int) -> Layout:
    """Return the layout of a block of timm's SENet, which uses one module for all its activations."""
    return projected("conv1", f"bn{last}", standard=slot("se_module", f"bn{last}"), conv3x3=into(f"conv{last}"))


def _preactivated(last: str) -> Layout:
    """Return the layout of ResNet-v2's blocks, whose norms contain the activations."""
    return layout(
        standard=into("drop_path", last),
        pre=into("conv1"),
        post=out("", last),
        identity=(out("downsample", last, when="downsample"), added(last)),
        conv3x3=into(last),
    )


def _selective(kernels: str, last: str) -> Layout:
    """Return the layout of SKNet's blocks; `kernels` is the selective-kernel convolution."""
    pre = into("conv1", "conv1.in_channels")
    return projected("conv1", last, "act", standard=slot("se", last), pre=pre, conv3x3=out(kernels, f">{last}"))


def _dla(last: int) -> Layout:
    return layout(
        standard=out(f"bn{last}"),
        pre=into("conv1"),
        post=out("", f"bn{last}"),
        identity=Point("", "argument", f"bn{last}"),
        conv3x3=into(f"conv{last}"),
    )


def _mobile(first: str, last: str, after_slot: str) -> Layout:
    """Return the layout of an inverted residual with an `se` slot and an identity shortcut."""
    return summed(
        first,
        last,
        when="has_skip",
        standard=(into("drop_path", last, when="has_skip"), out("", last)),
        pre=(into("conv_s2d", when="conv_s2d"), into(first)),
        conv3x3=slot("se", f">{after_slot}"),
    )


def _next(first: str, channels: str, middle: str) -> Layout:
    """Return the layout of a block like ConvNeXt's, whose branch ends in a `drop_path` module."""
    return summed(
        first,
        channels,
        standard=into("drop_path", channels),
        pre=into(first, channels),
        conv3x3=out(middle, channels),
    )


def _byob(first: str, last: str, middle: Point | None) -> Layout:
    points = layout(
        standard=slot("attn_last", last),
        pre=into(first),
        post=out("act", last),
        identity=out("shortcut", last, when="shortcut"),
    )
    return points | ({"conv3x3": (middle,)} if middle else {})


_GHOST = layout(
    standard=out("ghost2", "ghost2.out_chs"),
    pre=into("ghost1"),
    post=out("", "ghost2.out_chs"),
    identity=out("shortcut", "ghost2.out_chs"),
    conv3x3=slot("se", ">ghost2"),
)
_FOUR_CELLS = "+".join(4 * ["comb_iter_4_left"])
_INVERTED = _mobile("conv_pw", "bn3", "conv_pwl")
DENSE_LAYER = layout(standard=out("conv2"), pre=Point("", "joined", ">norm1"))
"""The layout of DenseNet's layers, which is the same in timm and torchvision."""
INCEPTION_V3 = {
    "InceptionA": concatenated("branch1x1+branch5x5_2+branch3x3dbl_3+branch_pool"),
    "InceptionB": concatenated("branch3x3+branch3x3dbl_3+>branch3x3"),
    "InceptionC": concatenated("branch1x1+branch7x7_3+branch7x7dbl_5+branch_pool"),
    "InceptionD": concatenated("branch3x3_2+branch7x7x3_4+>branch3x3_1"),
    "InceptionE": concatenated("branch1x1+branch3x3_2a+branch3x3_2b+branch3x3dbl_3a+branch3x3dbl_3b+branch_pool"),
}
"""The layouts of Inception-v3's modules, which are the same in timm and torchvision."""

LAYOUTS: dict[str, Layout] = {
    "timm.models.resnet.BasicBlock": _resnet(last=2),
    "timm.models.resnet.Bottleneck": _resnet(last=3, wide=2),
    "timm.models.resnetv2.PreActBasic": _preactivated("conv2"),
    "timm.models.resnetv2.PreActBottleneck": _preactivated("conv3"),
    "timm.models.res2net.Bottle2neck": projected("conv1", "conv3", standard=slot("se", "conv3"), conv3x3=into("conv3")),
    "timm.models.regnet.Bottleneck": projected(
        "conv1",
        "conv3",
        "act3",
        identity=out("downsample", "conv3", when="downsample"),
        conv3x3=slot("se", ">conv3"),
    ),
    "timm.models.regnet.PreBottleneck": projected(
        "conv1", "conv3", identity=out("downsample", "conv3", when="downsample"), conv3x3=into("conv3")
    ),
    "timm.models.resnest.ResNestBottleneck": layout(
        standard=out("bn3"),
        pre=into("conv1"),
        post=out("act3", "bn3"),
        # with drop path, timm's block has an identity shortcut only if it has no projection
        identity=(out("downsample", "bn3", when="downsample"), shortcut("downsample", "bn3", when="no drop_path")),
        conv3x3=out("act2", ">conv3"),
    ),
    "timm.models.sknet.SelectiveKernelBasic": _selective("conv1", "conv2"),
    "timm.models.sknet.SelectiveKernelBottleneck": _selective("conv2", "conv3"),
    "timm.models.senet.Bottleneck": _senet(3),
    "timm.models.senet.SEResNetBlock": _senet(2),
    "timm.models.dla.DlaBasic": _dla(2),
    "timm.models.dla.DlaBottleneck": _dla(3),
    "timm.models.dla.DlaBottle2neck": _dla(3),
    "timm.models.densenet.DenseLayer": DENSE_LAYER,
    "timm.models.rdnet.DenseBlock": layout(standard=into("drop_path", "layers"), pre=into("layers")),
    "timm.models.dpn.DualPathBlock": layout(
        # the newer blocks (b) split their last convolution in two; both take the output of c1x1_c
        standard=out("c1x1_c"),
        pre=into("c1x1_a"),
        conv3x3=into("c1x1_c.conv", when="no b"),
    ),
    **{f"timm.models.inception_v3.{name}": row for name, row in INCEPTION_V3.items()},
    "timm.models.inception_v4.InceptionA": concatenated("branch0+branch1+branch2+branch3"),
    "timm.models.inception_v4.InceptionB": concatenated("branch0+branch1+branch2+branch3"),
    "timm.models.inception_v4.InceptionC": concatenated("branch0+branch1_1a+branch1_1b+branch2_3a+branch2_3b+branch3"),
    "timm.models.inception_v4.ReductionA": concatenated("branch0+branch1+>branch0"),
    "timm.models.inception_v4.ReductionB": concatenated("branch0+branch1+>branch0"),
    "timm.models.inception_resnet_v2.Block35": layout(standard=out("conv2d"), post=out("", "conv2d")),
    "timm.models.inception_resnet_v2.Block17": layout(standard=out("conv2d"), post=out("", "conv2d")),
    "timm.models.inception_resnet_v2.Block8": layout(standard=out("conv2d"), post=out("", "conv2d")),
    "timm.models.pnasnet.Cell": concatenated(
        "comb_iter_0_left+comb_iter_1_left+comb_iter_2_left+comb_iter_3_left+comb_iter_4_left"
    ),
    "timm.models.xception.Block": layout(
        standard=out("rep"),
        pre=into("rep"),
        post=out("", "rep"),
        identity=(out("skipbn", when="skip"), added("rep")),
    ),
    "timm.models.xception_aligned.XceptionModule": layout(
        standard=out("stack.conv3"),
        pre=into("stack"),
        post=out("", "stack.conv3"),
        identity=(out("shortcut", when="shortcut"), added("stack.conv3", when="no no_skip")),
    ),
    "timm.models.xception_aligned.PreXceptionModule": layout(
        standard=out("stack.conv3"),
        pre=into("stack"),
        post=out("", "stack.conv3"),
        identity=out("shortcut", "stack.conv3", when="no no_skip"),
    ),
    "timm.models._efficientnet_blocks.ConvBnAct": summed("conv", "bn1", when="has_skip", standard=out("aa", "bn1")),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": _mobile("conv_dw", "bn2", "conv_pw"),
    "timm.models._efficientnet_blocks.InvertedResidual": _INVERTED,
    # its convolutions take the routing weights as a second argument
    "timm.models._efficientnet_blocks.CondConvResidual": {k: v for k, v in _INVERTED.items() if k != "pre"},
    "timm.models._efficientnet_blocks.EdgeResidual": _mobile("conv_exp", "bn2", "conv_pwl")
    | {"pre": (into("conv_exp"),)},
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": layout(
        standard=out("layer_scale", "pw_proj"),
        pre=into("dw_start", ">pw_exp"),
        post=out("", "pw_proj"),
        identity=added("pw_proj", when="has_skip"),
        conv3x3=slot("se", ">pw_proj"),
    ),
    "timm.models.ghostnet.GhostBottleneck": _GHOST,
    "timm.models.ghostnet.GhostBottleneckV3": _GHOST,
    "timm.models.repghost.RepGhostBottleneck": _GHOST,
    "timm.models.rexnet.LinearBottleneck": layout(
        standard=out("conv_pwl"),
        pre=(into("conv_exp", when="conv_exp"), into("conv_dw")),
        post=out("", "conv_pwl"),
        conv3x3=out("act_dw", "conv_dw"),
    ),
    "timm.models.lcnetv2.RepDepthwiseSeparable": layout(
        standard=out("pw_conv"),
        post=out("", "pw_conv"),
        identity=added("pw_conv", when="use_shortcut"),
        conv3x3=slot("se", ">pw_conv"),
    ),
    "timm.models.convnext.ConvNeXtBlock": _next("conv_dw", "conv_dw", "conv_dw")
    | {"identity": (out("shortcut", "conv_dw"),), "pre": (into("conv_dw"),)},
    "timm.models.inception_next.MetaNeXtBlock": _next("token_mixer", "norm", "norm") | {"conv3x3": (into("mlp"),)},
    "timm.models.starnet.Block": _next("dwconv", "dwconv", "dwconv"),
    "timm.models.fasternet.MLPBlock": _next("spatial_mixing", ">mlp", "spatial_mixing"),
    "timm.models.metaformer.MetaFormerBlock": layout(
        standard=into("drop_path2", "mlp"),
        pre=into("norm2", "mlp"),
        post=out("", "mlp"),
        identity=out("res_scale2", "mlp"),
        conv3x3=out("token_mixer", "mlp"),
    ),
    "timm.models.focalnet.FocalNetBlock": layout(
        standard=into("drop_path2", "mlp"),
        pre=into("norm2", "mlp"),
        post=out("", "mlp"),
        conv3x3=out("modulation", "mlp"),
    ),
    "timm.models.fastvit.RepMixerBlock": layout(
        standard=into("drop_path", "mlp"),
        pre=into("mlp"),
        post=out("", "mlp"),
        conv3x3=out("token_mixer", "mlp"),
    ),
    "timm.models.mambaout.GatedConvBlock": layout(
        standard=Point("drop_path", "input", "fc2", channels_last=True),
        pre=Point("norm", "input", ">fc1", channels_last=True),
        post=Point("", "output", "fc2", channels_last=True),
    ),
    "timm.models.repvit.RepViTBlock": layout(
        standard=out("channel_mixer"),
        pre=into("channel_mixer"),
        post=out("", "channel_mixer"),
        conv3x3=slot("se", ">channel_mixer"),
    ),
    "timm.models.convmixer.Residual": summed("fn", "fn"),
    "timm.models.vovnet.OsaBlock": layout(
        standard=slot("attn", "conv_concat"),
        post=out("", "conv_concat"),
        identity=added("conv_concat", when="residual"),
    ),
    "timm.models.hgnet.HighPerfGpuBlock": layout(
        standard=out("aggregation"),
        post=out("", "aggregation"),
        identity=added("aggregation", when="residual"),
    ),
    "timm.models.selecsls.SelecSlsBlock": layout(standard=out("conv6")),
    "timm.models.cspnet.BottleneckBlock": layout(
        standard=slot("attn3", "conv3"),
        pre=into("conv1"),
        post=out("act3", "conv3"),
        conv3x3=slot("attn2", "conv2"),
    ),
    "timm.models.cspnet.DarkBlock": summed("conv1", "conv2"),
    "timm.models.cspnet.EdgeBlock": summed("conv1", "conv2", conv3x3=slot("attn", "conv1")),
    "timm.models.cspnext.CspNextBlock": summed("conv1", "conv2", when="add_identity", conv3x3=out("conv1")),
    "timm.models.nfnet.NormFreeBlock": layout(
        standard=into("drop_path", "conv3"),
        pre=into("conv1"),
        post=out("", "conv3"),
        identity=(out("downsample", when="downsample"), added("conv3")),
        conv3x3=out("act3", ">conv3"),
    ),
    "timm.models.tresnet.BasicBlock": projected(
        "conv1", "conv2", "act", standard=slot("se", "conv2"), conv3x3=out("conv1")
    ),
    "timm.models.tresnet.Bottleneck": projected("conv1", "conv3", "act", conv3x3=slot("se", ">conv3")),
    "timm.models.byobnet.BasicBlock": _byob("conv1_kxk", "conv2_kxk", slot("attn", "conv1_kxk")),
    "timm.models.byobnet.BottleneckBlock": _byob("conv1_1x1", "conv3_1x1", slot("attn", "conv2_kxk")),
    "timm.models.byobnet.DarkBlock": _byob("conv1_1x1", "conv2_kxk", None),
    "timm.models.byobnet.EdgeBlock": _byob("conv1_kxk", "conv2_1x1", slot("attn", "conv1_kxk")),
    # re-parametrised blocks: the branches are summed, and attention comes before the activation
    "timm.models.byobnet.RepVggBlock": layout(standard=slot("attn", "conv_1x1"), post=out("act", "conv_1x1")),
    "timm.models.byobnet.MobileOneBlock": layout(standard=slot("attn", "conv_kxk"), post=out("act", "conv_kxk")),
    "timm.models.nasnet.FirstCell": concatenated(f"final_path_bn+comb_iter_4_left+{_FOUR_CELLS}"),
    "timm.models.nasnet.NormalCell": concatenated(f"conv_prev_1x1+comb_iter_4_left+{_FOUR_CELLS}"),
    "timm.models.nasnet.ReductionCell0": concatenated(_FOUR_CELLS),
    "timm.models.nasnet.ReductionCell1": concatenated(_FOUR_CELLS),
    "timm.models.lowformer.ResidualBlock": layout(
        standard=out("main"),
        pre=into("main"),
        post=out("", "main"),
        identity=out("shortcut", "main", when="shortcut"),
        conv3x3=into("main.point_conv"),
    ),
}

UNIT_WHEN: dict[str, str] = {
    "timm.models._efficientnet_blocks.ConvBnAct": "has_skip",
    "timm.models.metaformer.MetaFormerBlock": "no token_mixer.qkv",
    "timm.models.lowformer.ResidualBlock": "main.point_conv",
}
"""Conditions under which blocks take units: they exclude the 1×1 convolution at the end of MobileNetV3, and the blocks
of CAFormer and LowFormer that consist of attention or an MLP."""

_FOUR = tuple(f"stages.{stage}." for stage in range(4))
STAGES: dict[str, Stages] = {
    "timm.models.dla.DLA": ("level2.", "level3.", "level4.", "level5."),
    "timm.models.hrnet.HighResolutionNet": ("layer1.", "stage2.", "stage3.", "stage4.", "incre_modules."),
    "timm.models.rdnet.RDNet": tuple(f"dense_stages.{stage}." for stage in range(12)),
    "timm.models.inception_resnet_v2.InceptionResnetV2": ("repeat.", "repeat_1.", ("repeat_2.", "block8")),
    "timm.models.repvit.RepVit": _FOUR,
    "timm.models.lowformer.LowFormer": _FOUR,
    "timm.models.nasnet.NASNetALarge": (
        tuple(f"cell_{cell}." for cell in range(6)),
        ("reduction_cell_0.", *(f"cell_{cell}." for cell in range(6, 12))),
        ("reduction_cell_1.", *(f"cell_{cell}." for cell in range(12, 18))),
    ),
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

FLAT: dict[str, str] = {"timm.models.vgg.VGG": "features"}

STEMS = ("stem", "conv_stem", "head", "cell_stem")

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

GAINED = ("timm.models.nfnet.NormFreeBlock",)
