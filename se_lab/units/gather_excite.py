"""Gather-excite units (Hu et al. 2018): SE with gates computed from local neighbourhoods.

timm's layer is not used: in timm 1.0.31 it cannot be built with parameters (it passes `*dd` for `**dd` to its
convolutions), and it can be neither scripted nor traced, since its forward pass branches on a size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lab.spec import SESpec
from se_lab.units.counting import ModuleCost
from se_lab.units.squeeze_excite import hidden_width
from se_lab.units.unit import Unit


class GlobalMean(nn.Module):
    """The mean over all positions, (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each channel."""
        return x.mean((2, 3), keepdim=True)


class GatherExcite(Unit):
    """Gather-excite without parameters (GE-θ⁻), global: the gate is the sigmoid of the mean.

    The gate is resized to the map by nearest neighbours. The paper's global extent with parameters is not supported:
    its depthwise kernel is as large as the map, which restricts a net to one image size.
    """

    reference = "Hu et al. 2018, arXiv:1810.12348"
    extent: ClassVar[int] = 0
    """Side of the squares of positions that share a gate; 0 for the whole map."""
    convolves: ClassVar[bool] = False
    """Gather by log₂(extent) depthwise 3×3 convolutions of stride 2 (GE-θ) instead of means."""
    excites: ClassVar[bool] = False
    """Excite by SE's two FC layers, as 1×1 convolutions (GE-θ⁺)."""

    if TYPE_CHECKING:  # TorchScript rejects this annotation
        gate: nn.Identity

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        spec = spec or SESpec()
        self.gather = self._gather()
        self.excite: nn.Module = nn.Identity()
        if self.excites:
            self.hidden = hidden_width(channels, spec.reduction)
            self.excite = nn.Sequential(
                nn.Conv2d(channels, self.hidden, 1, bias=spec.bias),
                nn.ReLU(),
                nn.Conv2d(self.hidden, channels, 1, bias=spec.bias),
            )
        self.gate = nn.Identity()
        self.resizes = self.extent > 0

    def _gather(self) -> nn.Module:
        channels, extent = self.channels, self.extent
        if not extent:
            return GlobalMean()
        if not self.convolves:  # as in timm, means at borders exclude the padding
            return nn.AvgPool2d(2 * extent - 1, stride=extent, padding=extent - 1, count_include_pad=False)
        layers: list[nn.Module] = []
        for _ in range(self._steps()):
            layers += [
                nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        return nn.Sequential(*layers[:-1])  # the sigmoid follows the last norm

    def _steps(self) -> int:
        return self.extent.bit_length() - 1

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W)."""
        gate = torch.sigmoid(self.excite(self.gather(x)))
        if self.resizes:
            gate = F.interpolate(gate, size=x.shape[-2:])
        scaled: Tensor = x * self.gate(gate)
        return scaled

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the closed form: gather, FC layers, sigmoid, resizing and scaling."""
        channels, pixels = self.channels, height * width
        params = sum(parameter.numel() for parameter in self.parameters())
        macs = activations = 0
        elementwise = pixels * (1 + self.resizes)
        if self.convolves:
            for step in range(self._steps()):
                height, width = -(-height // 2), -(-width // 2)
                macs += 9 * channels * height * width
                activations += channels * height * width
                elementwise += (2 + (step < self._steps() - 1)) * height * width  # norm, and ReLU between
        else:
            elementwise += pixels
            height, width = (-(-side // self.extent) if self.extent else 1 for side in (height, width))
        gates = height * width
        inner = 0
        if self.hidden is not None:
            inner = self.hidden * gates
            macs += 2 * channels * inner
            activations += inner + channels * gates
        return ModuleCost(params, macs, channels * (elementwise + gates) + inner, activations)


class GatherExcite2(GatherExcite):
    """Gather-excite without parameters (GE-θ⁻), extent 2."""

    extent = 2


class GatherExcite4(GatherExcite):
    """Gather-excite without parameters (GE-θ⁻), extent 4."""

    extent = 4


class GatherExcite8(GatherExcite):
    """Gather-excite without parameters (GE-θ⁻), extent 8."""

    extent = 8


class GatherExciteTheta2(GatherExcite2):
    """Gather-excite that gathers by a depthwise convolution (GE-θ), extent 2."""

    convolves = True


class GatherExciteTheta4(GatherExcite4):
    """Gather-excite that gathers by two depthwise convolutions (GE-θ), extent 4."""

    convolves = True


class GatherExciteTheta8(GatherExcite8):
    """Gather-excite that gathers by three depthwise convolutions (GE-θ), extent 8."""

    convolves = True


class GatherExcitePlus2(GatherExciteTheta2):
    """Gather-excite that gathers by convolution and excites by two FC layers (GE-θ⁺), extent 2."""

    fields = ("reduction", "bias")
    excites = True


class GatherExcitePlus4(GatherExciteTheta4):
    """Gather-excite that gathers by convolutions and excites by two FC layers (GE-θ⁺), extent 4."""

    fields = ("reduction", "bias")
    excites = True


class GatherExcitePlus8(GatherExciteTheta8):
    """Gather-excite that gathers by convolutions and excites by two FC layers (GE-θ⁺), extent 8."""

    fields = ("reduction", "bias")
    excites = True
