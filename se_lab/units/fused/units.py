"""Fused SE units as autograd functions: a block's tail, BN → ReLU → SE, and x · gate.

m and v are the mean and variance over H × W of the convolution's output x, per image and channel. The batch statistics
follow from them (μ = mean of m; σ² = mean of v + variance of m), and so does the squeeze of BN's output,
z = a (m − μ) + β with a = γ / √(σ² + ε). BN and gate together are one affine map, s · (a (x − m) + z).

Everything between the first and the last pass over x, from m and v to the gate, is plain PyTorch on (N, C). Both passes
contribute to the gradient of x. To write it in one pass, the backward of the last pass hands its terms to that of the
first, as gradients of empty outputs: `token` carries the gradient (N, C, H, W), and carriers its coefficients (N, C).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from se_lab.parallel.sync_bn import SyncBatchNorm
from se_lab.units.fused.passes import aligned, run
from se_lab.units.squeeze_excite import squeeze_avg
from se_lab.units.unit import Unit

Norm = nn.BatchNorm2d | nn.SyncBatchNorm | SyncBatchNorm


def scale(x: Tensor, unit: Unit) -> Tensor:
    """Return x · gate(x), (N, C, H, W), in three passes."""
    if not torch.is_grad_enabled():  # the plain form has three passes as well, but PyTorch's 16-bit sums can be slow
        slow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and not x.is_contiguous())
        z = run("mean", x) if slow and x.device.type == "cpu" else squeeze_avg(x)
        return x * unit.gate_of_means(z)[:, :, None, None].to(x.dtype)
    m, _, token, carrier = _Moments.apply(x, False)
    s = unit.gate_of_means(m)
    return cast(Tensor, _Affine.apply(x.detach(), m, s, None, None, None, token, carrier, "identity", False))


def tail(
    x: Tensor,
    shortcut: Tensor,
    norm: Norm,
    unit: Unit,
    drop_path: nn.Module | None,
    activation: str,
    reuse: bool = False,
) -> Tensor:
    """Return act(drop_path(SE(BN(x))) + shortcut), (N, C, H, W), in four passes.

    With `reuse`, the result may overwrite x if gradients are disabled.
    """
    m, v, token, carrier = _Moments.apply(x, uses_batch(norm))
    a, z = _normalise(norm, m, v, x)
    s = unit.gate_of_means(z)
    s = _dropped(s, drop_path, x)
    in_place = reuse and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return cast(Tensor, _Affine.apply(x.detach(), m, s, a, z, shortcut, token, carrier, activation, in_place))


def inner(x: Tensor, norm: Norm, unit: Unit) -> Tensor:
    """Return SE(ReLU(BN(x))), (N, C, H, W), in four passes."""
    m, v, token, *carriers = _InnerMoments.apply(x, uses_batch(norm))
    a, z = _normalise(norm, m, v, x)
    a = a.expand_as(m)
    squeezed = _InnerMean.apply(x.detach(), m, a, z, carriers[0])
    s = unit.gate_of_means(squeezed)
    return cast(Tensor, _InnerGate.apply(x.detach(), m, a, z, s, token, *carriers[1:]))


def uses_batch(norm: Norm) -> bool:
    """Return whether a norm uses the statistics of the batch, not the running ones."""
    return norm.training or norm.running_mean is None


def group_of(norm: Norm) -> Any:
    """Return the process group with which a norm shares its batch statistics, or None."""
    if isinstance(norm, nn.BatchNorm2d) or not (norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group = getattr(norm, "process_group", None) or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _dropped(s: Tensor, drop_path: nn.Module | None, x: Tensor) -> Tensor:
    """Return gates, (N, C), multiplied by the drop path's factors (0 for dropped images)."""
    if drop_path is None or not drop_path.training:
        return s
    # one factor per image, from the same random numbers as for a map
    factors: Tensor = drop_path(x.new_ones((len(x), 1, 1, 1)))
    return s * factors.flatten(1).to(s.dtype)


