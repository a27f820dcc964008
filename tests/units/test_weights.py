"""model.pretrained as a path: files of weights as public training scripts write them."""

from __future__ import annotations

import argparse
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from se_lab import ModelSpec, SESpec, SpecError, create_model
from se_lab.units.weights import load_weights

BACKBONE = "cifar_resnet20"


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(3)
    return timm.create_model(BACKBONE, num_classes=4).state_dict()


@pytest.fixture(scope="module")
def older():
    """Other weights of the same net: those that a moving average follows."""
    torch.manual_seed(4)
    return timm.create_model(BACKBONE, num_classes=4).state_dict()


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


FORMS = {
    "a state dict": lambda state, older: state,
    "DataParallel": lambda state, older: under("module.", state),
    "torch.compile": lambda state, older: under("_orig_mod.", state),
    "torch.compile in DataParallel": lambda state, older: {"model": under("module._orig_mod.", state)},
    "Lightning": lambda state, older: {"epoch": 3, "state_dict": under("net.", state) | {"loss.weight": torch.ones(4)}},
    "SE-Lab with train.ema": lambda state, older: {"state_dict": under("model.", older) | under("ema.module.", state)},
    "timm's train.py": lambda state, older: {
        "arch": BACKBONE,
        "state_dict": older,
        "state_dict_ema": state,
        "args": argparse.Namespace(lr=0.1),
    },
    "torchvision's references": lambda state, older: {
        "model": older,
        "model_ema": {"n_averaged": torch.tensor(3)} | under("module.", state),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_load_from_what_training_scripts_write(plain, older, tmp_path, form):
    torch.save(FORMS[form](plain, older), tmp_path / "w.pth")
    state = create_model(ModelSpec(BACKBONE, SESpec("pre"), pretrained=str(tmp_path / "w.pth")), 4).state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items())


def test_safetensors_load(plain, tmp_path, monkeypatch):
    save_file(plain, tmp_path / "w.safetensors")
    monkeypatch.setattr(torch, "load", None)  # newer versions of torch read them too
    state = create_model(ModelSpec(BACKBONE, pretrained=str(tmp_path / "w.safetensors")), 4).state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items())


@pytest.mark.parametrize("headless", [False, True])
def test_the_classifier_of_another_size_is_drawn_anew_and_that_is_said(plain, tmp_path, capsys, headless):
    kept = {key: value for key, value in plain.items() if not (headless and key.startswith("fc."))}
    torch.save(kept, tmp_path / "w.pth")
    net = create_model(ModelSpec(BACKBONE, pretrained=str(tmp_path / "w.pth")), 4 if headless else 7)
    assert "w.pth has no classifier of this size: fc has random weights" in capsys.readouterr().err
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items() if not key.startswith("fc."))
    assert net.fc.bias.shape == (4 if headless else 7,)


def test_a_first_convolution_for_colour_images_sums_its_weights_for_grey_ones(plain, tmp_path):
    torch.save(plain, tmp_path / "w.pth")
    net = create_model(ModelSpec(BACKBONE, pretrained=str(tmp_path / "w.pth")), 4, in_chans=1)
    torch.testing.assert_close(net.conv1.weight, plain["conv1.weight"].sum(1, keepdim=True))


def refusal(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SpecError) as error:
        create_model(ModelSpec(BACKBONE, pretrained=str(tmp_path / "w.pth")), 4)
    assert str(error.value).startswith("model.pretrained is ")
    return str(error.value)


def test_a_file_of_another_net_says_which_keys(plain, tmp_path):
    state = plain | {"extra": torch.zeros(1), "conv1.weight": torch.zeros(7, 3, 3, 3)}
    del state["bn1.weight"]
    said = refusal(state, tmp_path)
    assert "1 missing: bn1.weight; 1 unexpected: extra; 1 of another shape: conv1.weight (7, 3, 3, 3)" in said


def test_two_nets_of_the_kind_are_refused_with_their_names(plain, tmp_path):
    assert "contains 2 nets of this kind, under student., teacher." in refusal(
        under("student.", plain) | under("teacher.", plain), tmp_path
    )


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    assert "contains a list, not a state dict" in refusal([1, 2], tmp_path)
    assert "contains epoch and no weights" in refusal({"epoch": 1}, tmp_path)


def test_what_cannot_be_read_gets_pytorchs_reason_whole(plain, tmp_path):
    class Odd:
        pass

    Odd.__module__, Odd.__qualname__ = "tests.units.test_weights", "Marker"
    globals()["Marker"] = Odd
    assert re.search(r"Unsupported global: .*Marker.*\n.*weights_only", refusal({"x": Odd()}, tmp_path), re.DOTALL)
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(SpecError, match=r"cannot be read as weights: .*Error: "):
            load_weights(nn.Conv2d(1, 1, 1), str(tmp_path / name))


def test_a_missing_file_is_refused():
    with pytest.raises(SpecError, match="which does not exist"):
        load_weights(nn.Conv2d(1, 1, 1), "nowhere.safetensors")
