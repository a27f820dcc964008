"""ShuffleNet's units."""

from __future__ import annotations

import numpy as np
import timm
import torch

import se_lab.backbones  # noqa: F401
from se_lab.backbones.residual import Add, Concat
from se_lab.backbones.shufflenet import ChannelShuffle, ShuffleBlock

torch.set_num_threads(1)


def test_shuffle_reshapes_transposes_and_flattens() -> None:
    # Zhang et al. 2018, section 3.1: g × n output channels, reshaped to (g, n), transposed and flattened.
    x = np.arange(2 * 12 * 2 * 2).reshape(2, 12, 2, 2)
    expected = x[:, np.arange(12).reshape(3, 4).T.ravel()]
    np.testing.assert_array_equal(ChannelShuffle(3)(torch.from_numpy(x)).numpy(), expected)


def test_sixteen_units_grouped_but_for_the_first_convolution() -> None:
    net = timm.create_model("shufflenet_v1_g3", device="meta")
    units = {name: m for name, m in net.named_modules() if isinstance(m, ShuffleBlock)}
    assert list(units) == [f"layer{k}.{i}" for k, n in ((1, 4), (2, 8), (3, 4)) for i in range(n)]
    assert [unit.conv1.groups for unit in units.values()] == [1] + [3] * 15
    assert all(unit.conv3.groups == 3 for unit in units.values())
    # The first unit of a stage concatenates, its branch filling up the stage's width: Table 1, g = 3.
    widening = [name for name, unit in units.items() if isinstance(unit.join, Concat)]
    assert widening == ["layer1.0", "layer2.0", "layer3.0"]
    assert [units[name].bn3.num_features for name in widening] == [240 - 24, 480 - 240, 960 - 480]
    assert all(isinstance(unit.join, Add) for name, unit in units.items() if name not in widening)


def test_shuffle_lets_every_output_group_see_every_input_group() -> None:
    torch.manual_seed(0)
    unit = ShuffleBlock(36, 36).double().eval()
    x = torch.randn(1, 36, 3, 3, dtype=torch.float64, requires_grad=True)
    out = unit.conv3(unit.shuffle(unit.conv1(x)))
    for group in out.chunk(3, dim=1):
        (grad,) = torch.autograd.grad(group.sum(), x, retain_graph=True)
        assert all(seen.any() for seen in grad.chunk(3, dim=1))
