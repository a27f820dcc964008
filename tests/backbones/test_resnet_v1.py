"""ResNets with the stride in the first 1×1, timm's weights in them, and SENet-154 before its SE units."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import nn

import se_lab.backbones  # noqa: F401

torch.set_num_threads(1)
NAMES = ["resnet50", "resnet101", "resnet152"]


@pytest.mark.parametrize("name", NAMES)
def test_timms_state_dict_loads_strictly(name: str) -> None:
    timms, ours = (timm.create_model(n, device="meta") for n in (name, f"{name}_v1"))
    assert not any(ours.load_state_dict(timms.state_dict(), strict=True, assign=True))
    assert list(ours.state_dict()) == list(timms.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_stride_is_in_the_first_convolution(name: str) -> None:
    net = timm.create_model(f"{name}_v1", device="meta")
    strided = [key for key, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    expected = [f"layer{k}.0.{conv}" for k in (2, 3, 4) for conv in ("conv1", "downsample.0")]
    assert strided == ["conv1", *expected]


def test_equals_the_legacy_net_that_strides_there() -> None:
    # timm's port of the authors' SE-ResNet-50 strides in the first 1×1; without its gates it is ResNet-50.
    torch.manual_seed(0)
    legacy = timm.create_model("legacy_seresnet50", num_classes=10).double().eval()
    legacy.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
    for module in legacy.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if hasattr(module, "se_module"):
            module.se_module = nn.Identity()
    ours = timm.create_model("resnet50_v1", num_classes=10).double().eval()
    weights = {k.replace("layer0.", "").replace("last_linear.", "fc."): v for k, v in legacy.state_dict().items()}
    ours.load_state_dict(weights, strict=True)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), legacy(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_tag_of_timms_weights_is_one_of_ours_and_points_to_them(name: str) -> None:
    tags = [n.split(".", 1)[1] for n in timm.list_models(f"{name}.*", pretrained=True)]
    assert tags
    for tag in tags:
        timms, ours = get_pretrained_cfg(f"{name}.{tag}"), get_pretrained_cfg(f"{name}_v1.{tag}")
        assert ours is not None
        assert (ours.url, ours.hf_hub_id, ours.mean) == (timms.url, timms.hf_hub_id, timms.mean)
        assert is_model_pretrained(f"{name}_v1.{tag}")
    assert get_pretrained_cfg(f"{name}_v1").tag == get_pretrained_cfg(name).tag


def test_pretrained_weights_load_as_timm_loads_them(tmp_path: Path) -> None:
    few = {"layers": (1, 1, 1, 1), "num_classes": 1000}
    timms = timm.create_model("resnet50", **few)
    torch.save(timms.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    ours = timm.create_model(
        "resnet50_v1.a1_in1k", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, **{**few, "num_classes": 5}
    )
    assert torch.equal(ours.layer4[0].conv2.weight, timms.layer4[0].conv2.weight)
    torch.testing.assert_close(ours.conv1.weight, timms.conv1.weight.sum(1, keepdim=True))
    assert ours.fc.out_features == 5


def test_anti_aliasing_is_refused() -> None:
    with pytest.raises(ValueError, match="aa_layer"):
        timm.create_model("resnet50_v1", device="meta", aa_layer=nn.AvgPool2d)


def test_senet154_base_with_se_units_is_senet154() -> None:
    base, senet = (timm.create_model(n, device="meta") for n in ("senet154_base", "senet154"))
    plain = {k: v.shape for k, v in senet.state_dict().items() if ".se." not in k}
    assert {k: v.shape for k, v in base.state_dict().items()} == plain
    # 2/r·ΣN_s·C_s² weights and ΣN_s·(C_s + C_s/r) biases at r = 16; the SE paper's 115,088,984 in all.
    stages = ((3, 256), (8, 512), (36, 1024), (3, 2048))
    se = sum(n * (2 * c * c // 16 + c + c // 16) for n, c in stages)
    assert sum(p.numel() for p in base.parameters()) + se == 115_088_984
    assert base.drop_rate == 0.2
