"""The passes of fused SE units over large tensors, each run in its fastest form.

A pass reads or writes tensors (N, C, H, W) once, in the layout of the first one, the convolution's output; the gradient
from the final pooling may have another layout, which would otherwise spread through the net. Other inputs and outputs
of a pass are (N, C), in float32, or in float64 for float64 tensors.

Each pass is defined by a function of plain PyTorch, which takes several passes over memory. A single pass is run by a
C++ kernel on CPUs (native.py), by a Triton kernel on CUDA (kernels.py), or, without a kernel and inside torch.compile,
by Inductor.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from se_lab.units.fused.native import native_pass


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over H and W, (N, C) each."""
    # relative to a pivot, since Σx² − (Σx)² cancels if the mean is far from 0
    pivot = _first_row(x)
    difference = _wide(x) - _map(pivot)
    pixels = x.shape[2] * x.shape[3]
    mean = _sum(difference) / pixels
    variance = (_sum(difference * difference) / pixels - mean * mean).clamp_min(0)
    dtype = coefficient_type(x)
    return pivot.to(dtype) + mean.to(dtype), variance.to(dtype)


def mean(x: Tensor) -> Tensor:
    """Return the mean over H and W, (N, C)."""
    pivot = _first_row(x)
    dtype = coefficient_type(x)
    return pivot.to(dtype) + (_sum(_wide(x) - _map(pivot)) / (x.shape[2] * x.shape[3])).to(dtype)


def apply(
    x: Tensor,
    shortcut: Tensor | None,
    activation: str,
    in_place: bool,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
) -> Tensor:
    """Return act(scale · (x − centre) + shift + shortcut); the activation is relu or identity.

    With `in_place`, a kernel may overwrite x with the result, which saves memory.
    """
    y = _affine(x, centre, scale, shift)
    if shortcut is not None:
        y = y + shortcut
    return (torch.relu(y) if activation == "relu" else y).to(x.dtype)


