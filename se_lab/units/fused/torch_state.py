"""Query the state of PyTorch: hooks, tracing, and transforms of `torch.func`.

PyTorch has no public interface for hooks; only this module uses its private attributes.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.autograd import Function


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward or backward hooks."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def only_forward_hook(module: nn.Module, hook: object) -> bool:
    """Return whether a module has this forward hook and no other hook."""
    other_hooks = module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return list(module._forward_hooks.values()) == [hook] and not other_hooks


def needs_plain_modules() -> bool:
    """Return whether each module has to run on ordinary tensors; not for use inside a graph.

    This is so under `torch.jit.trace`, with hooks on all modules, and in transforms of `torch.func`.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or _hooks_on_all_modules() or _transforming()


def _hooks_on_all_modules() -> bool:
    return bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


class _Probe(Function):
    """An autograd function without `setup_context`, like those in `units`; transforms reject it."""

    @staticmethod
    def forward(ctx: Any) -> None:
        return None


def _transforming() -> bool:
    try:
        _Probe.apply()
    except RuntimeError:
        return True
    return False


def uses_interpreter() -> bool:
    """Return whether Triton interprets kernels on the CPU, by Triton's own environment variable."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
