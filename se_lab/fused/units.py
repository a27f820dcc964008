"""SE units as autograd functions over few passes: a residual unit's tail, BN → ReLU → SE, and the unit alone.

Per image and channel, over H × W: m and v are mean and variance of the convolution's output x. Batch statistics follow
from them (μ = mean of m; σ² = mean of v + variance of m), and so does the squeeze of BN's output,
z = a (m − μ) + β with a = γ / √(σ² + ε). BN and gate together are then one affine map, s · (a (x − m) + z).

What lies between the first pass over x and the last, from m and v to the gate, is plain PyTorch on (N, C). The
gradient of x has a part through each of the two; to write it in one pass, the last one's backward hands what is needed
to the first one's, as the gradients of outputs of the first that hold nothing: `token` gets the big gradient, carriers
get the (N, C) coefficients that go with it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from se_lab.fused.passes import run
from se_lab.squeeze_excite import SqueezeExcite, squeeze_avg
from se_lab.sync_bn import SyncBatchNorm

Norm = nn.BatchNorm2d | nn.SyncBatchNorm | SyncBatchNorm


def scale(x: Tensor, unit: SqueezeExcite) -> Tensor:
    """Return x · gate(x), (N, C, H, W), in three passes."""
    if not torch.is_grad_enabled():  # the plain form has three too, save where PyTorch's sums of 16 bits are slow
        slow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and not x.is_contiguous())
        z = run("mean", x) if slow and x.device.type == "cpu" else squeeze_avg(x)
        return x * _gate(unit, z)[:, :, None, None].to(x.dtype)
    m, _, token, carrier = _Moments.apply(x, False)
    s = _gate(unit, m)
    return cast(Tensor, _Affine.apply(x.detach(), m, s, s * m, None, token, carrier, "identity"))


def tail(
    x: Tensor, shortcut: Tensor, norm: Norm, unit: SqueezeExcite, drop_path: nn.Module | None, activation: str
) -> Tensor:
    """Return act(drop_path(SE(BN(x))) + shortcut), (N, C, H, W), in four passes."""
    m, v, token, carrier = _Moments.apply(x, uses_batch(norm))
    a, z = _normalise(norm, m, v, x)
    s = _gate(unit, z)
    s = _dropped(s, drop_path, x)
    return cast(Tensor, _Affine.apply(x.detach(), m, s * a, s * z, shortcut, token, carrier, activation))


def inner(x: Tensor, norm: Norm, unit: SqueezeExcite) -> Tensor:
    """Return SE(ReLU(BN(x))), (N, C, H, W), in four passes."""
    m, v, token, *carriers = _InnerMoments.apply(x, uses_batch(norm))
    a, z = _normalise(norm, m, v, x)
    a = a.expand_as(m)
    squeezed = _InnerMean.apply(x.detach(), m, a, z, carriers[0])
    s = _gate(unit, squeezed)
    return cast(Tensor, _InnerGate.apply(x.detach(), m, a, z, s, token, *carriers[1:]))


def uses_batch(norm: Norm) -> bool:
    """Tell whether a norm takes the batch's statistics, not the running ones."""
    return norm.training or norm.running_mean is None


