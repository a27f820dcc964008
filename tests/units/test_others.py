"""Units beside SE: timm's layers behind the interface equal timm's, ours equal NumPy renderings of their papers."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from timm.layers.create_attn import create_attn
from torch import nn

from se_lab import UNITS, ModelSpec, SESpec, SpecError, Unit, create_model, insert_se, profile
from se_lab.units.costs import trace
from se_lab.units.others import ECA
from se_lab.units.table import build_unit

NAMES = tuple(UNITS)
WIDTH = {"reduction": 4, "bias": True}
TIMMS = {  # create_attn's name and arguments, for 12 channels and a bottleneck of 3
    "ese": ("ese", {}),
    "eca": ("eca", {}),
    "ceca": ("ceca", {}),
    "gc": ("gc", {"rd_channels": 3}),
    "cbam": ("cbam", {"rd_channels": 3, "mlp_bias": True}),
    "lcbam": ("lcbam", {"rd_channels": 3, "mlp_bias": True}),
    "coord": ("coord", {"rd_channels": 3, "bias": True}),
    "scoord": ("scoord", {"rd_channels": 3, "bias": True}),
    "ela": ("ela", {}),
    "strip": ("strip", {}),
}


def spec_of(name, **more):
    return SESpec(unit=name, **{key: value for key, value in WIDTH.items() if key in UNITS[name].fields}, **more)


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.2 if key.endswith("var") else -0.4))
    return module


def images(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def small(name, insertion="standard"):
    torch.manual_seed(0)
    return create_model(ModelSpec("test_resnet", spec_of(name, insertion=insertion)), 5).eval()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TIMMS)
def test_an_adapter_equals_timms_layer_in_outputs_and_gradients(name, training):
    kind, arguments = TIMMS[name]
    theirs = randomised(create_attn(kind, 12, **arguments).double().train(training))
    ours = build_unit(spec_of(name), 12).double().train(training)
    ours.layer.load_state_dict(theirs.state_dict())
    results = []
    for module in (theirs, ours):
        x = images(2, 12, 9, 6).requires_grad_()
        y = module(x)
        (y * images(*y.shape)).sum().backward()
        results.append((y, x.grad, *(parameter.grad for parameter in module.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def render_srm(x, unit):
    """Lee et al., equations 1 to 4: g = sigmoid(BN(w · (μ, σ))), the norm with its running statistics."""
    style = np.stack([x.mean((2, 3)), np.sqrt(x.var((2, 3)) + 1e-5)], 2)
    z = (style * unit.style.detach().numpy()).sum(2)
    mean, var, weight, bias = (unit.norm.state_dict()[k].numpy() for k in STATISTICS)
    return sigmoid((z - mean) / np.sqrt(var + 1e-5) * weight + bias)[:, :, None, None]


def render_gct(x, unit):
    """Yang et al. 2020, equations 1 to 4: the embedding, its norm over channels, 1 + tanh."""
    alpha, gamma, beta = (p.detach().numpy().ravel() for p in (unit.alpha, unit.gamma, unit.beta))
    s = alpha * np.sqrt((x**2).sum((2, 3)) + 1e-5)
    normed = gamma * s * np.sqrt(len(alpha)) / np.sqrt((s**2).sum(1, keepdims=True) + len(alpha) * 1e-5)
    return (1 + np.tanh(normed + beta))[:, :, None, None]


def render_simam(x, unit):
    """Yang et al. 2021, equation 5: the inverse of the least energy, 1 / e = (t − μ)² / (4 (σ² + λ)) + ½."""
    mean = x.mean((2, 3), keepdims=True)
    variance = x.var((2, 3), ddof=1, keepdims=True)
    return sigmoid((x - mean) ** 2 / (4 * (variance + 1e-4)) + 0.5)


STATISTICS = ("running_mean", "running_var", "weight", "bias")


@pytest.mark.parametrize(("name", "render"), [("srm", render_srm), ("gct", render_gct), ("simam", render_simam)])
def test_units_that_timm_lacks_equal_their_formulas(name, render):
    unit = randomised(build_unit(SESpec(unit=name), 6).double().eval())
    x = images(2, 6, 5, 4)
    np.testing.assert_allclose(unit(x).detach().numpy(), x.numpy() * render(x.numpy(), unit), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(unit, x.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_the_input_times_all_that_passes_the_gate(name):
    unit = randomised(build_unit(spec_of(name), 12).double().eval())
    factors = []
    unit.gate.register_forward_hook(lambda module, inputs, output: factors.append(output))
    x = images(2, 12, 8, 7)
    product = x
    scaled = unit(x)
    for factor in factors:
        product = product * (factor[:, :, None, None] if factor.dim() == 2 else factor)
    torch.testing.assert_close(scaled, product, rtol=1e-12, atol=0)
    low, high = unit.bounds()
    assert all(low <= factor.min() and factor.max() <= high for factor in factors)


@pytest.mark.parametrize("name", NAMES)
def test_gates_of_one_are_the_plain_net_whose_keys_stay(name):
    torch.manual_seed(0)
    plain = create_model(ModelSpec("test_resnet", SESpec("none")), 5).double().eval()
    net = copy.deepcopy(plain)
    sites = insert_se(net, spec_of(name))
    assert {key for key in net.state_dict() if not key.startswith(tuple(f"{s.path}." for s in sites))} == set(
        plain.state_dict()
    )
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert name == "gct" or not torch.allclose(net(x), plain(x))
        for site in sites:
            net.get_submodule(site.path).gate.register_forward_hook(lambda module, inputs, gate: torch.ones_like(gate))
        assert torch.equal(net(x), plain(x))


@pytest.mark.parametrize("insertion", ["standard", "pre", "post", "identity", "conv3x3"])
def test_every_unit_trains_at_every_place(insertion):
    for name in NAMES:
        net = small(name, insertion).train()
        net(images(2, 3, 64, 64, dtype=torch.float32)).square().mean().backward()
        units = [module for module in net.modules() if isinstance(module, Unit)]
        assert units and all(p.grad is not None for unit in units for p in unit.parameters()), name


@pytest.mark.parametrize("name", NAMES)
def test_a_net_with_any_unit_is_copied_pickled_scripted_and_traced(name):
    net = small(name)
    x = images(2, 3, 64, 64, dtype=torch.float32)
    ways = [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), torch.jit.script, torch.fx.symbolic_trace]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = net(x)
        assert all(torch.equal(way(net)(x), expected) for way in ways)


@pytest.mark.parametrize("name", NAMES)
def test_a_net_with_any_unit_is_built_on_the_meta_device(name):
    with torch.device("meta"):
        net = create_model(ModelSpec("test_resnet", spec_of(name)), 5)
    assert len(net.se_sites) == 4 and all(tensor.is_meta for tensor in net.state_dict().values())


def test_eca_adds_86_parameters_to_resnet_50():
    """Wang et al. 2020: kernels of 5, 5, 5 and 7 for 256, 512, 1024 and 2048 channels (equation 12, γ = 2, b = 1)."""
    cost = trace(ModelSpec("resnet50_v1")).variant(SESpec(unit="eca"))
    assert cost.params_se == 3 * 5 + 4 * 5 + 6 * 5 + 3 * 7 == 86


@pytest.mark.parametrize(("unit", "params"), [("cbam", 28_089_624), ("srm", 25_617_448)])
def test_units_give_resnet_50_the_parameters_that_other_implementations_count(unit, params):
    """CBAM: the authors' weights, as osmr/imgclsmob counts them; SRM: a public implementation (printed: 25.62M)."""
    cost = trace(ModelSpec("resnet50_v1")).variant(SESpec(unit=unit, bias=unit == "cbam"))
    assert cost.params == params


