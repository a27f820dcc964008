"""The CIFAR ResNets' shortcut and units."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.resnet import BasicBlock

import se_lab.backbones  # noqa: F401
from se_lab.backbones.cifar_resnet import PadShortcut

torch.set_num_threads(1)


@pytest.mark.parametrize("size", [7, 8])
def test_pad_shortcut_is_option_a(size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, size, size))
    # He et al. 2015, section 3.3 (A): identity with stride 2, extra zero entries for the new channels.
    expected = np.zeros((2, 8, (size + 1) // 2, (size + 1) // 2))
    expected[:, :4] = x[:, :, ::2, ::2]
    shortcut = PadShortcut(4, 8)
    assert not list(shortcut.parameters())
    np.testing.assert_array_equal(shortcut(torch.from_numpy(x)).numpy(), expected)


def test_units_are_timms_and_only_two_shortcuts_are_not_identities() -> None:
    net = timm.create_model("cifar_resnet20", device="meta")
    units = [unit for stage in (net.layer1, net.layer2, net.layer3) for unit in stage]
    assert len(units) == 9
    assert all(type(unit) is BasicBlock for unit in units)
    assert [name for name, module in net.named_modules() if isinstance(module, PadShortcut)] == [
        "layer2.0.downsample",
        "layer3.0.downsample",
    ]
    assert [unit.conv1.stride for unit in units] == [(1, 1)] * 3 + [(2, 2), (1, 1), (1, 1)] * 2


def test_drop_path_grows_linearly_with_depth() -> None:
    net = timm.create_model("cifar_resnet20", device="meta", drop_path_rate=0.4)
    rates = [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.05 * k for k in range(1, 9)])


def test_zero_init_last_is_a_choice_and_off_by_default() -> None:
    assert timm.create_model("cifar_resnet20").layer1[0].bn2.weight.all()
    assert not timm.create_model("cifar_resnet20", zero_init_last=True).layer1[0].bn2.weight.any()
