"""BN-Inception's modules."""

from __future__ import annotations

import timm
import torch
from torch import nn

import se_lab.backbones  # noqa: F401
from se_lab.backbones.bn_inception import Inception

torch.set_num_threads(1)


def test_ten_modules_and_their_poolings() -> None:
    net = timm.create_model("bn_inception", device="meta")
    modules = {name: m for name, m in net.named_modules() if isinstance(m, Inception)}
    assert list(modules) == [f"layer{k}.{i}" for k, n in ((1, 3), (2, 5), (3, 2)) for i in range(n)]
    # Concatenated widths of 3a-3c, 4a-4e, 5a-5b.
    assert [m.out_channels for m in modules.values()] == [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]
    # Average in 3a-5a, maximum in 5b and in the stride-2 modules 3c and 4e.
    maximum = {
        name for name, m in modules.items() if any(isinstance(x, nn.MaxPool2d) for x in m.paths["pool"].modules())
    }
    assert maximum == {"layer1.2", "layer2.4", "layer3.1"}
    strided = {name for name, m in modules.items() if any(getattr(x, "stride", 1) in (2, (2, 2)) for x in m.modules())}
    assert strided == {"layer1.2", "layer2.4"}


def test_output_is_the_concatenation_of_the_paths() -> None:
    torch.manual_seed(0)
    net = timm.create_model("bn_inception").eval()
    for unit, channels in ((net.layer1[0], 192), (net.layer1[2], 320)):
        x = torch.randn(1, channels, 7, 7)
        with torch.no_grad():
            out = unit(x)
            assert out.shape[1] == unit.out_channels
            assert torch.equal(out, torch.cat([path(x) for path in unit.paths.values()], dim=1))
    # A stride-2 module passes its pooled input through.
    assert torch.equal(out[:, -320:], nn.functional.max_pool2d(x, 3, 2, padding=1))
