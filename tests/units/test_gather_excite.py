"""Gather-excite equals timm's forward pass, with the parameters that timm's constructor cannot give it."""

from __future__ import annotations

import pytest
import torch
from timm.layers.create_conv2d import create_conv2d
from timm.layers.gather_excite import GatherExcite
from timm.layers.mlp import ConvMlp
from torch import nn

from se_lab import ModelSpec, SESpec
from se_lab.units.costs import trace
from se_lab.units.table import build_unit
from tests.units.test_others import images, randomised


def timms(extent, convolutions, hidden):
    """Return timm's layer, with the modules that its constructor means to build."""
    layer = GatherExcite(12, extent=extent, use_mlp=False)
    if convolutions:
        gather = []
        for _ in range(convolutions):
            gather += [create_conv2d(12, 12, kernel_size=3, stride=2, depthwise=True), nn.BatchNorm2d(12), nn.ReLU()]
        layer.gather = nn.Sequential(*gather[:-1])
    if hidden:
        layer.mlp = ConvMlp(12, hidden)
    return layer


def ours_of(key):
    return key.replace("mlp.fc1", "excite.0").replace("mlp.fc2", "excite.2")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "extent", "convolutions", "hidden"),
    [("ge", 0, 0, 0), ("ge_2", 2, 0, 0), ("ge_4", 4, 0, 0), ("ge_8", 8, 0, 0)]
    + [(f"ge_theta_{2**n}", 2**n, n, 0) for n in (1, 2, 3)]
    + [(f"ge_plus_{2**n}", 2**n, n, 3) for n in (1, 2, 3)],
)
@pytest.mark.parametrize("size", [(9, 6), (8, 8), (1, 1)])
def test_gather_excite_equals_timms_in_outputs_and_gradients(name, extent, convolutions, hidden, training, size):
    theirs = randomised(timms(extent, convolutions, hidden).double().train(training))
    spec = SESpec(unit=name, reduction=4, bias=True) if hidden else SESpec(unit=name)
    ours = build_unit(spec, 12).double().train(training)
    ours.load_state_dict({ours_of(key): value for key, value in theirs.state_dict().items()})
    results = []
    for module in (theirs, ours):
        x = images(3, 12, *size).requires_grad_()
        y = module(x)
        (y * images(*y.shape)).sum().backward()
        gradients = {ours_of(name): parameter.grad for name, parameter in module.named_parameters()}
        results.append({"output": y, "input": x.grad, **gradients})
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_timms_constructor_still_fails_with_parameters():
    """The reason for a class of our own: when this fails, timm's layer can be taken."""
    for arguments in ({"extent": 2, "extra_params": True, "use_mlp": False}, {"use_mlp": True}):
        with pytest.raises(TypeError, match="multiple values"):
            GatherExcite(12, **arguments)


CHANNELS = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048  # of ResNet-50's sixteen blocks


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_resnet_50_gains_the_parameters_of_depthwise_convolutions_norms_and_se(steps):
    traced = trace(ModelSpec("resnet50_v1"))
    theta = traced.variant(SESpec(unit=f"ge_theta_{2**steps}")).params_se
    assert theta == steps * (9 + 2) * CHANNELS
    se = traced.variant(SESpec()).params_se
    assert traced.variant(SESpec(unit=f"ge_plus_{2**steps}")).params_se == theta + se