def backward_moments(
    x: Tensor, grad: Tensor, out: Tensor | None, centre: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return g = grad · [out > 0] (identity: grad), Σ g, and Σ g · (x − centre), over H and W."""
    g = torch.where(out > 0, grad, 0) if activation == "relu" and out is not None else grad
    values = _wide(g)
    return g, _sum(values), _sum(values * (_wide(x) - _map(centre)))


def backward_input(x: Tensor, g: Tensor, centre: Tensor, p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """Return p · g + q · (x − centre) + r."""
    return (_map(p) * _wide(g) + _affine(x, centre, q, r)).to(x.dtype)


def activated_moments(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ u, Σ [u > 0] and Σ [u > 0] · (x − centre), with u as in `gate_activated`."""
    u = torch.relu(_affine(x, centre, scale, shift))
    active = (u > 0).to(u.dtype)
    return _sum(u), _sum(active), _sum(active * (_wide(x) - _map(centre)))


def gate_activated(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
    """Return gate · u, with u = relu(scale · (x − centre) + shift)."""
    return (_map(gate) * torch.relu(_affine(x, centre, scale, shift))).to(x.dtype)


def backward_gate_moments(
    x: Tensor, grad: Tensor, centre: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ grad · u, Σ grad · [u > 0] and Σ grad · [u > 0] · (x − centre)."""
    u = torch.relu(_affine(x, centre, scale, shift))
    active_grad = torch.where(u > 0, _wide(grad), 0)
    return _sum(active_grad * u), _sum(active_grad), _sum(active_grad * (_wide(x) - _map(centre)))


def backward_gate_input(
    x: Tensor,
    grad: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: Tensor,
    constant: Tensor,
    q: Tensor,
    r: Tensor,
) -> Tensor:
    """Return [u > 0] · (p · grad + constant) + q · (x − centre) + r, u as in `gate_activated`."""
    active_grad = torch.where(_affine(x, centre, scale, shift) > 0, _map(p) * _wide(grad) + _map(constant), 0)
    return (active_grad + _affine(x, centre, q, r)).to(x.dtype)


PASSES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        moments,
        mean,
        apply,
        backward_moments,
        backward_input,
        activated_moments,
        gate_activated,
        backward_gate_moments,
        backward_gate_input,
    )
}


def run(name: str, *arguments: Any) -> Any:
    """Run a pass over tensors (N, C, H, W) with coefficients (N, C) in its fastest form.

    Inside torch.compile the plain form is used, and compiled with the surrounding code. float64, which serves as a
    reference, and empty tensors also use the plain form.
    """
    x = arguments[0]
    arithmetic = x.dtype if x.dtype == torch.float64 else torch.float32
    arguments = tuple(a.to(arithmetic) if isinstance(a, Tensor) and a.dim() == 2 else a for a in arguments)
    # inside torch.compile on CUDA as well: SE-Lab's kernels are opaque to Inductor, which could not fuse the sum of a
    # block's two gradients, casts and other operations with them
    if torch.compiler.is_compiling() or x.dtype == torch.float64 or x.numel() == 0:
        return PASSES[name](*arguments)
    arguments = tuple(aligned(a, x) if isinstance(a, Tensor) and a.dim() == 4 else a for a in arguments)
    if (kernel := _kernel(name) if x.is_cuda else native_pass(name, x.dtype)) is not None:
        return kernel(*arguments)
    # PyTorch recompiles for these; with the key, each function stays below the limit of recompilations
    mode = (torch.get_num_threads(), x.is_inference(), torch.is_autocast_enabled())
    key = (x.device.type, x.dtype, x.is_contiguous(), *mode)
    return _compiled(name, key)(*arguments)


def aligned(a: Tensor, x: Tensor) -> Tensor:
    """Return a tensor in the layout of x."""
    return a.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


def coefficient_type(x: Tensor) -> torch.dtype:
    """Return the dtype of (N, C) coefficients: float64 on CPUs, for accurate differences."""
    return torch.float64 if x.dtype == torch.float64 or x.device.type == "cpu" else torch.float32


@functools.cache
def compiles(device: str) -> bool:
    """Return whether PyTorch can compile for cpu or cuda; if not, print a message to stderr."""
    try:
        run("mean", torch.zeros(2, 3, 4, 5, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # from Inductor, or from Triton when it builds its driver module
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"SE units run unfused: PyTorch finds no compiler for {device} ({reason})", file=sys.stderr)
        return False
    return True


@functools.cache
def _compiled(name: str, key: tuple[object, ...]) -> Callable[..., Any]:
    function = PASSES[name]
    # a separate code object, since PyTorch counts compilations by code object
    clone = types.FunctionType(function.__code__.replace(), function.__globals__, name)
    compiled: Callable[..., Any] = torch.compile(clone, dynamic=True)
    return compiled


@functools.cache
def _kernel(name: str) -> Callable[..., Any] | None:
    """Return SE-Lab's CUDA kernel of a pass, or None if there is none or it cannot run."""
    from se_lab.units.fused import kernels

    if not kernels.available():
        return None
    table: dict[str, Callable[..., Any]] = {
        "moments": kernels.moments,
        "mean": lambda x: kernels.moments(x)[0],
        "apply": lambda x, shortcut, act, _, centre, scale, shift: kernels.apply(
            x, scale, shift, shortcut, act, centre
        ),
        "backward_moments": lambda x, grad, out, centre, act: kernels.backward_moments(grad, out, x, centre, act),
        "backward_input": lambda x, g, centre, p, q, r: kernels.backward_input(g, x, p, q, r, centre),
    }
    return table.get(name)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _first_row(x: Tensor) -> Tensor:
    """Return the mean of the first row of each channel, (N, C)."""
    return _wide(x[:, :, 0]).mean(2)


def _sum(x: Tensor) -> Tensor:
    """Return the sum over H and W, (N, C)."""
    return x.sum((2, 3)) if x.is_contiguous() else x.sum(3).sum(2)


def _affine(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _map(scale) * (_wide(x) - _map(centre)) + _map(shift)


def _map(coefficient: Tensor) -> Tensor:
    return coefficient[:, :, None, None]
