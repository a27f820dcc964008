"""The residual units: what their branch, `se` slot, shortcut and join are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from se_lab.backbones.cifar_preact import PreActBasic, PreActBottleneck
from se_lab.backbones.cifar_shake import ShakeBasic, ShakeBottleneck
from se_lab.backbones.residual import Concat, ResidualBlock
from se_lab.backbones.shufflenet import ShuffleBlock

torch.set_num_threads(1)

# Each unit, the shortcut it should have, and what should follow the join.
CASES: dict[str, tuple[Callable[[], ResidualBlock], Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "preact bottleneck": (lambda: PreActBottleneck(24, 24), lambda u, x: x, lambda y: y),
    "preact bottleneck, widening": (
        lambda: PreActBottleneck(24, 48, stride=2),
        lambda u, x: u.downsample(F.relu(u.bn1(x))),
        lambda y: y,
    ),
    "preact basic": (lambda: PreActBasic(24, 24), lambda u, x: x, lambda y: y),
    "preact basic, widening": (
        lambda: PreActBasic(24, 48, stride=2),
        lambda u, x: u.downsample(F.relu(u.bn1(x))),
        lambda y: y,
    ),
    "shake basic": (lambda: ShakeBasic(24, 24), lambda u, x: x, lambda y: y),
    "shake basic, widening": (
        lambda: ShakeBasic(24, 48, stride=2),
        lambda u, x: u.downsample(F.relu(x)),
        lambda y: y,
    ),
    "shake bottleneck": (lambda: ShakeBottleneck(24, 24), lambda u, x: x, F.relu),
    "shake bottleneck, widening": (
        lambda: ShakeBottleneck(24, 48, stride=2),
        lambda u, x: u.downsample(x),
        F.relu,
    ),
    "shuffle": (lambda: ShuffleBlock(24, 24), lambda u, x: x, F.relu),
    "shuffle, widening": (
        lambda: ShuffleBlock(24, 48, stride=2),
        lambda u, x: F.avg_pool2d(x, 3, stride=2, padding=1),
        F.relu,
    ),
}


class Zero(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def make(case: str) -> tuple[ResidualBlock, torch.Tensor, torch.Tensor]:
    """Return the unit in evaluation, an input with both signs, and the output that a silent branch should leave."""
    torch.manual_seed(0)
    build, shortcut_of, after = CASES[case]
    unit = build().eval()
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 24, 6, 6)
    with torch.no_grad():
        shortcut = shortcut_of(unit, x)
        if isinstance(unit.join, Concat):
            shortcut = torch.cat([shortcut, torch.zeros_like(shortcut)], dim=1)
        return unit, x, after(shortcut)


@pytest.mark.parametrize("case", CASES)
def test_slot_stands_on_the_branch_alone(case: str) -> None:
    unit, x, expected = make(case)
    with torch.no_grad():
        assert not torch.allclose(unit(x), expected)
        unit.se = Zero()
        torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_zero_init_last_silences_the_branch(case: str) -> None:
    unit, x, expected = make(case)
    unit.zero_init_last()
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.zeros_(module.bias)  # as at the start of training
    with torch.no_grad():
        torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_unit_leaves_its_input_alone(case: str) -> None:
    unit, x, _ = make(case)
    before = x.clone()
    with torch.no_grad():
        unit(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("case", CASES)
def test_hook_on_the_join_sees_both_paths(case: str) -> None:
    unit, x, silent = make(case)
    seen: list[torch.Tensor] = []
    unit.join.register_forward_hook(lambda module, args, output: seen.extend([*args, output.clone()]))
    with torch.no_grad():
        out = unit(x)
    branch, shortcut, joined = seen
    torch.testing.assert_close(unit.join(branch, shortcut), joined)
    torch.testing.assert_close(CASES[case][2](joined), out)
    torch.testing.assert_close(CASES[case][2](unit.join(torch.zeros_like(branch), shortcut)), silent)
