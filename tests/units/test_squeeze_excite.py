"""The SE unit against NumPy renderings of its formula (paper, section 3; Tables 11, 12, 16)."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from se_lab.spec import OPERATORS, SESpec, SpecError
from se_lab.units.squeeze_excite import EXCITATION, SQUEEZE, SqueezeExcite
from se_lab.units.unit import Unit

NUMPY_EXCITATION = {"sigmoid": lambda v: 1 / (1 + np.exp(-v)), "tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}


def render(x, w1, w2, b1, b2, squeeze, excitation):
    """s = f(W2 relu(W1 z + b1) + b2), out = s · x, in float64; x is (N, C, H, W)."""
    z = {"avg": x.mean((2, 3), keepdims=True), "max": x.max((2, 3), keepdims=True), "none": x}[squeeze]
    hidden = np.maximum(np.einsum("hc,nc...->nh...", w1, z) + b1[:, None, None], 0)
    return x * NUMPY_EXCITATION[excitation](np.einsum("ch,nh...->nc...", w2, hidden) + b2[:, None, None])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("excitation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
def test_every_operator_is_its_formula(squeeze, excitation, bias):
    torch.manual_seed(0)
    unit = SqueezeExcite(12, SESpec(reduction=5, squeeze=squeeze, excitation=excitation, bias=bias)).double()
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 12, 5, 4, dtype=torch.float64)
    w1, w2 = unit.reduce.weight.detach().numpy(), unit.expand.weight.detach().numpy()
    b1 = unit.reduce.bias.detach().numpy() if bias else np.zeros(2)
    b2 = unit.expand.bias.detach().numpy() if bias else np.zeros(12)
    expected = render(x.numpy(), w1, w2, b1, b2, squeeze, excitation)
    np.testing.assert_allclose(unit(x).detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(unit, x[:1, :, :2, :2].requires_grad_())


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(64, 16, 4), (8, 16, 1), (100, 16, 6), (12, 1, 12)])
def test_hidden_width_is_floor_of_c_over_r_and_at_least_one(channels, reduction, hidden):
    assert SqueezeExcite(channels, SESpec(reduction=reduction)).reduce.out_features == hidden


@pytest.mark.parametrize("excitation", EXCITATION)
def test_the_cost_in_closed_form_is_fvcores(excitation):
    for squeeze in SQUEEZE:
        unit = SqueezeExcite(12, SESpec(reduction=5, squeeze=squeeze, excitation=excitation, bias=True))
        assert unit.has_closed_form()
        assert unit.cost(5, 4) == Unit.cost(unit, 5, 4), squeeze  # a Unit counts itself with fvcore


@pytest.mark.parametrize("excitation", EXCITATION)
def test_an_identity_start_has_one_gate_for_every_input(excitation):
    unit = SqueezeExcite(12, SESpec(reduction=5, excitation=excitation, bias=True, start="identity"))
    unit.start_as_identity()
    x = torch.randn(3, 12, 5, 4)
    torch.testing.assert_close(unit(x), x * (1.0 if excitation == "relu" else 0.99))


def test_parameters_come_in_the_documented_order_and_shape():
    named = dict(SqueezeExcite(32, SESpec(reduction=8, squeeze="none", bias=True)).named_parameters())
    assert [(name, tuple(p.shape)) for name, p in named.items()] == [
        ("reduce.weight", (4, 32)),
        ("reduce.bias", (4,)),
        ("expand.weight", (32, 4)),
        ("expand.bias", (32,)),
    ]


@pytest.mark.parametrize(("squeeze", "shape"), [("avg", (2, 8)), ("max", (2, 8)), ("none", (2, 8, 3, 3))])
def test_gate_passes_through_the_identity_that_is_there_to_be_hooked(squeeze, shape):
    unit = SqueezeExcite(8, SESpec(reduction=2, squeeze=squeeze))
    seen = []
    unit.gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(2, 8, 3, 3)
    out = unit(x)
    assert seen[0].shape == shape
    gate = seen[0] if squeeze == "none" else seen[0][:, :, None, None]
    assert torch.equal(out, x * gate)


def test_initial_weights_are_he_normal_in_fan_in():
    unit = SqueezeExcite(2048, SESpec(reduction=4))
    unit.reset(torch.Generator().manual_seed(1))
    assert unit.reduce.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    assert unit.expand.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)


def test_a_users_function_is_one_entry_in_the_table(monkeypatch):
    def l2(x):
        return x.square().mean((2, 3)).sqrt()

    with pytest.raises(SpecError):
        SESpec(squeeze="l2")
    monkeypatch.setitem(SQUEEZE, "l2", l2)
    unit = SqueezeExcite(8, SESpec(squeeze="l2", reduction=2))
    assert "l2" in OPERATORS["squeeze"]
    x = torch.randn(2, 8, 4, 4)
    z = torch.linalg.vector_norm(x, dim=(2, 3)) / 4
    assert torch.allclose(unit(x), x * torch.sigmoid(unit.expand(torch.relu(unit.reduce(z))))[:, :, None, None])


def test_a_users_module_with_parameters_is_built_with_the_channels(monkeypatch):
    class Scaled(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Parameter(torch.full((channels,), 2.0))

        def forward(self, v):
            return torch.sigmoid(v * self.scale)

    monkeypatch.setitem(EXCITATION, "scaled", Scaled)
    unit = SqueezeExcite(6, SESpec(excitation="scaled", reduction=2))
    unit(torch.randn(1, 6, 2, 2)).sum().backward()
    assert unit.excitation.scale.grad.shape == (6,)


@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
def test_unit_survives_script_export_copy_and_pickle(squeeze):
    unit = SqueezeExcite(8, SESpec(squeeze=squeeze, reduction=2)).eval()
    x = torch.randn(2, 8, 3, 3)
    expected = unit(x)
    for other in (
        torch.jit.script(unit),
        torch.export.export(unit, (x,)).module(),
        copy.deepcopy(unit),
        pickle.loads(pickle.dumps(unit)),
    ):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
def test_a_unit_is_traced_by_fx(squeeze):
    unit = SqueezeExcite(8, SESpec(squeeze=squeeze, reduction=2)).eval()
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(torch.fx.symbolic_trace(unit)(x), unit(x))


def test_the_default_cost_of_a_unit_is_its_closed_form():
    for squeeze in ("avg", "max", "none"):
        unit = SqueezeExcite(12, SESpec(squeeze=squeeze, reduction=5, bias=True))
        assert unit.cost(5, 4) == Unit.cost(unit, 5, 4)


def test_a_misused_constructor_says_what_it_takes():
    for arguments, said in [
        (("64",), "channels of SqueezeExcite is '64'; it must be an integer"),
        ((0,), "channels of SqueezeExcite is 0"),
        ((64, 16), r"spec of SqueezeExcite is 16; .* SESpec\(reduction=16\)"),
        ((64, "max"), "'max'; it must be an SESpec"),
    ]:
        with pytest.raises(SpecError, match=said):
            SqueezeExcite(*arguments)
