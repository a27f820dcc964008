"""Units survive what tools do to norms, or the next forward pass says that they did not."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import freeze
from torch import nn
from torch.fx.experimental.optimization import fuse

from se_lab import SESpec, SpecError, insert_se
from se_lab.backbones import PREFIX, build_torchvision
from se_lab.units import hosts

# nets with a norm where a unit goes, and the insertions there
ON_NORMS = {
    "mobilenetv2_050": ("standard",),
    "efficientnet_lite0": ("standard",),
    "fbnetc_100": ("standard",),
    "efficientnet_es": ("standard",),
    "dla46_c": ("standard",),
    "resnest14d": ("standard",),
    "legacy_xception": ("identity",),
    "resnetv2_18d": ("conv3x3",),
    "inception_next_atto": ("conv3x3",),
    "densenet121": ("pre",),
    "dpn68": ("conv3x3",),
    "shufflenet_v1_g3": ("conv3x3",),
    "torchvision:resnet18": ("standard",),
    "torchvision:mobilenet_v2": ("standard",),
}
MAY_BE_LOST = ("dla46_c", "resnest14d", "legacy_xception", "torchvision:resnet18")
"""Nets whose block calls nothing after the norm that a unit could hang on."""

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def patched(name, insertion, stages=(2,)):
    torch.manual_seed(0)
    if name.startswith(PREFIX):
        net = build_torchvision(name, pretrained=False, num_classes=3)
    else:
        net = timm.create_model(name, num_classes=3)
    sites = insert_se(net.eval(), SESpec(insertion, stages=stages))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.weight.data.uniform_(0.5, 1.5)  # timm starts the last norms of blocks with 0, which would hide units
    return net, sites


@torch.no_grad()
@pytest.mark.parametrize(("name", "insertion"), [(name, ins) for name, all in ON_NORMS.items() for ins in all])
def test_a_tool_that_replaces_norms_leaves_the_units_or_the_net_says_which_is_gone(name, insertion):
    net, sites = patched(name, insertion)
    expected = net(IMAGES)
    for tool in (freeze, convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm):
        other = copy.deepcopy(net)
        other = tool(other) or other
        if name in MAY_BE_LOST:
            with pytest.raises(SpecError, match=rf"{sites[0].name} no longer runs: its norm .* was replaced by"):
                other(IMAGES)
        elif tool is not freeze:  # on a CPU a SyncBatchNorm takes no images: back to the norm that it was
            other = unsynced(other)
        if name not in MAY_BE_LOST:
            torch.testing.assert_close(other(IMAGES), expected, rtol=1e-4, atol=1e-4)


def unsynced(net):
    for module in net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.forward = functools.partial(normalise, module)
    return net


def normalise(norm, x):
    x = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return norm.act(norm.drop(x)) if hasattr(norm, "act") else x


@torch.no_grad()
@pytest.mark.parametrize(("name", "insertion"), [(name, ins) for name, all in ON_NORMS.items() for ins in all])
def test_folding_norms_into_convolutions_keeps_the_units(name, insertion):
    net, _ = patched(name, insertion)
    expected = net(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folded = fuse(net)
    torch.testing.assert_close(folded(IMAGES), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("insertion", ["standard", "pre", "post", "identity", "conv3x3"])
def test_int8_through_torch_fx_keeps_the_units(insertion):
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    net, _ = patched("resnet10t", insertion, stages="all")
    expected = net(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = torch.ao.quantization.get_default_qconfig_mapping("x86")
        prepared = quantize_fx.prepare_fx(copy.deepcopy(net), mapping, (IMAGES,))
        prepared(IMAGES)
        outputs = quantize_fx.convert_fx(prepared)(IMAGES)
    assert (outputs - expected).norm() < 0.1 * expected.norm(), "the units are lost"


def test_a_net_with_hosts_can_be_unpickled_by_a_process_that_has_inserted_nothing(monkeypatch):
    net, _ = patched("resnet10t", "post")
    content = pickle.dumps(net)
    monkeypatch.delitem(vars(hosts), "HostReLU")
    torch.testing.assert_close(pickle.loads(content)(IMAGES), net(IMAGES))