def group_of(norm: Norm) -> Any:
    """Return the processes that a norm shares its batch statistics with, None where it has its own."""
    if isinstance(norm, nn.BatchNorm2d) or not (norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group = getattr(norm, "process_group", None) or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _dropped(s: Tensor, drop_path: nn.Module | None, x: Tensor) -> Tensor:
    """Return gates, (N, C), with those of dropped images at 0."""
    if drop_path is None or not drop_path.training:
        return s
    # a factor an image, from the same random numbers as on a map
    factors: Tensor = drop_path(x.new_ones((len(x), 1, 1, 1)))
    return s * factors.flatten(1).to(s.dtype)


def _gate(unit: SqueezeExcite, z: Tensor) -> Tensor:
    """Return the unit's gate, (N, C), in the type of z."""
    return unit.excite(z.to(unit.reduce.weight.dtype)).to(z.dtype)


def _normalise(norm: Norm, m: Tensor, v: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return BN's factor a, (C,), and the mean z of its output over H and W, (N, C)."""
    if v is not None:
        mean, variance = _batch_statistics(norm, m, v, x.shape[2] * x.shape[3])
    else:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = norm.running_mean.to(m.dtype), norm.running_var.to(m.dtype)
    a = torch.rsqrt(variance + norm.eps)
    if not norm.affine:
        return a, a * (m - mean)
    a = a * norm.weight
    return a, torch.addcmul(norm.bias.to(m.dtype), a, m - mean)


def _batch_statistics(norm: Norm, m: Tensor, v: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,), and update the running ones."""
    group = group_of(norm)
    count: Any = len(m) * pixels
    if group is None:
        mean = m.mean(0)
        variance = v.mean(0) + (m - mean).square().mean(0)
    else:
        count = _SumOver.apply(m.new_tensor(float(count)), group)
        mean = _SumOver.apply(m.sum(0), group) * (pixels / count)
        variance = _SumOver.apply((v + (m - mean).square()).sum(0), group) * (pixels / count)
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        with torch.no_grad():
            _update_running(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    return mean, variance


def _update_running(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for running, new in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.mul_(1 - share).add_(new.to(running.dtype), alpha=share)


class _Moments(Function):
    """x to its m and v (None where they are not asked for), and the empty token and carrier."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, variance: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        m, v = run("moments", x) if variance else (run("mean", x), None)
        ctx.save_for_backward(*((x, m) if variance else ()))
        ctx.pixels = x.shape[2] * x.shape[3]
        return m, v, *_empty(x, m, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        dm, dv, g, factor = gradients
        r = dm / ctx.pixels
        saved = ctx.saved_tensors
        if not saved:
            return cast(Tensor, run("apply", g, torch.zeros_like(factor), factor, r, None, "identity")), None
        x, m = saved
        q = dv * (2 / ctx.pixels)
        centre, rest = _split(m, x)
        return run("backward_input", g, x, centre, factor, q, r + q * rest), None


class _Affine(Function):
    """act(factor · (x − m) + offset + shortcut), with x detached: its gradient goes to the token."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        m: Tensor,
        factor: Tensor,
        offset: Tensor,
        shortcut: Tensor | None,
        token: Tensor,
        carrier: Tensor,
        activation: str,
    ) -> Tensor:
        centre, rest = _split(m, x)
        out = cast(Tensor, run("apply", x, centre, factor, offset + factor * rest, shortcut, activation))
        ctx.save_for_backward(x, m, factor, *([out] if activation == "relu" else []))
        ctx.activation, ctx.joined = activation, shortcut is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, m, factor, *out = ctx.saved_tensors
        centre, rest = _split(m, x)
        g, sums, centred = run("backward_moments", grad, out[0] if out else None, x, centre, ctx.activation)
        sums = sums.to(m.dtype)
        return None, -factor * sums, centred + rest * sums, sums, g if ctx.joined else None, g, factor, None


class _InnerMoments(Function):
    """As _Moments, with a carrier for each of what the last pass takes: constant, p, scale and shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, variance: bool) -> tuple[Any, ...]:
        m, v = run("moments", x) if variance else (run("mean", x), None)
        ctx.save_for_backward(x, m)
        ctx.variance, ctx.pixels = variance, x.shape[2] * x.shape[3]
        return m, v, *_empty(x, m, 4)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        dm, dv, grad, constant, p, factor, shift = gradients
        x, m = ctx.saved_tensors
        q = dv * (2 / ctx.pixels) if ctx.variance else torch.zeros_like(m)
        centre, rest = _split(m, x)
        r = dm / ctx.pixels + q * rest
        return run("backward_gate_input", grad, x, centre, factor, shift, p, constant, q, r), None


class _InnerMean(Function):
    """The mean over H and W of relu(factor · (x − m) + offset)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, factor: Tensor, offset: Tensor, carrier: Tensor) -> Tensor:
        centre, rest = _split(m, x)
        sums = run("activated_moments", x, centre, factor, offset + factor * rest)
        pixels = x.shape[2] * x.shape[3]
        mean, on, centred = (cast(Tensor, value).to(m.dtype) / pixels for value in sums)
        ctx.save_for_backward(factor, on, centred + rest * on)
        ctx.pixels = pixels
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        factor, on, centred = ctx.saved_tensors
        offset = grad * on
        return None, -factor * offset, grad * centred, offset, factor * grad / ctx.pixels


class _InnerGate(Function):
    """gate · relu(factor · (x − m) + offset)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        m: Tensor,
        factor: Tensor,
        offset: Tensor,
        gate: Tensor,
        token: Tensor,
        *carriers: Tensor,
    ) -> Tensor:
        centre, rest = _split(m, x)
        shift = offset + factor * rest
        ctx.save_for_backward(x, m, factor, shift, gate)
        return cast(Tensor, run("gate_activated", x, centre, factor, shift, gate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, m, factor, shift, gate = ctx.saved_tensors
        centre, rest = _split(m, x)
        sums = run("backward_gate_moments", grad, x, centre, factor, shift)
        d_gate, on, centred = (value.to(m.dtype) for value in sums)
        offset = gate * on
        return None, -factor * offset, gate * (centred + rest * on), offset, d_gate, grad, gate * factor, factor, shift


class _SumOver(Function):
    """The sum of a tensor over processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _split(m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return m as the passes over x can take it, and what it is too large by."""
    centre = m if x.dtype == torch.float64 else m.float()
    return centre, centre - m


def _empty(x: Tensor, m: Tensor, carriers: int) -> tuple[Tensor, ...]:
    """Return a token shaped like x and carriers shaped like m, of one element each."""
    return x.new_empty(()).expand(x.shape), *(m.new_empty(()).expand(m.shape) for _ in range(carriers))
