"""insert_se(at=…): units after modules that are named by their paths, in any net."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from se_lab import SESpec, SpecError, capture_excitations, insert_se, profile


class Body(nn.Module):
    """A net that no table knows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = Mix()
        self.act = nn.ReLU()
        self.head = nn.Linear(16, 5)
        self.aside = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = self.act(self.mix(self.act(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Mix(nn.Module):
    """A block whose output is wider than its last layer's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.cat([x, self.bn(self.conv(x))], 1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Body().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    return net


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def se(unit, x):
    """Hu et al. 2018, equations 2 to 4."""
    gate = torch.sigmoid(F.relu(x.mean((2, 3)) @ unit.reduce.weight.T) @ unit.expand.weight.T)
    return x * gate[:, :, None, None]


@torch.no_grad()
def test_the_outputs_of_the_named_modules_are_scaled(net):
    keys = set(net.state_dict())
    sites = insert_se(net, SESpec(reduction=4), at={"early": "stem", "SE_3_2": "mix.conv", "late": "mix.bn"})
    assert [(site.name, site.stage, site.unit, site.channels) for site in sites] == [
        ("early", 1, 1, 8),
        ("SE_3_2", 3, 2, 8),
        ("late", 2, 2, 8),
    ]
    early, middle, late = (net.get_submodule(site.path) for site in sites)
    x = F.relu(se(early, net.stem[:3](IMAGES)))
    y = net.mix.bn
    inner = se(middle, F.conv2d(x, net.mix.conv.weight, net.mix.conv.bias, padding=1))
    inner = se(late, F.batch_norm(inner, y.running_mean, y.running_var, y.weight, y.bias))
    expected = net.head(F.relu(torch.cat([x, inner], 1)).mean((2, 3)))
    torch.testing.assert_close(net(IMAGES), expected)
    assert keys < set(net.state_dict())


def test_capture_profile_copies_scripts_and_traces_know_the_units(net):
    sites = insert_se(net, SESpec(reduction=4), at=["stem", "mix", "mix.bn"], example=IMAGES)
    assert [site.channels for site in sites] == [8, 16, 8]
    with torch.no_grad():
        expected = net(IMAGES)
        with capture_excitations(net) as capture:
            net(IMAGES)
        assert {name: gate.shape[1] for name, gate in capture.excitations.items()} == {
            "stem": 8,
            "mix": 16,
            "mix.bn": 8,
        }
        counted = profile(net, (3, 8, 8))
        assert counted.params_se == 2 * (8 * 2 + 16 * 4 + 8 * 2)  # 2 C C / r each
        for other in (
            copy.deepcopy(net),
            pickle.loads(pickle.dumps(net)),
            torch.jit.script(net),
            torch.fx.symbolic_trace(net),
            torch.export.export(net, (IMAGES,)).module(),
        ):
            torch.testing.assert_close(other(IMAGES), expected)


@pytest.mark.parametrize(
    ("at", "example", "message"),
    [
        (["mix"], None, "has mix, a Mix with an unknown number of output channels; give an input"),
        (["act"], IMAGES, "has act, which is called 2 times in a forward pass"),
        (["aside"], IMAGES, "has aside, which is called 0 times"),
        (["head"], IMAGES, r"has head, whose output is \(2, 5\); it must be \(N, C, H, W\)"),
        (["mix.con"], None, r"has 'mix.con', which is not a module of .*Body; did you mean 'mix.conv'"),
        (["stem", "stem"], None, "have at least one module, and no module twice"),
        ([], None, "have at least one module"),
        ("stem", None, r"must be a list of module paths, or a mapping of names to paths: \['stem'\]"),
    ],
)
def test_a_place_that_cannot_be_is_refused(net, at, example, message):
    with pytest.raises(SpecError, match=message):
        insert_se(net, SESpec(), at=at, example=example)
    assert not [name for name, _ in net.named_modules() if "se" in name.split(".")]


def test_a_spec_that_names_other_places_is_refused_and_none_inserts_nothing(net):
    with pytest.raises(SpecError, match="stages is \\(2,\\); with at"):
        insert_se(net, SESpec(stages=[2]), at=["stem"])
    with pytest.raises(SpecError, match="insertion is 'pre'; with at"):
        insert_se(net, SESpec("pre"), at=["stem"])
    assert insert_se(net, SESpec(insertion="none"), at=["stem"]) == []


def test_an_unknown_net_is_refused_with_its_class_and_the_way_out(net):
    with pytest.raises(SpecError, match=r"tests\.units\.test_paths\.Body has no known blocks; .*at="):
        insert_se(net, SESpec())
    with pytest.raises(SpecError, match="the net is a DataParallel"):
        insert_se(nn.DataParallel(net), SESpec(), at=["module.stem"])


def test_attention_of_the_nets_own_is_kept_with_a_unit_after_it_or_replaced():
    plain = timm.create_model("seresnet18", num_classes=3)
    own = sum(weight.numel() for weight in plain.parameters())
    kept, swapped = copy.deepcopy(plain), copy.deepcopy(plain)
    insert_se(kept, SESpec(unit="eca"), "keep", at=["layer1.0.se"], example=torch.zeros(1, 3, 32, 32))
    assert sum(weight.numel() for weight in kept.parameters()) == own + 3  # ECA's kernel at 64 channels is 3
    insert_se(swapped, SESpec(unit="eca"), "replace", at=["layer1.0.se"])
    theirs = sum(weight.numel() for key, weight in plain.named_parameters() if ".se." in key)
    assert sum(weight.numel() for weight in swapped.parameters()) == own - theirs + 3
    with pytest.raises(SpecError, match=r"at has layer1\.0\.se\.fc1, a part of the existing attention layer1\.0\.se,"):
        insert_se(plain, SESpec(unit="eca"), "replace", at=["layer1.0.se.fc1"])
