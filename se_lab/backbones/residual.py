"""Base class of residual blocks, with optional SE unit, drop path, shortcut and join."""

from __future__ import annotations

import torch
from torch import nn


class Add(nn.Module):
    """The sum of branch and shortcut, as a module that accepts hooks."""

    def forward(self, branch: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Return branch + shortcut, (N, C, H, W)."""
        return branch + shortcut


class Concat(nn.Module):
    """The concatenation of shortcut and branch, as a module that accepts hooks."""

    def forward(self, branch: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Return (N, C_shortcut + C_branch, H, W)."""
        return torch.cat([shortcut, branch], dim=1)


class ResidualBlock(nn.Module):
    """The modules after a block's branch, named as in timm's ResNet blocks.

    `se` is an empty slot for a module (N, C, H, W) to (N, C, H, W) on the branch; `downsample` maps the shortcut (None:
    the identity); `join` combines branch and shortcut.
    """

    def __init__(self, downsample: nn.Module | None, join: nn.Module) -> None:
        super().__init__()
        self.se: nn.Module | None = None
        self.drop_path: nn.Module | None = None
        self.downsample = downsample
        self.join = join

    def close(self, branch: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Join the branch with its shortcut."""
        if self.se is not None:
            branch = self.se(branch)
        if self.drop_path is not None:
            branch = self.drop_path(branch)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        joined: torch.Tensor = self.join(branch, shortcut)
        return joined
