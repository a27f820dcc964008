"""The Squeeze-and-Excitation unit (Hu et al., section 3) and the tables of its operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lab.spec import OPERATORS, SESpec


def squeeze_avg(x: Tensor) -> Tensor:
    """Global average pooling, (N, C, H, W) -> (N, C)."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":  # where mean widens the whole map first
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    return x.mean((2, 3))


def squeeze_max(x: Tensor) -> Tensor:
    """Global max pooling, (N, C, H, W) -> (N, C) (Table 11)."""
    return x.amax((2, 3))


def squeeze_none(x: Tensor) -> Tensor:
    """No pooling (Table 16): both FC layers act as 1×1 convolutions and the gate keeps (N, C, H, W)."""
    return x


Operator = Callable[[Tensor], Tensor] | type[nn.Module]
"""A function on tensors, or an nn.Module class that is built with the number of channels and may have parameters."""

SQUEEZE: dict[str, Operator] = {"avg": squeeze_avg, "max": squeeze_max, "none": squeeze_none}
"""Squeeze operators by name, (N, C, H, W) -> (N, C) or (N, C, H, W). A user's own is one more entry."""

EXCITATION: dict[str, Operator] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
"""Final non-linearities of the gate by name (Table 12); the inner ReLU stays. A user's own is one more entry."""

OPERATORS.update(squeeze=SQUEEZE.keys(), excitation=EXCITATION.keys())


def hidden_width(channels: int, reduction: int) -> int:
    """Return the bottleneck's width: C // r, at least 1, not rounded to a multiple of 8 as timm does."""
    return max(channels // reduction, 1)


class SqueezeExcite(nn.Module):
    """x · gate(x), with gate(x) = excitation(W2 relu(W1 squeeze(x))), on (N, C, H, W).

    Parameters come in the order reduce.weight (hidden, C), [reduce.bias], expand.weight (C, hidden), [expand.bias],
    two-dimensional for every squeeze. The gate, (N, C) or (N, C, H, W) where nothing is squeezed, passes through
    `gate`, an identity that is there to be hooked.
    """

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__()
        spec = spec or SESpec()
        hidden = hidden_width(channels, spec.reduction)
        self.reduce = nn.Linear(channels, hidden, bias=spec.bias)
        self.expand = nn.Linear(hidden, channels, bias=spec.bias)
        self.squeeze = _build(SQUEEZE[spec.squeeze], channels)
        self.excitation = _build(EXCITATION[spec.excitation], channels)
        self.gate = nn.Identity()
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw both weights as He et al. 2015 do (fan in), and set the biases to 0."""
        if self.reduce.weight.is_meta:
            return
        for layer in (self.reduce, self.expand):
            # drawn on the CPU, so that a stream gives the same weights for a net built on any device
            fresh = torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / layer.in_features)
            with torch.no_grad():
                layer.weight.copy_(fresh)
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W), by its gate."""
        z = self.squeeze(x)
        if z.dim() == 2:
            scaled: Tensor = x * self.excite(z)[:, :, None, None]
        else:
            hidden = F.relu(F.conv2d(z, self.reduce.weight[:, :, None, None], self.reduce.bias))
            s = self.excitation(F.conv2d(hidden, self.expand.weight[:, :, None, None], self.expand.bias))
            scaled = x * self.gate(s)
        return scaled

    def excite(self, z: Tensor) -> Tensor:
        """Return the gate of squeezed maps, (N, C) -> (N, C)."""
        s: Tensor = self.gate(self.excitation(self.expand(F.relu(self.reduce(z)))))
        return s

    def extra_repr(self) -> str:
        """Name the operators."""
        return ", ".join(getattr(op, "__name__", type(op).__name__) for op in (self.squeeze, self.excitation))


def _build(operator: Operator, channels: int) -> Callable[[Tensor], Tensor]:
    return operator(channels) if isinstance(operator, type) else operator
