"""Nets with channel attention of their own: refused, kept beside the units, or replaced by them."""

from __future__ import annotations

import functools
import pickle

import pytest
import timm
import torch

from se_lab import SESpec, SpecError, SqueezeExcite, find_places, insert_se


@functools.cache
def meta(name):
    with torch.device("meta"):
        return timm.create_model(name).eval()


def copied(name):
    """Return a net on the meta device to change; pickle is three times as fast as copy.deepcopy."""
    return pickle.loads(pickle.dumps(meta(name)))


# Nets with SE of their own: units that timm's nets have, from their papers' tables
OWN = {
    "seresnet18": 8,
    "legacy_seresnet18": 8,
    "efficientnet_b0": 16,  # Tan and Le 2019: one in each MBConv
    "mobilenetv3_large_100": 8,  # Howard et al. 2019, Table 1: eight ticks under SE
    "regnety_002": 13,
    "ghostnet_050": 7,  # Han et al. 2020, Table 1: SE in 7 of 16 bottlenecks
    "ecaresnet26t": 8,
    "eca_nfnet_l0": 12,
    "ese_vovnet19b_slim": 4,
    "cs3se_edgenet_x": 24,
    "rexnet_100": 13,
    "repvit_m0_9": None,
    "rdnet_tiny": None,
    "hgnet_tiny": 5,
    "tresnet_m": 18,
    "cspnext_tiny": 4,
    "fastvit_t8": 1,
    "lcnetv2_base": None,
}


def own_units(net):
    names = ("SEModule", "SqueezeExcite", "EffectiveSEModule", "EseModule", "EcaModule")
    return [p for p, m in net.named_modules() if type(m).__name__ in names and not isinstance(m, SqueezeExcite)]


@pytest.mark.parametrize("name", OWN)
def test_a_net_with_se_of_its_own_is_refused(name):
    with pytest.raises(SpecError, match=r"set model.existing_se=keep or model.existing_se=replace"):
        insert_se(copied(name), SESpec())


@pytest.mark.parametrize("name", OWN)
def test_keep_leaves_theirs_and_adds_ours_at_the_familys_places(name):
    net = copied(name)
    theirs = own_units(net)
    assert OWN[name] in (len(theirs), None)
    sites = insert_se(net, SESpec(), "keep")
    assert own_units(net) == theirs
    assert len(sites) == len(find_places(meta(name)))
    assert set(meta(name).state_dict()) <= set(net.state_dict())
    net(torch.empty(1, *net.default_cfg["input_size"], device="meta"))


@pytest.mark.parametrize("name", OWN)
def test_replace_puts_ours_where_theirs_were_and_none_takes_them_out(name):
    net, bare = copied(name), copied(name)
    theirs = own_units(net)
    sites = insert_se(net, SESpec(), "replace")
    assert not own_units(net)
    assert sorted(site.path for site in sites) == sorted(theirs)
    assert len({site.name for site in sites}) == len(sites)
    assert insert_se(bare, SESpec(insertion="none"), "replace") == []
    assert not own_units(bare)
    kept = {key for key in meta(name).state_dict() if not key.startswith(tuple(f"{path}." for path in theirs))}
    assert set(bare.state_dict()) == kept
    for patched in (net, bare):
        patched(torch.empty(1, *patched.default_cfg["input_size"], device="meta"))


def test_replacing_nothing_by_nothing_gives_the_plain_net():
    torch.manual_seed(0)
    bare = timm.create_model("seresnet18")
    insert_se(bare, SESpec(insertion="none"), "replace")
    plain = timm.create_model("resnet18")
    plain.load_state_dict(bare.state_dict())
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(bare.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("insertion", ["post", "conv3x3"])
def test_replace_with_another_insertion_moves_the_units_of_the_same_blocks(insertion):
    net = copied("mobilenetv3_large_100")
    blocks = sorted(path.rpartition(".")[0] for path in own_units(net))
    sites = insert_se(net, SESpec(insertion=insertion), "replace")
    assert sorted(site.path.rpartition(".")[0] for site in sites) == blocks
    assert not own_units(net)


def test_replace_in_some_stages_takes_the_others_out():
    net = copied("efficientnet_b0")
    sites = insert_se(net, SESpec(stages=[3]), "replace")
    assert [site.name for site in sites] == ["SE_3_1", "SE_3_2"]
    assert not own_units(net)
