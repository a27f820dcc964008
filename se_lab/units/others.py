"""Units other than SE: timm's layers behind SE-Lab's interface, and three that timm lacks.

The reduction ratio means the same for all units: a bottleneck of C // r channels, at least 1; timm rounds to multiples
of 8, and some papers have other minima. Bottlenecks have biases only if the spec says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from timm.layers.cbam import LightChannelAttn
from timm.layers.create_attn import get_attn
from torch import Tensor, nn

from se_lab.spec import SESpec
from se_lab.units.counting import ModuleCost
from se_lab.units.squeeze_excite import GATE_AT_START, hidden_width
from se_lab.units.unit import Unit


class HookedGate(nn.Module):
    """A gate's activation, followed by the unit's `gate`, an identity for hooks."""

    def __init__(self, activation: nn.Module, identity: nn.Identity) -> None:
        super().__init__()
        self.activation = activation
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of x, in the shape of x."""
        gate: Tensor = self.identity(self.activation(x))
        return gate


class HookedRow(HookedGate):
    """A HookedGate for gates of shape (N, 1, C), as in ECA."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of x, (N, 1, C)."""
        gate: Tensor = self.identity(self.activation(x)[:, 0])
        return gate.unsqueeze(1)


class TimmUnit(Unit):
    """A timm layer, `layer`, whose gates pass through the unit's `gate`."""

    name: ClassVar[str]
    """The name of the layer in timm's `create_attn`."""
    gates: ClassVar[tuple[str, ...]] = ("gate",)
    """The paths of the gates in the layer, in the order of the forward pass."""
    hooked: ClassVar[type[HookedGate]] = HookedGate

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        spec = spec or SESpec()
        if "reduction" in self.fields:
            self.hidden = hidden_width(channels, spec.reduction)
        self.layer = self._build(spec)
        self.gate = identity = nn.Identity()
        for path in self.gates:
            parent, _, attribute = path.rpartition(".")
            owner = self.layer.get_submodule(parent)
            setattr(owner, attribute, self.hooked(getattr(owner, attribute), identity))

    @classmethod
    def options(cls, hidden: int | None, spec: SESpec) -> dict[str, Any]:
        """Return the layer's arguments for a bottleneck of `hidden` channels."""
        return {}

    def _build(self, spec: SESpec) -> nn.Module:
        layer: nn.Module = get_attn(self.name)(self.channels, **self.options(self.hidden, spec))  # type: ignore[no-untyped-call]
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W)."""
        scaled: Tensor = self.layer(x)
        return scaled


class ESE(TimmUnit):
    """Effective SE: one full FC layer, C × C with biases, and a hard sigmoid."""

    name = "ese"
    fields = ("start",)
    reference = "Lee & Park 2020, CenterMask, arXiv:1911.06667"

    def start_as_identity(self) -> None:
        """Set the gate to 1, the hard sigmoid of 3."""
        nn.init.zeros_(self.layer.fc.weight)  # type: ignore[arg-type, union-attr]
        nn.init.constant_(self.layer.fc.bias, 3)  # type: ignore[arg-type, union-attr]


class ECA(TimmUnit):
    """Efficient channel attention: a 1D convolution over channel means; C sets the kernel size."""

    name = "eca"
    hooked = HookedRow
    reference = "Wang et al. 2020, arXiv:1910.03151"

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the closed form: for each channel k MACs, a mean, a gate and the scaling."""
        (kernel,) = self.layer.conv.kernel_size  # type: ignore[union-attr,misc]
        operations = 2 * self.channels * height * width
        return ModuleCost(int(kernel), int(kernel) * self.channels, operations + self.channels, self.channels)


class CECA(ECA):
    """ECA with circular padding, a variant from timm."""

    name = "ceca"


class GlobalContext(TimmUnit):
    """Global context: means weighted by attention over positions, and a bottleneck.

    timm's form scales the map; the paper's adds the context to the map, and has no gate.
    """

    name = "gc"
    fields = ("reduction", "start")
    reference = "Cao et al. 2020, arXiv:1904.11492"

    @classmethod
    def options(cls, hidden: int | None, spec: SESpec) -> dict[str, Any]:
        """Return the width of the bottleneck."""
        return {"rd_channels": hidden}

    def start_as_identity(self) -> None:
        """Set the gate to GATE_AT_START."""
        layer: Any = self.layer.get_submodule("mlp_scale.fc2")
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, math.log(GATE_AT_START / (1 - GATE_AT_START)))


class CBAM(TimmUnit):
    """A channel gate from mean and maximum, then a spatial gate, (N, 1, H, W)."""

    name = "cbam"
    gates = ("channel.gate", "spatial.gate")
    fields = ("reduction", "bias")
    reference = "Woo et al. 2018, arXiv:1807.06521"

    @classmethod
    def options(cls, hidden: int | None, spec: SESpec) -> dict[str, Any]:
        """Return the width of the bottleneck, and whether it has biases."""
        return {"rd_channels": hidden, "mlp_bias": spec.bias}


class HookableLightChannelAttn(LightChannelAttn):
    """timm's layer with a call of its `gate`; timm calls the sigmoid directly, without hooks."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W)."""
        pooled = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
        scaled: Tensor = x * self.gate(self.fc2(self.act(self.fc1(pooled))))
        return scaled


