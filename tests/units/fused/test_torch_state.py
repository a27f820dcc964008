"""PyTorch's hooks, traces and transforms, as a fused unit must notice them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from se_lab.units.fused.torch_state import has_hooks, needs_plain_modules, only_forward_hook


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_every_kind_of_hook_is_noticed_until_it_is_removed(register):
    def hook(*_):
        return None

    module = nn.Identity()
    assert not has_hooks(module)
    handle = getattr(module, register)(hook)
    assert has_hooks(module)
    assert only_forward_hook(module, hook) is (register == "register_forward_hook")
    handle.remove()
    assert not has_hooks(module) and not only_forward_hook(module, hook)


def test_a_hook_on_all_modules_is_noticed():
    assert not needs_plain_modules()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert needs_plain_modules()
    finally:
        handle.remove()
    assert not needs_plain_modules()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.functionalize])
def test_a_transform_is_noticed_even_by_tensors_that_it_leaves_alone(transform):
    seen = []

    def function(x):
        seen.append(needs_plain_modules())
        return x.sum()

    transform(function)(torch.ones(3))
    assert seen == [True] and not needs_plain_modules()


@pytest.mark.filterwarnings("ignore")
def test_a_trace_is_noticed():
    seen = []

    def function(x):
        seen.append(needs_plain_modules())
        return x + 1

    torch.jit.trace(function, torch.ones(2), check_trace=False)
    assert seen == [True]
