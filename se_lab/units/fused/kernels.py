"""The four passes of a fused SE tail on CUDA, as custom ops that launch Triton kernels.

Forward: `moments` (BN's statistics and the squeeze, from one read of x), `apply` (everything after the gate). Backward:
`backward_moments` (the shortcut's gradient, and the sums for all other gradients), `backward_input`.

Tensors are (N, C, H, W) in NCHW or channels_last memory, of float16, bfloat16, float32 or float64; results have the
layout of x, and tensors in another layout are copied first. Statistics and coefficients are float32, or float64 for
float64 x. If `torch.are_deterministic_algorithms_enabled()`, results are reproducible to the bit on one kind of device;
otherwise the split of sums is tuned once per shape and process.

Each pass is a custom op, opaque to torch.compile, so that the launch (grid, device, tuning) is plain Python: Inductor
could fuse nothing into the kernels, would tune a `triton_op` differently, and `wrap_triton` of earlier PyTorch rejects
interpreted kernels. Kernels are tuned in the first call for a shape, which must precede the capture of a CUDA graph.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from se_lab.units.fused.torch_state import uses_interpreter

ACTIVATIONS = ("relu", "identity")


def available() -> bool:
    """Return whether Triton is installed and can run: interpreted, or on a GPU from Ampere on."""
    if importlib.util.find_spec("triton") is None:
        return False
    if uses_interpreter():
        return True
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of x over H and W, each (N, C), without cancellation."""
    mean, variance = torch.ops.se_lab.moments(x).unbind()
    return mean, variance


def apply(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor | None,
    activation: str,
    centre: Tensor | None = None,
) -> Tensor:
    """Return act(scale·(x − centre) + shift + shortcut) in the layout and dtype of x.

    Args:
        x: (N, C, H, W).
        scale: (N, C).
        shift: (N, C).
        shortcut: (N, C, H, W) of any dtype, or None.
        activation: relu or identity.
        centre: (N, C), or None for 0. A mean far above the deviation loses fewer digits in centre than in shift.
    """
    out: Tensor = torch.ops.se_lab.apply(x, scale, shift, shortcut, _is_relu(activation), centre)
    return out


