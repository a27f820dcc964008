"""The Squeeze-and-Excitation unit (Hu et al., section 3) and its tables of operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lab.spec import OPERATORS, SESpec
from se_lab.units.counting import ModuleCost
from se_lab.units.unit import Unit


def squeeze_avg(x: Tensor) -> Tensor:
    """Global average pooling, (N, C, H, W) -> (N, C)."""
    return _mean(x)


def _mean(x: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":  # there, mean first converts the whole map
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    return x.mean((2, 3))


torch.fx.wrap("_mean")  # a single node, since an fx graph cannot branch on a dtype


def squeeze_max(x: Tensor) -> Tensor:
    """Global max pooling, (N, C, H, W) -> (N, C) (Table 11)."""
    return x.amax((2, 3))


def squeeze_none(x: Tensor) -> Tensor:
    """No pooling (Table 16): FC layers act as 1×1 convolutions, and the gate is (N, C, H, W)."""
    return x


Operator = Callable[[Tensor], Tensor] | type[nn.Module]
"""A function on tensors, or an nn.Module class, which is created with the number of channels."""

SQUEEZE: dict[str, Operator] = {"avg": squeeze_avg, "max": squeeze_max, "none": squeeze_none}
"""Squeeze operators by name, (N, C, H, W) -> (N, C) or (N, C, H, W); users can add entries."""

EXCITATION: dict[str, Operator] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
"""Final non-linearities of the gate by name (Table 12); users can add entries."""

OPERATORS.update(squeeze=SQUEEZE.keys(), excitation=EXCITATION.keys())


def hidden_width(channels: int, reduction: int) -> int:
    """Return the bottleneck's width, C // r, at least 1; unlike timm, not a multiple of 8."""
    return max(channels // reduction, 1)


GATE_AT_START = 0.99
"""The gate after an identity start, for excitations that do not reach 1 (sigmoid, tanh)."""


class SqueezeExcite(Unit):
    """x · gate(x), with gate(x) = excitation(W2 relu(W1 squeeze(x))), on (N, C, H, W).

    The parameters are, in this order, reduce.weight (hidden, C), [reduce.bias], expand.weight (C, hidden) and
    [expand.bias], for every squeeze. The gate, (N, C), or (N, C, H, W) with squeeze none, passes through `gate`, an
    identity for hooks.

    Examples:
        >>> unit = SqueezeExcite(64, SESpec(reduction=16, squeeze="max"))
        >>> unit.hidden, unit.excite(torch.zeros(2, 64)).unique().item()
        (4, 0.5)
    """

    fields: ClassVar[tuple[str, ...]] = ("reduction", "squeeze", "excitation", "bias", "start")
    reference: ClassVar[str] = "Hu et al. 2018, arXiv:1709.01507"

    if TYPE_CHECKING:  # TorchScript rejects this annotation
        gate: nn.Identity

    def __init__(self, channels: int, spec: SESpec | None = None) -> None:
        super().__init__(channels, spec)
        self._spec = spec = spec or SESpec()
        self.hidden = hidden = hidden_width(channels, spec.reduction)
        self.reduce = nn.Linear(channels, hidden, bias=spec.bias)
        self.expand = nn.Linear(hidden, channels, bias=spec.bias)
        self.squeeze = _build(SQUEEZE[spec.squeeze], channels)
        self.excitation = _build(EXCITATION[spec.excitation], channels)
        self.gate = nn.Identity()
        self._keeps_maps = _keeps_maps(self.squeeze, channels)
        self.reset()

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw both weights from N(0, 2 / fan-in) (He et al. 2015), and set the biases to 0."""
        if self.reduce.weight.is_meta:
            return
        for layer in (self.reduce, self.expand):
            # drawn on the CPU, so that the weights are the same on all devices
            values = torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / layer.in_features)
            with torch.no_grad():
                layer.weight.copy_(values)
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W), by its gate."""
        z = self.squeeze(x)
        if not self._keeps_maps:
            scaled: Tensor = x * self.excite(z)[:, :, None, None]
        else:
            hidden = F.relu(F.conv2d(z, self.reduce.weight[:, :, None, None], self.reduce.bias))
            s = self.excitation(F.conv2d(hidden, self.expand.weight[:, :, None, None], self.expand.bias))
            scaled = x * self.gate(s)
        return scaled

    def excite(self, z: Tensor) -> Tensor:
        """Return the gate from squeezed maps, (N, C) -> (N, C)."""
        s: Tensor = self.gate(self.excitation(self.expand(F.relu(self.reduce(z)))))
        return s

    def squeezed(self, x: Tensor) -> Tensor:
        """Return the squeezed x, (N, C), or (N, C, H, W) with squeeze none."""
        return self.squeeze(x)

    def start_as_identity(self) -> None:
        """Set W2 to 0 and its bias so that the gate is GATE_AT_START (relu: 1) for every input."""
        nn.init.zeros_(self.expand.weight)
        nn.init.constant_(self.expand.bias, _BIAS_OF_IDENTITY[self._spec.excitation])

    def cost(self, height: int, width: int) -> ModuleCost:
        """Return the cost for one map of (C, height, width), in closed form if there is one."""
        if not self.has_closed_form():
            return super().cost(height, width)
        channels, hidden = self.reduce.in_features, self.reduce.out_features
        pixels = height * width
        gates = pixels if self._keeps_maps else 1
        squeeze = 0 if self._keeps_maps else channels * pixels
        return ModuleCost(
            params=2 * channels * hidden + self._spec.bias * (hidden + channels),
            macs=2 * channels * hidden * gates,
            elementwise=squeeze + (hidden + channels) * gates + channels * pixels,
            activations=(hidden + channels) * gates,
        )

    def has_closed_form(self) -> bool:
        """Return whether `cost` is a formula, which it is for built-in operators."""
        return self._spec.squeeze in _POOLS and self._spec.excitation in _BIAS_OF_IDENTITY

    def bounds(self) -> tuple[float | None, float | None]:
        """Return the bounds of the gate, those of the excitation."""
        return bounds_of(self.excitation, self.channels)

    def why_not_fused(self) -> str:
        """Return why the unit cannot run fused: only the squeeze avg has a fused form."""
        return "" if self.squeeze is squeeze_avg else "the squeeze is not avg"

    def gate_of_means(self, z: Tensor) -> Tensor:
        """Return the gate from channel means, (N, C), in the dtype of z."""
        weight = self.reduce.weight
        # PyTorch's int8 linear layers expect float32, and their `weight` is a method
        return self.excite(z.to(weight.dtype if isinstance(weight, Tensor) else torch.float32)).to(z.dtype)

    def extra_repr(self) -> str:
        """Return the names of the operators."""
        return ", ".join(getattr(op, "__name__", type(op).__name__) for op in (self.squeeze, self.excitation))


FAR, NO_BOUND = 1e4, 1e3
"""An excitation is unbounded if its value at ±FAR is beyond ±NO_BOUND."""


def bounds_of(excitation: Callable[[Tensor], Tensor], channels: int) -> tuple[float | None, float | None]:
    """Return the lower and the upper bound of an excitation, each None if it is unbounded."""
    tensors = [*excitation.parameters(), *excitation.buffers()] if isinstance(excitation, nn.Module) else []
    if any(tensor.is_meta for tensor in tensors):
        return None, None
    device = tensors[0].device if tensors else "cpu"
    extremes = torch.tensor([[-FAR], [FAR]], device=device).expand(2, channels)
    with torch.no_grad():
        low, high = excitation(extremes)[:, 0].tolist()
    return (low if low > -NO_BOUND else None), (high if high < NO_BOUND else None)


def _build(operator: Operator, channels: int) -> Callable[[Tensor], Tensor]:
    return operator(channels) if isinstance(operator, type) else operator


def _keeps_maps(squeeze: Callable[[Tensor], Tensor], channels: int) -> bool:
    """Return whether a squeeze operator keeps H and W; checked once, not in each forward pass."""
    if squeeze in _POOLS.values():
        return squeeze is squeeze_none
    modules = list(squeeze.modules()) if isinstance(squeeze, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    with torch.no_grad():
        keeps = squeeze(torch.zeros(1, channels, 8, 8)).dim() == 4
    for module, mode in zip(modules, modes, strict=True):
        module.training = mode
    return keeps


_POOLS = dict(SQUEEZE)
_BIAS_OF_IDENTITY = {
    "sigmoid": math.log(GATE_AT_START / (1 - GATE_AT_START)),
    "tanh": math.atanh(GATE_AT_START),
    "relu": 1.0,
}
"""The last bias of an identity start, by built-in excitation."""
