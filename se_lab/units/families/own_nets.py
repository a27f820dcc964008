"""Layouts of the blocks of SE-Lab's own backbones; `rows` explains the strings."""

from __future__ import annotations

from se_lab.units.families.rows import Layout, Point, concatenated, into, layout, out, projected, shortcut, slot


def _residual(last: str, conv3x3: Point | None = None, post: str = "", pre: str = "conv1") -> Layout:
    row = projected(pre, last, post, standard=slot("se", last))
    return row | ({"conv3x3": (conv3x3,)} if conv3x3 else {})


LAYOUTS: dict[str, Layout] = {
    "se_lab.backbones.bn_inception.Inception": concatenated("out_channels"),
    "se_lab.backbones.shufflenet.ShuffleBlock": layout(
        standard=slot("se", "bn3"),
        pre=into("conv1"),
        # branch and shortcut are concatenated with stride 2, and added with stride 1
        post=(out("act3", ">conv1+bn3", when="downsample"), out("act3", "bn3")),
        identity=shortcut("downsample", ">conv1"),
        conv3x3=into("conv3"),
    ),
    "se_lab.backbones.cifar_preact.PreActBasic": _residual("conv2", out("act2", ">conv2")),
    "se_lab.backbones.cifar_preact.PreActBottleneck": _residual("conv3", out("act3", ">conv3")),
    "se_lab.backbones.cifar_shake.ShakeBasic": _residual("shake", pre="shake"),
    "se_lab.backbones.cifar_shake.ShakeBottleneck": _residual("shake", post="act", pre="shake"),
}
