"""The two modules of shake-shake nets (Gastaldi 2017, arXiv 1705.07485): mix and shortcut."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

FORWARD_ALPHAS = ("shake", "even")
BACKWARD_ALPHAS = ("shake", "even", "keep")


class ShakeShake(nn.Module):
    """α · branch1(x) + (1 − α) · branch2(x), the paper's equation 2, at its "Image" level.

    In training, α is one number per image: `forward_alpha` "shake" draws it uniformly from [0, 1), "even" sets it to
    1/2. In the gradient, β takes its place: `backward_alpha` "shake" draws it independently, "even" sets it to 1/2,
    "keep" uses α. Both are drawn in the forward pass, α before β, from the generator of the input's device, so that
    they do not depend on the order of the backward pass. In evaluation α is 1/2.
    """

    def __init__(self, branch1: nn.Module, branch2: nn.Module, forward_alpha: str, backward_alpha: str) -> None:
        super().__init__()
        if forward_alpha not in FORWARD_ALPHAS:
            raise ValueError(f"forward_alpha must be one of {', '.join(FORWARD_ALPHAS)}, got {forward_alpha!r}")
        if backward_alpha not in BACKWARD_ALPHAS:
            raise ValueError(f"backward_alpha must be one of {', '.join(BACKWARD_ALPHAS)}, got {backward_alpha!r}")
        self.branch1 = branch1
        self.branch2 = branch2
        self.forward_alpha = forward_alpha
        self.backward_alpha = backward_alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C_in, H, W) to the mixed branches (N, C, h, w)."""
        first: torch.Tensor = self.branch1(x)
        second: torch.Tensor = self.branch2(x)
        if not self.training:
            return 0.5 * (first + second)
        alpha = self._coefficient(first, self.forward_alpha)
        beta = alpha if self.backward_alpha == "keep" else self._coefficient(first, self.backward_alpha)
        # the value is α · first + (1 − α) · second; the last term is detached, so that the gradient uses β
        return beta * first + (1 - beta) * second + (alpha - beta) * (first - second).detach()

    def _coefficient(self, x: torch.Tensor, mode: str) -> torch.Tensor:
        shape = [x.shape[0], 1, 1, 1]
        if mode == "even":
            return torch.full(shape, 0.5, dtype=x.dtype, device=x.device)
        return torch.rand(shape, dtype=x.dtype, device=x.device)

    def extra_repr(self) -> str:
        """Return the modes of α in both passes as text."""
        return f"forward_alpha={self.forward_alpha!r}, backward_alpha={self.backward_alpha!r}"


class ShiftShortcut(nn.Module):
    """A shortcut of two subsampled paths, each projected to half the channels (section 2.1).

    (N, C_in, H, W) to (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉). The second path is shifted right and down by a pixel, so
    that it samples other pixels than the first.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm_layer: Any, **factory: Any) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 1, bias=False, **factory)
        self.conv2 = nn.Conv2d(in_channels, channels // 2, 1, bias=False, **factory)
        self.bn = norm_layer(channels, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the concatenated paths, normalised."""
        shifted = F.pad(x, (1, -1, 1, -1))
        first = self.conv1(x[:, :, :: self.stride, :: self.stride])
        second = self.conv2(shifted[:, :, :: self.stride, :: self.stride])
        x = self.bn(torch.cat([first, second], dim=1))
        return x