def backward_moments(
    grad: Tensor, out: Tensor | None, x: Tensor, mean: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return g = grad·[out > 0], G1 = Σ g and G2 = Σ g·(x − mean[n, c]), sums over H and W.

    Args:
        grad: Gradient of out, (N, C, H, W).
        out: The result of `apply`; not used for identity, where g is grad.
        x: (N, C, H, W).
        mean: (N, C).
        activation: relu or identity.
    """
    if _is_relu(activation):
        if out is None:
            raise ValueError("the gradient of relu needs out")
        g, sums = torch.ops.se_lab.relu_backward_moments(grad, out, x, mean)
    else:
        g = _in_layout(grad, _layout(x)).to(x.dtype)
        sums = torch.ops.se_lab.backward_sums(g, x, mean)
    return g, sums[0], sums[1]


def backward_input(g: Tensor, x: Tensor, p: Tensor, q: Tensor, r: Tensor, centre: Tensor | None = None) -> Tensor:
    """Return p·g + q·(x − centre) + r in the layout and dtype of x; coefficients are (N, C)."""
    dx: Tensor = torch.ops.se_lab.backward_input(g, x, p, q, r, centre)
    return dx


@torch.library.custom_op("se_lab::moments", mutates_args=(), schema="(Tensor x) -> Tensor")
def _moments(x: Tensor) -> Tensor:
    _check(x)
    if not x.numel():  # NaN, as PyTorch's mean of an empty tensor
        return x.new_full((2, *x.shape[:2]), float("nan"), dtype=_accumulator(x))
    from se_lab.units.fused import triton_kernels

    layout = _layout(x)
    return triton_kernels.moments(_in_layout(x, layout), layout == torch.channels_last, _accumulator(x))


@_moments.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((2, x.shape[0], x.shape[1]), dtype=_accumulator(x))


@torch.library.custom_op(
    "se_lab::apply",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor shift, Tensor? shortcut, bool relu, Tensor? centre) -> Tensor",
)
def _apply(
    x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool, centre: Tensor | None
) -> Tensor:
    _check(x, shortcut, coefficients=(scale, shift, centre))
    out = _like(x)
    if x.numel():
        from se_lab.units.fused import triton_kernels

        layout = _layout(x)
        scale, shift = (_coefficient(x, tensor) for tensor in (scale, shift))
        centre = None if centre is None else _coefficient(x, centre)
        shortcut = None if shortcut is None else _in_layout(shortcut, layout)
        x = _in_layout(x, layout)
        triton_kernels.apply(out, x, scale, shift, centre, shortcut, relu, layout == torch.channels_last)
    return out


@_apply.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool, centre: Tensor | None) -> Tensor:
    return _like(x)


@torch.library.custom_op(
    "se_lab::relu_backward_moments",
    mutates_args=(),
    schema="(Tensor grad, Tensor out, Tensor x, Tensor mean) -> (Tensor, Tensor)",
)
def _relu_backward_moments(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    g = _like(x)
    return g, _sums(grad, out, g, x, mean)


@_relu_backward_moments.register_fake
def _(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty((2, x.shape[0], x.shape[1]), dtype=_accumulator(x))


@torch.library.custom_op(
    "se_lab::backward_sums", mutates_args=(), schema="(Tensor grad, Tensor x, Tensor mean) -> Tensor"
)
def _backward_sums(grad: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    return _sums(grad, None, grad, x, mean)


@_backward_sums.register_fake
def _(grad: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    return x.new_empty((2, x.shape[0], x.shape[1]), dtype=_accumulator(x))


@torch.library.custom_op(
    "se_lab::backward_input",
    mutates_args=(),
    schema="(Tensor g, Tensor x, Tensor p, Tensor q, Tensor r, Tensor? centre) -> Tensor",
)
def _backward_input(g: Tensor, x: Tensor, p: Tensor, q: Tensor, r: Tensor, centre: Tensor | None) -> Tensor:
    _check(x, g, coefficients=(p, q, r, centre))
    dx = _like(x)
    if x.numel():
        from se_lab.units.fused import triton_kernels

        layout = _layout(x)
        p, q, r = (_coefficient(x, tensor) for tensor in (p, q, r))
        centre = None if centre is None else _coefficient(x, centre)
        g, x = _in_layout(g, layout), _in_layout(x, layout)
        triton_kernels.backward_input(dx, g, x, p, q, r, centre, layout == torch.channels_last)
    return dx


@_backward_input.register_fake
def _(g: Tensor, x: Tensor, p: Tensor, q: Tensor, r: Tensor, centre: Tensor | None) -> Tensor:
    return _like(x)


def _sums(grad: Tensor, out: Tensor | None, g: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    _check(x, grad, out, coefficients=(mean,))
    if not x.numel():
        return x.new_zeros((2, *x.shape[:2]), dtype=_accumulator(x))
    from se_lab.units.fused import triton_kernels

    layout = _layout(x)
    mean = _coefficient(x, mean)
    grad, x = _in_layout(grad, layout), _in_layout(x, layout)
    out = None if out is None else _in_layout(out, layout)
    return triton_kernels.backward_moments(grad, out, g, x, mean, layout == torch.channels_last)


def _is_relu(activation: str) -> bool:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; allowed are {', '.join(ACTIVATIONS)}")
    return activation == "relu"


def _check(x: Tensor, *others: Tensor | None, coefficients: tuple[Tensor | None, ...] = ()) -> None:
    """Raise ValueError for shapes, types or devices that the kernels do not support."""
    if x.dim() != 4 or not x.dtype.is_floating_point:
        raise ValueError(f"x is {tuple(x.shape)} of {x.dtype}; it must be (N, C, H, W) of floating point")
    for tensors, shape in ((others, x.shape), (coefficients, x.shape[:2])):
        for tensor in tensors:
            if tensor is not None and (tensor.shape != shape or tensor.device != x.device):
                actual = f"{tuple(tensor.shape)} on {tensor.device}"
                raise ValueError(
                    f"x is {tuple(x.shape)} on {x.device}, and a tensor is {actual}; expected {tuple(shape)}"
                )


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _layout(x: Tensor) -> torch.memory_format:
    """Return the layout of the results: that of x, or, for a slice, that of the whole tensor."""
    return torch.contiguous_format if x.is_contiguous() or x.stride(1) != 1 else torch.channels_last


def _in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x))


def _coefficient(x: Tensor, tensor: Tensor) -> Tensor:
    return tensor.to(_accumulator(x)).contiguous()