CHANNELS = (16, 32, 64)  # cifar_resnet20's, three units each
FORMULAS = {
    "ese": lambda c: c * c + c,
    "eca": lambda c: 3,
    "ceca": lambda c: 3,
    "gc": lambda c: (c + 1) + 2 * c * (c // 4) + c // 4 + c + 2 * (c // 4),  # attention, two FC layers, LayerNorm
    "cbam": lambda c: 2 * c * (c // 4) + c // 4 + c + 2 * 49 + 2,  # two FC layers, a 7 × 7 convolution, its norm
    "lcbam": lambda c: 2 * c * (c // 4) + c // 4 + c + 49 + 2,
    "coord": lambda c: 3 * c * (c // 4) + c // 4 + 2 * c + 2 * (c // 4),  # three 1 × 1 convolutions, a norm
    "scoord": lambda c: 3 * c * (c // 4) + c // 4 + 2 * c,
    "ela": lambda c: 2 * (7 * c + 2 * c),
    "strip": lambda c: 2 * 3 * c,
    **{f"ge_theta_{2**n}": lambda c, n=n: n * (9 + 2) * c for n in (1, 2, 3)},  # depthwise 3 × 3, a norm
    **{f"ge_plus_{2**n}": lambda c, n=n: n * 11 * c + 2 * c * (c // 4) + c // 4 + c for n in (1, 2, 3)},
    "srm": lambda c: 4 * c,
    "gct": lambda c: 3 * c,
}


@pytest.fixture(scope="module")
def resnet20():
    return trace(ModelSpec("cifar_resnet20"), 10, (3, 32, 32))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "se"])
def test_costs_are_those_of_the_formulas_and_of_fvcore_on_the_whole_net(name, resnet20):
    spec = ModelSpec("cifar_resnet20", spec_of(name), init="timm")
    counted, traced = profile(create_model(spec, 10), (3, 32, 32)), resnet20.variant(spec.se)
    assert counted.params_se == 3 * sum(FORMULAS.get(name, lambda c: 0)(c) for c in CHANNELS)
    for key in ("params", "params_se", "macs", "macs_se", "elementwise", "elementwise_se", "activations"):
        assert getattr(traced, key) == getattr(counted, key), key


def test_a_bottleneck_has_c_over_r_channels_whatever_timm_rounds_to():
    for name in ("gc", "cbam", "lcbam", "coord", "scoord"):
        assert build_unit(SESpec(unit=name, reduction=5), 16).hidden == 3


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_stream_and_not_the_global_one(name):
    units = [build_unit(spec_of(name), 24) for _ in range(3)]
    for unit, seed in zip(units, (1, 1, 2), strict=True):
        unit.reset(torch.Generator().manual_seed(seed))
    first, again, other = (unit.state_dict() for unit in units)
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = name not in ("srm", "gct", "simam", "ge", "ge_2", "ge_4", "ge_8")
    assert any(not torch.equal(first[key], other[key]) for key in first) == random


@pytest.mark.parametrize("name", [name for name in NAMES if name != "se" and "start" in UNITS[name].fields])
def test_an_identity_start_is_a_gate_near_one(name):
    unit = build_unit(SESpec(unit=name, start="identity"), 16).eval()
    unit.start_as_identity()
    x = images(2, 16, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(unit(x), x, rtol=0.0100001, atol=0)


def test_a_unit_without_such_weights_says_so():
    with pytest.raises(SpecError, match="ECA has no weights that make its gate 1"):
        ECA(16).start_as_identity()


def test_maps_too_small_for_a_unit_are_refused_with_the_place():
    traced = trace(ModelSpec("test_resnet"), 10, (3, 32, 32))
    with pytest.raises(SpecError, match=r"unit=simam needs maps of at least 2 pixels, but SE_5_1 of .* has 1 × 1"):
        traced.variant(SESpec(unit="simam"))
    traced.variant(SESpec(unit="simam", stages=(2, 3)))


@pytest.mark.parametrize("name", ["eca", "cbam", "simam"])
def test_timms_own_se_units_become_any_of_these(name):
    net = create_model(ModelSpec("seresnet18", spec_of(name), "replace", init="timm"), 5)
    assert len(net.se_sites) == 8 and not any("fc1" in key for key in net.state_dict() if "layer.channel" not in key)
    assert all(isinstance(net.get_submodule(f"layer{i}.0.se"), UNITS[name]) for i in (1, 2, 3, 4))


def test_what_is_no_unit_is_no_entry(monkeypatch):
    with pytest.raises(SpecError, match=r"must be a subclass of se_lab\.Unit"):
        UNITS["mine"] = nn.Identity  # type: ignore[assignment]

    class Mine(Unit):
        fields = ("reductoin",)

    with pytest.raises(SpecError, match="did you mean 'reduction'"):
        UNITS["mine"] = Mine
    assert "mine" not in UNITS


def test_the_least_gate_of_simam_is_that_of_an_energy_of_one_half():
    unit = build_unit(SESpec(unit="simam"), 3)
    factors = []
    unit.gate.register_forward_hook(lambda module, inputs, output: factors.append(output))
    unit(torch.ones(1, 3, 4, 4))
    low, _ = unit.bounds()
    assert factors[0].min().item() == pytest.approx(low) == pytest.approx(sigmoid(0.5))
