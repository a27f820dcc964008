"""What the fused forms read, write and keep, counted without a clock."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch._inductor import config, metrics
from torch.utils._python_dispatch import TorchDispatchMode

from se_lab import SESpec
from se_lab.units.fused import native, units
from se_lab.units.squeeze_excite import SqueezeExcite

SHAPE = (4, 32, 40, 40)
MAP = 4 * 32 * 40 * 40 * 4  # bytes of one


def bare(x, shortcut, norm, unit):
    return torch.relu(norm(x) + shortcut)


def plain(x, shortcut, norm, unit):
    return torch.relu(unit(norm(x)) + shortcut)


def tail(x, shortcut, norm, unit):
    return units.tail(x, shortcut, norm, unit, None, "relu")


def alone(x, shortcut, norm, unit):
    return units.scale(x, unit)


def inner(x, shortcut, norm, unit):
    return units.inner(x, norm, unit)


@pytest.fixture(scope="module", autouse=True)
def _counting():
    """Let Inductor count the bytes of what it compiles, which it does for its log alone."""
    log = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    torch._logging.set_logs(inductor_metrics=True)
    log.propagate = False
    with config.patch(force_disable_caches=True):
        yield
    torch._logging.set_logs()


def step(function, training, layout=torch.contiguous_format):
    norm, unit = nn.BatchNorm2d(SHAPE[1]).train(training), SqueezeExcite(SHAPE[1], SESpec())
    x, shortcut, grad = (torch.randn(SHAPE).to(memory_format=layout) for _ in range(3))
    x.requires_grad_(training)
    shortcut.requires_grad_(training)
    with torch.set_grad_enabled(training):
        out = function(x, shortcut, norm, unit)
        if training:
            out.backward(grad)


def maps_moved(function, training):
    """Return the maps that Inductor's kernels read and write, forward and backward, each kernel counted once."""
    torch.set_num_threads(1)
    torch._dynamo.reset()
    metrics.reset()
    step(torch.compile(function, fullgraph=True, dynamic=False), training)
    return metrics.num_bytes_accessed / MAP


def saved_maps(function):
    """Return the maps that are kept for the backward pass, each once."""
    norm, unit = nn.BatchNorm2d(SHAPE[1]), SqueezeExcite(SHAPE[1], SESpec())
    x, shortcut = (torch.randn(SHAPE, requires_grad=True) for _ in range(2))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = function(x, shortcut, norm, unit)
    assert out.requires_grad
    return sum(kept.values()) / MAP


def test_a_fused_tail_keeps_what_the_plain_tail_without_se_keeps():
    def eager(x, shortcut, norm, unit):  # as timm has it: in place where it can be
        return torch.relu_(norm(x).add_(shortcut))

    assert saved_maps(eager) == pytest.approx(2, abs=0.02)  # x, and the output
    assert saved_maps(tail) == pytest.approx(2, abs=0.02)
    assert saved_maps(inner) == pytest.approx(1, abs=0.02)  # x alone, not relu's output
    assert saved_maps(alone) == pytest.approx(1, abs=0.02)


@pytest.fixture
def maps_given(monkeypatch):
    """Count the maps that our own kernels are given to read and write: none of their loops visits one twice."""
    given, call = [], native._call

    def counting(name, x, maps, *others, **more):
        assert all(each is None or (each.shape == x.shape and each.stride() == x.stride()) for each in maps)
        given.extend(each for each in maps if each is not None)
        return call(name, x, maps, *others, **more)

    monkeypatch.setattr(native, "_call", counting)
    return given


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_each_pass_reads_and_writes_each_map_once(layout, maps_given):
    def count(function, training):
        maps_given.clear()
        step(function, training, layout)
        return len(maps_given)

    # moments: x. apply: x, shortcut, out. backward: grad, out, x, g; g, x, dx
    assert count(tail, training=True) == 4 + 7
    assert count(tail, training=False) == 4
    # x; x; x, out. backward: grad, x; grad, x, dx
    assert count(inner, training=True) == 4 + 5
    # x; x, out. backward: grad, x; grad, dx
    assert count(alone, training=True) == 3 + 4


class Copies(TorchDispatchMode):
    """Count the maps that are copied to another place."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        copies = (torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.copy_)
        self.number += function.overloadpacket in copies and args[0].shape == SHAPE
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [tail, inner, alone])
@pytest.mark.parametrize("layouts", [("channels_last", "contiguous_format"), ("contiguous_format", "channels_last")])
def test_a_gradient_in_another_layout_is_turned_once_and_handed_on_in_the_maps_own(function, layouts):
    own, other = (getattr(torch, layout) for layout in layouts)
    norm, unit = nn.BatchNorm2d(SHAPE[1]), SqueezeExcite(SHAPE[1], SESpec())
    x, shortcut, grad = (torch.randn(SHAPE).to(memory_format=own) for _ in range(3))
    inputs = [x.requires_grad_(), *([shortcut.requires_grad_()] if function is tail else [])]
    expected = torch.autograd.grad(function(x, shortcut, norm, unit), inputs, grad)
    out = function(x, shortcut, norm, unit)
    with Copies() as copies:
        found = torch.autograd.grad(out, inputs, grad.to(memory_format=other))
    assert copies.number == 1 + 1  # the test's own, and one
    assert all(gradient.is_contiguous(memory_format=own) for gradient in found)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_compiled_fused_tail_moves_hardly_more_than_one_without_se(training):
    without = maps_moved(bare, training)
    fused = maps_moved(tail, training)
    if training:
        assert fused <= 1.05 * without
    else:  # one more: the squeeze comes before the first value is written
        assert fused <= without + 1.05
    assert maps_moved(plain, training) > 1.3 * without