class LightCBAM(CBAM):
    """CBAM with one path for the sum of mean and maximum, a variant from timm."""

    name = "lcbam"

    def _build(self, spec: SESpec) -> nn.Module:
        layer = super()._build(spec)
        layer.channel.__class__ = HookableLightChannelAttn
        return layer


class CoordAttn(TimmUnit):
    """Coordinate attention: one gate for rows, (N, C, H, 1), and one for columns, (N, C, 1, W)."""

    name = "coord"
    fields = ("reduction", "bias")
    reference = "Hou et al. 2021, arXiv:2103.02907"

    @classmethod
    def options(cls, hidden: int | None, spec: SESpec) -> dict[str, Any]:
        """Return the width of the bottleneck, and whether its convolutions have biases."""
        return {"rd_channels": hidden, "bias": spec.bias}


class SimpleCoordAttn(CoordAttn):
    """Coordinate attention without a norm, with one gate, (N, C, H, W); a variant from timm."""

    name = "scoord"


class EfficientLocalAttn(TimmUnit):
    """Efficient local attention: 1D depthwise convolutions along rows and along columns."""

    name = "ela"
    reference = "Xu & Wan 2024, arXiv:2403.01123"


class StripAttn(TimmUnit):
    """A gate, (N, C, H, W), from depthwise convolutions of row and column means (timm)."""

    name = "strip"
    reference = "timm.layers.StripAttn"


class _Gated(Unit):
    if TYPE_CHECKING:  # TorchScript rejects this annotation
        gate: nn.Identity

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        self.gate = nn.Identity()


class SRM(_Gated):
    """Style-based recalibration: a gate per channel from its mean and standard deviation.

    g = sigmoid(BN(w₁ μ + w₂ σ)) for each channel (equations 1 to 4); w is initialised with 0, as in the authors' code.
    """

    reference = "Lee et al. 2019, arXiv:1903.10829"
    EPS: ClassVar[float] = 1e-5

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        self.style = nn.Parameter(torch.zeros(channels, 2))
        self.norm = nn.BatchNorm2d(channels)
        self.eps = self.EPS

    def reset_parameters(self) -> None:
        """Set the weights of μ and σ to 0."""
        nn.init.zeros_(self.style)

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        difference = x - mean
        deviation = torch.sqrt((difference * difference).mean((2, 3), keepdim=True) + self.eps)
        weights = self.style[:, :, None, None]
        style = mean * weights[:, 0] + deviation * weights[:, 1]
        scaled: Tensor = x * self.gate(torch.sigmoid(self.norm(style)))
        return scaled

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the closed form: 5 operations per element and 8 per channel."""
        elementwise = self.channels * (5 * height * width + 8)
        return ModuleCost(4 * self.channels, 0, elementwise, 0)


class GCT(_Gated):
    """Gated channel transformation: gates from the channels' ℓ2 norms, s = α √(Σ x² + ε).

    The gate is 1 + tanh(γ s / √(mean of s² + ε) + β) (equations 1 to 4); γ and β are initialised with 0.
    """

    reference = "Yang et al. 2020, arXiv:1909.11519"
    EPS: ClassVar[float] = 1e-5

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        self.alpha = nn.Parameter(torch.ones(channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.eps = self.EPS

    def reset_parameters(self) -> None:
        """Set α to 1, γ and β to 0."""
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def bounds(self) -> tuple[float | None, float | None]:
        """Return the bounds of the gate, those of 1 + tanh."""
        return 0.0, 2.0

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W)."""
        norms = torch.sqrt((x * x).sum((2, 3), keepdim=True) + self.eps) * self.alpha
        norm = torch.sqrt((norms * norms).mean(1, keepdim=True) + self.eps)
        scaled: Tensor = x * self.gate(1 + torch.tanh(norms * (self.gamma / norm) + self.beta))
        return scaled

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the closed form: 3 operations per element, 10 per channel, 2 for the mean."""
        elementwise = self.channels * (3 * height * width + 10) + 2
        return ModuleCost(3 * self.channels, 0, elementwise, 0)


class SimAM(_Gated):
    """Parameter-free attention: a gate per element, from its distance to the channel's mean.

    d = (x − μ)², g = sigmoid(d / (4 (Σ d / (H·W − 1) + λ)) + ½), λ = 1e-4 (equation 5 and the paper's code).
    """

    reference = "Yang et al. 2021, SimAM, ICML"
    fewest_pixels = 2
    LAMBDA: ClassVar[float] = 1e-4

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        self.weight_of_energy = self.LAMBDA

    def bounds(self) -> tuple[float | None, float | None]:
        """Return the bounds of the gate; the energy is at least ½."""
        return 1 / (1 + math.exp(-0.5)), 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W); H·W must be at least 2."""
        difference = x - x.mean((2, 3), keepdim=True)
        squares = difference * difference
        variance = squares.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        energy = squares / (4 * (variance + self.weight_of_energy)) + 0.5
        scaled: Tensor = x * self.gate(torch.sigmoid(energy))
        return scaled

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the closed form: 8 operations per element, 3 per channel, and 2 for H·W − 1."""
        return ModuleCost(0, 0, self.channels * (8 * height * width + 3) + 2, 0)
