"""The fused forms of an SE unit: gradients by finite differences, and digits lost beside the plain form's."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.func import functional_call

from se_lab import SESpec
from se_lab.units.fused import units
from se_lab.units.squeeze_excite import EXCITATION, SqueezeExcite


class Form(nn.Module):
    """A form's fused computation, and the plain one by PyTorch's own modules."""

    def __init__(self, kind, channels, *, excitation="sigmoid", activation="relu", drop_path=0.0, norm=None):
        super().__init__()
        self.kind, self.activation = kind, activation
        self.norm = norm or nn.BatchNorm2d(channels)
        self.unit = SqueezeExcite(channels, SESpec(reduction=2, excitation=excitation, bias=True))
        self.drop_path = DropPath(drop_path) if drop_path else None
        self.fused = True

    def forward(self, x, shortcut):
        if self.kind == "tail":
            if self.fused:
                return units.tail(x, shortcut, self.norm, self.unit, self.drop_path, self.activation)
            branch = self.unit(self.norm(x))
            joined = (self.drop_path(branch) if self.drop_path else branch) + shortcut
            return torch.relu(joined) if self.activation == "relu" else joined
        if self.kind == "inner":
            return units.inner(x, self.norm, self.unit) if self.fused else self.unit(torch.relu(self.norm(x)))
        return units.scale(x, self.unit) if self.fused else self.unit(x)


def randomised(form, generator):
    with torch.no_grad():
        for name, parameter in form.named_parameters():
            fresh = 0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(fresh + 1 if name == "norm.weight" else fresh)
        if form.norm.running_mean is not None:
            form.norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
            form.norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return form


CASES = {
    "tail": {},
    "tail, frozen": {"frozen": True},
    "tail, tanh": {"excitation": "tanh"},
    "tail, relu gate": {"excitation": "relu"},
    "tail, a user's gate": {"excitation": "softplus"},
    "tail, no activation": {"activation": "identity"},
    "tail, drop path": {"drop_path": 0.4},
    "tail, no running statistics": {"norm": {"track_running_stats": False}},
    "tail, no affine": {"norm": {"affine": False}},
    "inner": {},
    "inner, frozen": {"frozen": True},
    "inner, tanh": {"excitation": "tanh"},
    "inner, no affine": {"norm": {"affine": False}},
    "scale": {},
    "scale, tanh": {"excitation": "tanh"},
}


def build(case, monkeypatch, channels=4):
    options = dict(CASES[case])
    monkeypatch.setitem(EXCITATION, "softplus", nn.functional.softplus)
    frozen = options.pop("frozen", False)
    norm = nn.BatchNorm2d(channels, **options.pop("norm", {}))
    form = Form(case.partition(",")[0], channels, norm=norm, **options)
    form = randomised(form, torch.Generator().manual_seed(0)).double()
    form.norm.train(not frozen)
    return form


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case, monkeypatch):
    form = build(case, monkeypatch)
    generator = torch.Generator().manual_seed(1)
    x, shortcut = (torch.randn(3, 4, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    names, values = zip(*form.named_parameters(), strict=True)

    def run(x, shortcut, *values):
        torch.manual_seed(5)  # the same images dropped each time
        return functional_call(form, dict(zip(names, values, strict=True)), (x, shortcut))

    inputs = [value.detach().clone().requires_grad_() for value in (x, shortcut, *values)]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("case", CASES)
def test_values_and_running_statistics_are_the_plain_forms(case, monkeypatch):
    fused = build(case, monkeypatch)
    plain = copy.deepcopy(fused)
    plain.fused = False
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        x, shortcut = (torch.randn(5, 4, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
        outs = []
        for form in (fused, plain):
            torch.manual_seed(6)
            outs.append(form(x, shortcut))
        torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_cumulative_running_statistics_are_the_plain_forms(monkeypatch):
    monkeypatch.setitem(CASES, "tail, cumulative", {"norm": {"momentum": None}})
    test_values_and_running_statistics_are_the_plain_forms("tail, cumulative", monkeypatch)


def test_only_gradients_that_are_asked_for_are_needed(monkeypatch):
    form = build("tail", monkeypatch)
    x, shortcut = (torch.randn(3, 4, 3, 2, dtype=torch.float64) for _ in range(2))
    form(x, shortcut).sum().backward()  # neither input wants one, as behind frozen layers
    assert all(parameter.grad is not None for parameter in form.parameters())
    form.requires_grad_(False)
    x.requires_grad_()
    form(x, shortcut).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not form(x, shortcut).requires_grad


def test_gradients_of_gradients_are_refused(monkeypatch):
    form = build("tail", monkeypatch)
    x, shortcut = (torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(form(x, shortcut).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


SEEDS = range(6)


def outcome(form, x, shortcut, grad):
    """Return output, every gradient and the running statistics, in float64."""
    form = copy.deepcopy(form)
    x, shortcut = (value.detach().clone().requires_grad_() for value in (x, shortcut))
    out = form(x, shortcut)
    out.backward(grad)
    found = {"out": out, "x": x.grad, "shortcut": shortcut.grad}
    found |= {name: parameter.grad for name, parameter in form.named_parameters()}
    found |= {name: buffer for name, buffer in form.named_buffers() if buffer.is_floating_point()}
    return {name: value.detach().double() for name, value in found.items() if value is not None}


@pytest.mark.parametrize("frozen", [False, True], ids=["batch statistics", "frozen"])
@pytest.mark.parametrize("kind", ["tail", "inner", "scale"])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        pytest.param(torch.float32, torch.contiguous_format, id="fp32-NCHW"),
        pytest.param(torch.float32, torch.channels_last, id="fp32-channels_last", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, torch.contiguous_format, id="bf16-NCHW", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, torch.channels_last, id="bf16-channels_last", marks=pytest.mark.slow),
        pytest.param(torch.float16, torch.channels_last, id="fp16-channels_last", marks=pytest.mark.slow),
    ],
)
def test_no_more_than_twice_the_plain_forms_rounding_is_lost(dtype, layout, kind, frozen):
    channels = 16
    for ratio in (0, 1, 30, 1000):  # a channel's mean over its deviation
        errors = {True: {}, False: {}}
        sizes = {}
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            x, shortcut, grad = (torch.randn(8, channels, 14, 14, generator=generator) for _ in range(3))
            x = x + ratio * torch.randn(1, channels, 1, 1, generator=generator)
            x, shortcut, grad = (value.to(dtype).to(memory_format=layout) for value in (x, shortcut, grad))
            form = randomised(Form(kind, channels), generator)
            if kind == "scale":  # else the gates are 0 or 1, and what is left of their slope is one digit
                form.unit.reduce.weight.data /= max(1, ratio)
            form.norm.running_mean.copy_(x.double().mean((0, 2, 3)))
            form.norm.running_var.copy_(x.double().var((0, 2, 3)))
            form.to(dtype).norm.train(not frozen)
            form.fused = False
            reference = outcome(copy.deepcopy(form).double(), x.double(), shortcut.double(), grad.double())
            for fused in (True, False):
                form.fused = fused
                for name, value in outcome(form, x, shortcut, grad).items():
                    error = (value - reference[name]).square().sum().item()
                    errors[fused][name] = errors[fused].get(name, 0.0) + error
            for name, value in reference.items():
                sizes[name] = sizes.get(name, 0.0) + value.square().sum().item()
        rounding = torch.finfo(dtype).eps
        for name in sizes:
            ours, plain, size = (total[name] ** 0.5 for total in (errors[True], errors[False], sizes))
            if not math.isfinite(plain):  # beyond fp16's range: there is nothing to compare with
                assert (dtype, ratio) == (torch.float16, 1000)
                continue
            assert ours <= 2 * plain + 2 * rounding * size, f"{name} at mean/std {ratio}: {ours:.2e}, plain {plain:.2e}"


def test_maps_of_any_size_have_their_moments():
    from se_lab.units.fused.passes import run

    for n, c, h, w in itertools.chain([(1, 1, 1, 1), (2, 3, 1, 7)], itertools.product((1, 5), (3, 17), (1, 7), (1, 9))):
        x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(n * c * h * w)) * 2 + 3
        mean, variance = run("moments", x)
        torch.testing.assert_close(mean, x.double().mean((2, 3)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(variance, x.double().var((2, 3), correction=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run("mean", x), x.double().mean((2, 3)), rtol=1e-6, atol=1e-6)
