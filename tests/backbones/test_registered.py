"""What holds of every registered backbone: its costs to the unit, its shapes, and timm's conventions."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import se_lab.backbones  # noqa: F401

torch.set_num_threads(1)

# Parameters at the default number of classes and MACs of one image of the default size; above them, what is printed.
COSTS = {
    # He et al. 2015, Table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M.
    "cifar_resnet20": (269_722, 40_551_040),
    "cifar_resnet32": (464_154, 68_862_592),
    "cifar_resnet44": (658_586, 97_174_144),
    "cifar_resnet56": (853_018, 125_485_696),
    "cifar_resnet110": (1_727_962, 252_887_680),
    # 1.7M (He et al. 2016, Table 4), 11.0M (Zagoruyko and Komodakis 2016, Table 4), 26.2M (Gastaldi 2017, Table 3).
    "cifar_preact_resnet164": (1_703_258, 244_500_992),
    "cifar_wrn16_8": (10_961_370, 1_548_145_664),
    "cifar_shake_shake26_2x96d": (26_192_922, 3_776_892_672),
    # At 10 classes 34,437,450, the 34.4M of Gastaldi 2017, Table 3.
    "cifar_shake_shake29_2x4x64d": (34_529_700, 5_387_358_208),
    # The SE paper's reference counts: 2.033, 0.1375, 3.858, 7.570 and 11.282 GMACs.
    "bn_inception": (11_285_224, 2_032_600_064),
    "shufflenet_v1_g3": (1_865_728, 137_460_672),
    "resnet50_v1": (25_557_032, 3_857_973_248),
    "resnet101_v1": (44_549_160, 7_570_194_432),
    "resnet152_v1": (60_192_808, 11_282_415_616),
    # SENet-154's 115,088,984 less 6,629,040 in its SE units, which `test_resnet_v1` derives.
    "senet154_base": (108_459_944, 20_681_785_344),
}
# One net of each architecture; then those that are not of timm's ResNet class.
CIFAR = ["cifar_resnet20", *list(COSTS)[5:9]]
OWN = [*CIFAR, "bn_inception", "shufflenet_v1_g3"]
KINDS = [*OWN, "resnet50_v1", "senet154_base"]


def small(name: str, **kwargs: Any) -> nn.Module:
    """Make the net with one unit a stage where that is a choice, so that it runs quickly."""
    if name.startswith("cifar_"):
        kwargs["units"] = 1
    elif name.startswith(("resnet", "senet")):
        kwargs["layers"] = (1, 1, 1, 1)
    net: nn.Module = timm.create_model(name, **kwargs)
    return net


def image_size(name: str) -> int:
    return 8 if name.startswith("cifar_") else 64


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def macs(net: nn.Module, size: tuple[int, int, int]) -> int:
    """Count one image's multiply-accumulates in convolutions and linears."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.empty(1, *size, device="meta"))
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("name", COSTS)
def test_costs_to_the_unit(name: str) -> None:
    net = timm.create_model(name, device="meta")
    assert (parameters(net), macs(net, net.default_cfg["input_size"])) == COSTS[name]


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution without bias and its batch norm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def test_cifar_parameters_follow_from_the_papers() -> None:
    def stages(stem: int, channels: tuple[int, ...], units: int, unit: Any) -> int:
        inputs = [stem, *[c for c in channels for _ in range(units)]]
        return sum(unit(i, o) for i, o in pairwise(inputs))

    def basic(i: int, o: int) -> int:
        return conv(i, o, 3) + conv(o, o, 3)

    def preact_basic(i: int, o: int) -> int:  # its norms stand before the convolutions
        return 2 * i + conv(i, o, 3) + o * o * 9 + (i * o if i != o else 0)

    def preact_bottleneck(i: int, o: int) -> int:
        w = o // 4
        return 2 * i + conv(i, w, 1) + conv(w, w, 3) + w * o + (i * o if i != o else 0)

    def shake_basic(i: int, o: int) -> int:
        return 2 * basic(i, o) + (conv(i, o, 1) if i != o else 0)

    def shake_bottleneck(i: int, o: int) -> int:  # w is four groups of o / 4
        w = o
        branch = conv(i, w, 1) + (w * w // 4 * 9 + 2 * w) + conv(w, o, 1)
        return 2 * branch + (conv(i, o, 1) if i != o else 0)

    def head(channels: int, classes: int) -> int:
        return channels * classes + classes

    for depth in (20, 32, 44, 56, 110):
        expected = conv(3, 16, 3) + stages(16, (16, 32, 64), (depth - 2) // 6, basic) + head(64, 10)
        assert COSTS[f"cifar_resnet{depth}"][0] == expected
    expected = 3 * 16 * 9 + stages(16, (64, 128, 256), 18, preact_bottleneck) + 2 * 256 + head(256, 10)
    assert COSTS["cifar_preact_resnet164"][0] == expected
    expected = 3 * 16 * 9 + stages(16, (128, 256, 512), 2, preact_basic) + 2 * 512 + head(512, 10)
    assert COSTS["cifar_wrn16_8"][0] == expected
    expected = conv(3, 16, 3) + stages(16, (96, 192, 384), 4, shake_basic) + head(384, 10)
    assert COSTS["cifar_shake_shake26_2x96d"][0] == expected
    expected = conv(3, 64, 3) + stages(64, (256, 512, 1024), 3, shake_bottleneck) + head(1024, 100)
    assert COSTS["cifar_shake_shake29_2x4x64d"][0] == expected
    assert expected - head(1024, 100) + head(1024, 10) == 34_437_450


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize(("size", "last"), [(8, 2), (9, 3), (32, 8), (64, 16)])
def test_cifar_nets_take_8_to_64_pixels_and_any_channels(name: str, size: int, last: int) -> None:
    net = timm.create_model(name, device="meta", num_classes=7, in_chans=5).eval()
    images = torch.empty(2, 5, size, size, device="meta")
    assert net.forward_features(images).shape == (2, net.num_features, last, last)
    assert net(images).shape == (2, 7)


@pytest.mark.parametrize("name", ["bn_inception", "shufflenet_v1_g3", "resnet50_v1"])
@pytest.mark.parametrize(("size", "last"), [(32, 1), (64, 2), (200, 7), (224, 7)])
def test_imagenet_nets_take_any_size(name: str, size: int, last: int) -> None:
    net = timm.create_model(name, device="meta", num_classes=7, in_chans=1).eval()
    images = torch.empty(2, 1, size, size, device="meta")
    assert net.forward_features(images).shape == (2, net.num_features, last, last)
    assert net(images).shape == (2, 7)


@pytest.mark.parametrize("name", KINDS)
def test_training_gives_every_parameter_a_finite_gradient(name: str) -> None:
    torch.manual_seed(0)
    size = image_size(name)
    net = small(name).train()
    net(torch.randn(4, 3, size, size)).square().mean().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", OWN)
def test_head_is_timms(name: str) -> None:
    net = timm.create_model(name, device="meta", num_classes=3, drop_rate=0.5).eval()
    size = image_size(name)
    images = torch.empty(2, 3, size, size, device="meta")
    features = net.forward_features(images)
    assert net.forward_head(features).shape == (2, 3)
    assert net.forward_head(features, pre_logits=True).shape == (2, net.num_features)
    assert net.get_classifier() is net.fc
    assert net.get_classifier(name_only=True) == net.default_cfg["classifier"] == "fc"
    net.reset_classifier(4, "catavgmax")
    assert net(images).shape == (2, 4)
    assert net.head_hidden_size == 2 * net.num_features
    assert next(net.fc.parameters()).device.type == "meta"
    net.reset_classifier(0)
    assert net(images).shape == (2, 2 * net.num_features)
    net.reset_classifier(0, "")
    assert net(images).shape == features.shape


@pytest.mark.parametrize("name", OWN)
def test_layers_and_type_are_choices(name: str) -> None:
    net = small(name, act_layer="silu", norm_layer=nn.InstanceNorm2d, dtype=torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    kinds = {type(module) for module in net.modules()}
    assert nn.InstanceNorm2d in kinds
    assert not kinds & {nn.ReLU, nn.BatchNorm2d}


@pytest.mark.parametrize("name", KINDS)
def test_first_convolution_and_parameter_groups_are_named(name: str) -> None:
    net = timm.create_model(name, device="meta", in_chans=2)
    first = net.get_submodule(net.default_cfg["first_conv"])
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 2
    groups = param_groups_layer_decay(net, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(net.parameters()))
    assert scales[id(net.fc.weight)] == 1
    assert scales[id(first.weight)] == min(scales.values())


@pytest.mark.parametrize("name", OWN)
def test_features_only_returns_each_scale(name: str) -> None:
    net = timm.create_model(name, device="meta", features_only=True).eval()
    maps = net(torch.empty(1, 3, 64, 64, device="meta"))
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == net.feature_info.reduction()


def test_convolutions_start_from_he_initialisation() -> None:
    torch.manual_seed(0)
    net = timm.create_model("cifar_wrn16_8")
    weight = net.layer3[1].conv1.weight
    fan_out = weight.shape[0] * 9
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script_export_deepcopy_and_pickle_agree(name: str) -> None:
    net = small(name).eval()
    size = image_size(name)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = net(images)
        torch.testing.assert_close(torch.jit.script(net)(images), expected)
        torch.testing.assert_close(torch.jit.script(torch.fx.symbolic_trace(net))(images), expected)
        torch.testing.assert_close(torch.export.export(net, (images,)).module()(images), expected)
        assert torch.equal(copy.deepcopy(net)(images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(net))(images), expected)


@pytest.mark.parametrize("name", OWN)
def test_intermediates_are_the_maps_that_timms_feature_extraction_returns(name: str) -> None:
    torch.manual_seed(0)
    net = small(name).eval()
    torch.manual_seed(0)  # the same weights, under timm's own names
    extracted = small(name, features_only=True).eval()
    images = torch.randn(1, 3, image_size(name), image_size(name))
    with torch.no_grad():
        final, maps = net.forward_intermediates(images)
        assert torch.equal(final, net.forward_features(images))
        expected = extracted(images)
        assert len(maps) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
        (first,) = net.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(first, expected[0])
    with pytest.raises(ValueError, match="output_fmt is 'NLC'; it must be NCHW"):
        net.forward_intermediates(images, output_fmt="NLC")


def test_gradient_checkpointing_is_refused() -> None:
    net = timm.create_model("cifar_resnet20", device="meta")
    net.set_grad_checkpointing(False)
    with pytest.raises(NotImplementedError, match="CifarNet has no gradient checkpointing"):
        net.set_grad_checkpointing()