def _normalise(norm: Norm, m: Tensor, v: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return BN's factor a, (C,), and the mean z of its output over H and W, (N, C)."""
    weight, bias = (norm.weight, norm.bias) if norm.affine else (m.new_ones(m.shape[1]), m.new_zeros(m.shape[1]))
    if v is None:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = norm.running_mean.to(m.dtype), norm.running_var.to(m.dtype)
        a = torch.rsqrt(variance + norm.eps) * weight
        return a, torch.addcmul(bias.to(m.dtype), a, m - mean)
    group, pixels = group_of(norm), x.shape[2] * x.shape[3]
    count: Any = len(m) * pixels
    if group is not None:
        count = _sum_over(m.new_tensor(float(count)), group)
    a, z, mean, variance = _Normalise.apply(m, v, weight, bias, norm.eps, pixels / count, group)
    if norm.training and norm.track_running_stats and norm.running_mean is not None:
        with torch.no_grad():
            _update_running(norm, mean, variance * (count / (count - 1)))
    return a, z


def _update_running(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for statistic, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        statistic.lerp_(value.to(statistic.dtype), share)


class _Moments(Function):
    """m and v of x (v is None if not requested), and an empty token and carrier."""

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
        tensors = ctx.saved_tensors
        if not tensors:
            return cast(Tensor, run("apply", g, None, "identity", False, torch.zeros_like(factor), factor, r)), None
        x, m = tensors
        q = dv * (2 / ctx.pixels)
        centre, rest = _split(m, x)
        return run("backward_input", x, g, centre, factor, q, r + q * rest), None


class _Affine(Function):
    """act(s · (a · (x − m) + z) + shortcut), or s · x without a and z.

    Its gradient for x goes to the token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        m: Tensor,
        s: Tensor,
        a: Tensor | None,
        z: Tensor | None,
        shortcut: Tensor | None,
        token: Tensor,
        carrier: Tensor,
        activation: str,
        in_place: bool,
    ) -> Tensor:
        factor = s if a is None else s * a
        centre, rest = _split(m, x)
        shift = torch.addcmul(s * (m if z is None else z), factor, rest)
        out = cast(Tensor, run("apply", x, shortcut, activation, in_place, centre, factor, shift))
        norm = () if a is None or z is None else (a, z)
        ctx.save_for_backward(x, m, s, factor, *norm, *([out] if activation == "relu" else []))
        ctx.activation, ctx.joined, ctx.norm = activation, shortcut is not None, bool(norm)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, m, s, factor, *tensors = ctx.saved_tensors
        norm, out = (tensors[:2], tensors[2:]) if ctx.norm else ((), tensors)
        centre, rest = _split(m, x)
        g, sums, centred = run("backward_moments", x, grad, out[0] if out else None, centre, ctx.activation)
        sums = sums.to(m.dtype)
        d_factor = torch.addcmul(centred.to(m.dtype), rest, sums)
        if norm:
            a, z = norm
            dm, ds = -factor * sums, torch.addcmul(z * sums, a, d_factor)
            da, dz = (s * d_factor).sum(0), s * sums
        else:
            dm, ds, da, dz = None, torch.addcmul(d_factor, m, sums), None, None
        return None, dm, ds, da, dz, g if ctx.joined else None, g, factor, None, None


class _InnerMoments(Function):
    """_Moments with four carriers, for the last pass's constant, p, scale and shift."""

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
        return run("backward_gate_input", x, grad, centre, factor, shift, p, constant, q, r), None


class _InnerMean(Function):
    """The mean over H and W of relu(factor · (x − m) + offset)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, factor: Tensor, offset: Tensor, carrier: Tensor) -> Tensor:
        centre, rest = _split(m, x)
        sums = run("activated_moments", x, centre, factor, offset + factor * rest)
        pixels = x.shape[2] * x.shape[3]
        mean, active, centred = (cast(Tensor, value).to(m.dtype) / pixels for value in sums)
        ctx.save_for_backward(factor, active, centred + rest * active)
        ctx.pixels = pixels
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        factor, active, centred = ctx.saved_tensors
        offset = grad * active
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
        grad = aligned(grad, x)  # for the second pass as well
        centre, rest = _split(m, x)
        sums = run("backward_gate_moments", x, grad, centre, factor, shift)
        d_gate, on, centred = (value.to(m.dtype) for value in sums)
        offset = gate * on
        return None, -factor * offset, gate * (centred + rest * on), offset, d_gate, grad, gate * factor, factor, shift


class _Normalise(Function):
    """BN's factor a, the mean z of its output, and the batch's mean and variance.

    `share` is an image's fraction of the batch, over all processes of the group.
    """

    @staticmethod
    def forward(
        ctx: Any, m: Tensor, v: Tensor, weight: Tensor, bias: Tensor, eps: float, share: Any, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = _sum_over(m.sum(0), group) * share
        difference = m - mean
        variance = _sum_over(torch.addcmul(v, difference, difference).sum(0), group) * share
        inverse = torch.rsqrt(variance + eps)
        a = inverse * weight
        ctx.save_for_backward(difference, inverse, weight, a)
        ctx.share, ctx.group, ctx.types = share, group, (weight.dtype, bias.dtype)
        ctx.mark_non_differentiable(mean, variance)
        return a, torch.addcmul(bias.to(m.dtype), a, difference), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da: Tensor, dz: Tensor, *_: Tensor) -> tuple[Any, ...]:
        difference, inverse, weight, a = ctx.saved_tensors
        d_bias = dz.sum(0)
        d_weight = (da + (dz * difference).sum(0)) * inverse
        # mean and variance affect the outputs for all images of the group
        d_mean, d_variance = _sum_over(torch.stack([-a * d_bias, d_weight * weight * inverse.square() / -2]), ctx.group)
        d_variance = d_variance * ctx.share
        dm = torch.addcmul(torch.addcmul(d_mean * ctx.share, a, dz), d_variance, difference, value=2)
        weight_type, bias_type = ctx.types
        return dm, d_variance.expand_as(dm), d_weight.to(weight_type), d_bias.to(bias_type), None, None, None


def _sum_over(x: Tensor, group: Any) -> Tensor:
    """Return the sum of a tensor over the processes of a group, or the tensor without a group."""
    if group is None:
        return x
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


def _split(m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return m in the dtype of the passes over x, and its rounding error."""
    centre = m if x.dtype == torch.float64 else m.float()
    return centre, centre - m


def _empty(x: Tensor, m: Tensor, carriers: int) -> tuple[Tensor, ...]:
    """Return a token with the shape of x and carriers with the shape of m, each of one element."""
    return x.new_empty(()).expand(x.shape), *(m.new_empty(()).expand(m.shape) for _ in range(carriers))
