"""create_model: weights it starts from, files it reads, and what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from se_lab import ModelSpec, SESpec, SpecError, create_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain():
    torch.manual_seed(3)
    return timm.create_model("cifar_resnet20", num_classes=4).eval()


def save(plain, path, form):
    state = plain.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "form"), [("w.safetensors", "safetensors"), ("w.pt", "state dict"), ("w.ckpt", "checkpoint")]
)
def test_weights_of_the_plain_net_load_before_insertion(plain, tmp_path, name, form, monkeypatch):
    save(plain, tmp_path / name, form)
    if form == "safetensors":  # newer versions of torch read them too, the oldest that SE-Lab takes does not
        monkeypatch.setattr(torch, "load", None)
    spec = ModelSpec("cifar_resnet20", SESpec(insertion="pre"), pretrained=str(tmp_path / name))
    state = create_model(spec, 4).state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("excitation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("insertion", ["standard", "pre", "post", "identity", "conv3x3"])
def test_units_that_start_as_the_identity_leave_the_pretrained_net_nearly_as_it_was(
    plain, tmp_path, excitation, insertion
):
    save(plain, tmp_path / "w.pt", "state dict")
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


def test_a_file_that_does_not_fit_says_which_keys(plain, tmp_path):
    state = plain.state_dict()
    state["fc.extra"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(7, 64)
    del state["bn1.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        SpecError, match=r"missing \['bn1.weight'\], unexpected \['fc.extra'\], of another shape \['fc.w"
    ):
        create_model(ModelSpec("cifar_resnet20", pretrained=str(tmp_path / "w.pt")), 4)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_text("not weights")
    with pytest.raises(SpecError, match="holds no weights that can be read"):
        create_model(ModelSpec("cifar_resnet20", pretrained=str(tmp_path / name)), 4)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(SpecError, match="holds no state dict but a list"):
        create_model(ModelSpec("cifar_resnet20", pretrained=str(tmp_path / "w.pt")), 4)


def test_a_missing_file_is_refused():
    with pytest.raises(SpecError, match="there is no such file"):
        create_model(ModelSpec("cifar_resnet20", pretrained="nowhere.safetensors"), 4)


def test_an_unknown_backbone_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'resnet50'"):
        create_model(ModelSpec("resnet5O"), 4)


def test_arguments_that_a_backbone_does_not_take_are_refused():
    with pytest.raises(SpecError, match=r"model\.kwargs is"):
        create_model(ModelSpec("cifar_resnet20", kwargs={"no_such_thing": 1}), 4)


def test_building_a_net_leaves_the_global_random_stream_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    create_model(ModelSpec("cifar_resnet20"), 4)
    assert torch.equal(torch.rand(3), expected)
