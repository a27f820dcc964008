"""Capture of gates: right values under the paper's names, an untouched net, and no hook left behind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lab.excitations.capture import ExcitationError, GateSite, capture_excitations, gate_sites, replace_gate
from se_lab.spec import ModelSpec, SESpec
from se_lab.units.model import create_model
from se_lab.units.squeeze_excite import EXCITATION, SQUEEZE, SqueezeExcite
from se_lab.units.table import UNITS

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def ours(**se: object) -> nn.Module:
    return create_model(ModelSpec("resnet18", SESpec(**se)), num_classes=5).eval()


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def gates_by_hand(unit: nn.Module, x: Tensor) -> Tensor:
    """The equations of the paper's section 3 on a unit's parameters: sigmoid(W2 relu(W1 z)), z the channel means."""
    weights = {name: p.flatten(1) if p.dim() > 1 else p for name, p in unit.named_parameters()}
    names = list(weights)
    z = x.mean((2, 3))
    layers = [n.rpartition(".")[0] for n in names if n.endswith("weight")]
    for i, layer in enumerate(layers):
        z = F.linear(z, weights[f"{layer}.weight"], weights.get(f"{layer}.bias"))
        z = torch.relu(z) if i + 1 < len(layers) else z
    return z


def inputs_of_units(model: nn.Module, sites: list[GateSite]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(site.path).register_forward_pre_hook(
            lambda module, inputs, name=site.name: seen.update({name: inputs[0].clone()})
        )
        for site in sites
    ]
    model(IMAGES)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("insertion", ["standard", "pre", "post", "identity", "conv3x3"])
def test_our_gates_are_captured_at_every_insertion(insertion: str) -> None:
    model = ours(insertion=insertion, bias=True)
    with torch.no_grad(), capture_excitations(model) as capture:
        model(IMAGES)
    assert list(capture.excitations) == [f"SE_{stage}_{unit}" for stage in (2, 3, 4, 5) for unit in (1, 2)]
    with torch.no_grad():
        for name, x in inputs_of_units(model, capture.sites).items():
            site = next(site for site in capture.sites if site.name == name)
            expected = torch.sigmoid(gates_by_hand(model.get_submodule(site.path), x))
            assert capture.excitations[name].shape == (3, site.channels)
            torch.testing.assert_close(capture.excitations[name], expected)


@pytest.mark.parametrize(
    ("name", "gate", "first", "last"),
    [
        ("seresnet18", torch.sigmoid, "SE_2_1", "SE_5_2"),
        ("legacy_seresnet18", torch.sigmoid, "SE_2_1", "SE_5_2"),
        ("ese_vovnet19b_slim_dw", F.hardsigmoid, "SE_2_1", "SE_5_1"),
        ("efficientnet_b0", torch.sigmoid, "SE_2_1", "SE_8_1"),
    ],
)
def test_timms_own_units_are_captured_under_the_papers_names(name: str, gate, first: str, last: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    model = timm.create_model(name).eval()
    with torch.no_grad(), capture_excitations(model) as capture:
        model(IMAGES)
        assert [capture.sites[0].name, capture.sites[-1].name] == [first, last]
        seen = inputs_of_units(model, capture.sites)
        for site in capture.sites:
            unit = model.get_submodule(site.path)
            if name == "efficientnet_b0":  # its units' inner activation is SiLU
                z = F.silu(unit.conv_reduce(seen[site.name].mean((2, 3), keepdim=True)))
                expected = gate(unit.conv_expand(z)).flatten(1)
            else:
                expected = gate(gates_by_hand(unit, seen[site.name]))
            torch.testing.assert_close(capture.excitations[site.name], expected, rtol=1e-4, atol=1e-6)


def test_a_block_number_is_kept_where_not_every_block_has_a_unit() -> None:
    with torch.device("meta"):
        sites = gate_sites(timm.create_model("nfnet_f0"))  # an SE unit in each of its 1 + 2 + 6 + 3 blocks
        assert [s.unit for s in sites] == [1, 1, 2, *range(1, 7), 1, 2, 3]
    net = nn.Sequential(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(SqueezeExcite(4))))
    assert [(s.name, s.path, s.channels) for s in gate_sites(net)] == [("SE_2_2", "0.1.0", 4)]


def test_a_unit_kept_beside_ours_has_a_name_of_its_own() -> None:
    spec = ModelSpec("seresnet18", SESpec(insertion="post"), existing_se="keep")
    model = create_model(spec, num_classes=5)
    names = {site.path: site.name for site in gate_sites(model)}
    assert len(set(names.values())) == 16
    for site in model.se_sites:
        assert names.pop(site.path) == site.name
    assert names["layer4.1.se"] == "SE_5_2_2"


@pytest.mark.parametrize("unit", UNITS)
def test_the_gate_of_any_unit_is_what_it_scales_by_on_average(unit: str) -> None:
    model = create_model(ModelSpec("test_resnet", SESpec(unit=unit)), num_classes=5).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scales: dict[str, Tensor] = {}
    sites = gate_sites(model)
    assert [(site.name, site.path) for site in sites] == [(site.name, site.path) for site in model.se_sites]
    for site in sites:
        model.get_submodule(site.path).register_forward_hook(
            lambda module, inputs, output, name=site.name: scales.update({name: output / inputs[0]})
        )
    with torch.no_grad(), capture_excitations(model, maps=True) as capture:
        model(images)
    varies = {name for name, scale in scales.items() if (scale.std((2, 3)) > 1e-9).any()}
    assert varies <= set(capture.maps) <= (set(scales) if varies else set())  # a small map's gates may all be equal
    for site in sites:
        scale = scales[site.name]
        torch.testing.assert_close(capture.excitations[site.name], scale.mean((2, 3)), rtol=1e-9, atol=1e-12)
        if site.name in capture.maps:
            torch.testing.assert_close(capture.maps[site.name], scale.mean(1), rtol=1e-9, atol=1e-12)
        assert site.low <= scale.min() and scale.max() <= site.high


@pytest.mark.parametrize("unit", ["se", "eca", "cbam", "coord", "simam"])
def test_any_gate_can_be_held_at_a_constant(unit: str) -> None:
    model = create_model(ModelSpec("test_resnet", SESpec(unit=unit)), num_classes=5).eval()
    site = gate_sites(model)[1]
    held, x = torch.rand(site.channels), torch.randn(2, site.channels, 6, 5)
    with torch.no_grad(), replace_gate(model, site, held):
        for _ in range(2):
            torch.testing.assert_close(model.get_submodule(site.path)(x), x * held[:, None, None])


@pytest.mark.parametrize("squeeze", ["max", "avg"])
def test_squeezed_descriptors_are_captured_on_request(squeeze: str) -> None:
    model = ours(squeeze="max") if squeeze == "max" else timm.create_model("seresnet18").eval()
    with torch.no_grad(), capture_excitations(model, squeezed=True) as capture:
        model(IMAGES)
    with torch.no_grad():
        for name, x in inputs_of_units(model, capture.sites).items():
            torch.testing.assert_close(
                capture.squeezed[name], getattr(x, {"max": "amax", "avg": "mean"}[squeeze])((2, 3))
            )
    with torch.no_grad(), capture_excitations(model) as capture:
        model(IMAGES)
    assert capture.squeezed == {}


def test_without_a_squeeze_the_gate_is_averaged_over_the_plane() -> None:
    model = ours(squeeze="none")
    with torch.no_grad(), capture_excitations(model) as capture:
        planes: list[Tensor] = []
        unit = model.get_submodule(capture.sites[0].path)
        handle = unit.gate.register_forward_hook(lambda m, i, out: planes.append(out))
        model(IMAGES)
        handle.remove()
    assert planes[0].shape[2:] != (1, 1)
    assert torch.equal(capture.excitations["SE_2_1"], planes[0].mean((2, 3)))


@pytest.mark.parametrize("how", ["plain", "inference_mode", "autocast", "channels_last", "training"])
def test_outputs_do_not_change_by_a_bit(how: str) -> None:
    model = ours()
    images = IMAGES
    if how == "channels_last":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    if how == "training":
        model.train()
    twin = copy.deepcopy(model)
    with torch.inference_mode(how == "inference_mode"), torch.autocast("cpu", torch.bfloat16, how == "autocast"):
        expected = twin(images)
        with capture_excitations(model, squeezed=True) as capture:
            assert torch.equal(model(images), expected)
    assert capture.excitations["SE_5_2"].shape == (3, 512)
    assert all(not gate.requires_grad for gate in capture.excitations.values())


def test_hooks_are_gone_afterwards_whatever_happened() -> None:
    model = ours(insertion="post")
    before = hooks_of(model)
    with capture_excitations(model, squeezed=True):
        assert hooks_of(model) > before
    assert hooks_of(model) == before
    with pytest.raises(ZeroDivisionError), capture_excitations(model, squeezed=True):
        raise ZeroDivisionError
    assert hooks_of(model) == before


def test_hooks_are_gone_when_a_later_one_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours()
    before = hooks_of(model)
    last = model.get_submodule("layer4.1.se.gate")
    monkeypatch.setattr(last, "register_forward_hook", lambda hook: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError), capture_excitations(model):
        pass
    assert hooks_of(model) == before


def test_a_gate_can_be_replaced_by_a_constant() -> None:
    model = ours()
    site = gate_sites(model)[-1]
    forced = torch.linspace(0, 1, site.channels)
    with torch.no_grad():
        x = inputs_of_units(model, [site])[site.name]
        outputs: list[Tensor] = []
        handle = model.get_submodule(site.path).register_forward_hook(lambda m, i, out: outputs.append(out.clone()))
        with replace_gate(model, site, forced):
            model(IMAGES)
        model(IMAGES)
        handle.remove()
    torch.testing.assert_close(outputs[0], x * forced[None, :, None, None])
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("squeeze", sorted(SQUEEZE))
@pytest.mark.parametrize("excitation", sorted(EXCITATION))
def test_every_operator_is_captured(squeeze: str, excitation: str) -> None:
    unit = SqueezeExcite(6, SESpec(squeeze=squeeze, excitation=excitation, reduction=2))
    net = nn.Sequential(nn.Sequential(unit))
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad(), capture_excitations(net) as capture:
        out = net(x)
    (gate,) = capture.excitations.values()
    if squeeze == "none":
        assert gate.shape == (2, 6)
    else:
        torch.testing.assert_close(out, x * gate[:, :, None, None])


def test_a_net_in_ddp_is_captured_under_the_same_names(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(ours())
        with torch.no_grad(), capture_excitations(wrapped) as capture:
            wrapped(IMAGES)
        with torch.no_grad(), capture_excitations(ours()) as expected:
            ours()
    finally:
        torch.distributed.destroy_process_group()
    assert capture.sites == expected.sites
    assert list(capture.excitations) == [site.name for site in expected.sites]


def test_a_net_without_units_says_what_to_do() -> None:
    with (
        pytest.raises(ExcitationError, match=r"resnet18 has no unit with a gate.*model.se.insertion=standard"),
        capture_excitations(timm.create_model("resnet18")),
    ):
        pass


def test_a_compiled_net_says_to_pass_the_uncompiled_one() -> None:
    model = ours()
    with pytest.raises(ExcitationError, match="_orig_mod"), capture_excitations(torch.compile(model)):
        pass
    in_place = ours()
    in_place.layer1.compile()
    with pytest.raises(ExcitationError, match="compiled"), capture_excitations(in_place):
        pass
    with pytest.raises(ExcitationError, match="DistributedDataParallel"), capture_excitations(nn.DataParallel(model)):
        pass
