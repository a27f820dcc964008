"""create_model: weights it starts from, files it reads, and what it refuses."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torchvision.models import get_model, get_model_weights

from se_lab import ModelSpec, SESpec, SpecError, create_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain():
    torch.manual_seed(3)
    return timm.create_model("cifar_resnet20", num_classes=4).eval()


@pytest.mark.parametrize("excitation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("insertion", ["standard", "pre", "post", "identity", "conv3x3"])
def test_units_that_start_as_the_identity_leave_the_pretrained_net_nearly_as_it_was(
    plain, tmp_path, excitation, insertion
):
    torch.save(plain.state_dict(), tmp_path / "w.pt")
    answers = {}
    for start in ("identity", "random"):
        se = SESpec(insertion, "se", 4, excitation=excitation, bias=True, start=start)
        model = create_model(ModelSpec("cifar_resnet20", se, pretrained=str(tmp_path / "w.pt")), 4).eval()
        with torch.no_grad():
            answers[start] = (model(IMAGES) - plain(IMAGES)).abs().max() / plain(IMAGES).abs().max()
        for site in model.se_sites:
            gate = model.get_submodule(site.path)
            x = torch.randn(2, site.channels, 5, 5)
            if start == "identity":
                torch.testing.assert_close(gate(x), x if excitation == "relu" else 0.99 * x)
    assert answers["identity"] < 0.1
    assert answers["identity"] < answers["random"] / 2


def test_an_identity_start_needs_biases_and_an_excitation_that_can_be_one():
    with pytest.raises(SpecError, match=r"it needs model.se.bias=true"):
        SESpec(start="identity")


def test_an_unknown_backbone_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'resnet50'"):
        create_model(ModelSpec("resnet5O"), 4)


def test_a_torchvision_net_takes_any_images_and_classes_and_its_weights_are_seeded():
    spec = ModelSpec("torchvision:resnet18", SESpec(stages=[5]), kwargs={"width_per_group": 64})
    one, same, plain = create_model(spec, 4, 1), create_model(spec, 4, 1), create_model(ModelSpec(spec.backbone), 4, 1)
    assert one(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert torch.equal(one.state_dict()["layer4.0.conv1.weight"], plain.state_dict()["layer4.0.conv1.weight"])
    zero = create_model(ModelSpec(spec.backbone, SESpec(insertion="none"), init="zero_init_last"), 4)
    assert not zero.get_submodule("layer1.0.bn2").weight.any()


def test_a_torchvision_net_with_se_of_its_own_is_refused_and_its_units_can_be_replaced():
    name = "torchvision:mobilenet_v3_small"
    with torch.device("meta"):
        with pytest.raises(SpecError, match=rf"{name} already has channel attention, at features.1.block.1 and 8 more"):
            create_model(ModelSpec(name), 4)
        net = create_model(ModelSpec(name, existing_se="replace"), 4)
        # Howard et al. 2019, Table 2: nine ticks under SE
        assert len(net.se_sites) == 9 and net.se_sites[0].path == "features.1.block.1"
        net(torch.empty(1, 3, 64, 64))
    with pytest.raises(SpecError, match="did you mean 'torchvision:resnet50'"):
        create_model(ModelSpec("torchvision:resnet5O"), 4)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_pretrained_weights_are_fetched_only_for_a_net_that_runs(monkeypatch, tmp_path, name):
    def offline(*args, **kwargs):
        raise OSError("no network")

    for place in ("timm.models._builder.load_pretrained", "torchvision.models._api.WeightsEnum.get_state_dict"):
        monkeypatch.setattr(place, offline)
    spec = ModelSpec(name, pretrained=True)
    with torch.device("meta"):
        create_model(spec, 4)
    with pytest.raises(
        SpecError, match=rf"model.pretrained is true, but the weights of {name} cannot be downloaded .*no net"
    ):
        create_model(spec, 4)
    with pytest.raises(SpecError, match=r"model\.pretrained is true, but timm has no weights of cifar_resnet20"):
        create_model(ModelSpec("cifar_resnet20", pretrained=True), 4)


def test_arguments_that_a_backbone_does_not_take_are_refused():
    with pytest.raises(SpecError, match=r"model\.kwargs is"):
        create_model(ModelSpec("cifar_resnet20", kwargs={"no_such_thing": 1}), 4)


def test_building_a_net_leaves_the_global_random_stream_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    create_model(ModelSpec("cifar_resnet20"), 4)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_pretrained_nets_of_torchvision_lose_their_auxiliary_classifiers(name, size, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    whole = get_model(name, init_weights=False)
    url = get_model_weights(name)["DEFAULT"].url
    file = tmp_path / "hub/checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "HASH_REGEX", re.compile("none"))
    torch.save(whole.state_dict(), file)
    spec = ModelSpec(f"torchvision:{name}", SESpec(insertion="none"), pretrained=True)
    net = create_model(spec, 1000).eval()
    images = torch.randn(1, 3, size, size)
    whole.transform_input = True  # as the pretrained weights want it
    torch.testing.assert_close(net(images), whole.eval()(images))
    assert not [key for key in net.state_dict() if key.lower().startswith("aux")]
    assert create_model(spec, 4)(torch.randn(2, 3, size, size)).shape == (2, 4)


def test_an_init_seed_takes_the_place_of_the_seed_and_rounding_changes_the_last_bits():
    def weights(seed: int, **fields: int):
        return create_model(ModelSpec("cifar_resnet20", SESpec(reduction=4), **fields), 10, seed=seed).state_dict()

    plain, own, rounded, other = weights(3), weights(0, init_seed=3), weights(3, rounding=1), weights(3, rounding=2)
    assert all(torch.equal(plain[key], own[key]) for key in plain)
    changed = [key for key in plain if not torch.equal(plain[key], rounded[key])]
    assert {"conv1.weight", "fc.weight"} <= set(changed) and not any("running" in key for key in changed)
    for key in changed:
        torch.testing.assert_close(plain[key], rounded[key], rtol=1e-6, atol=0)
    assert any(not torch.equal(rounded[key], other[key]) for key in changed)
