"""Families: the paper's placements, and every family's points checked with numbers on small nets."""

from __future__ import annotations

import functools
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_map

from se_lab import SESpec, SpecError, find_places, insert_se
from se_lab.backbones import PREFIX, build_torchvision
from se_lab.units.families import LAYOUTS

# published.yaml, `counted`: trainable parameters plain, with SE (r = 16), with SE and biases
COUNTED = {
    "resnet50_v1": (25557032, 28071976, 28088024),
    "resnet101_v1": (44549160, 49292328, 49326872),
    "resnet152_v1": (60192808, 66770984, 66821848),
    "resnext50_32x4d": (25028904, 27543848, 27559896),
    "resnext101_32x4d": (44177704, 48920872, 48955416),
    "vgg16_bn": (138365992, 138592296, 138596784),
    "bn_inception": (11285224, 11924584, 11931622),
    "inception_resnet_v2": (55843464, 64338824, 64387444),
    "mobilenetv1_100": (4231976, 4711720, 4718044),
    "shufflenet_v1_g3": (1865728, 2476144, 2484533),
}

ALL = ("standard", "pre", "post", "identity", "conv3x3")

# A small net of each family, and the insertions that it has.
SMALL = {
    "resnet18": ALL,
    "resnet26d": ALL,
    "resnetblur50": ALL,
    "seresnext26d_32x4d": ALL,
    "legacy_seresnet18": ALL,
    "resnetv2_18": ALL,
    "resnetv2_50": ALL,
    "res2net50_48w_2s": ALL,
    "regnetx_002": ALL,
    "regnety_002": ALL,
    "regnetv_040": ALL,
    "resnest14d": ALL,
    "skresnet18": ALL,
    "dla46_c": ALL,
    "vgg11_bn": ("standard",),
    "vgg11": ("standard",),
    "densenet121": ("standard", "pre"),
    "dpn68": ("standard", "pre", "conv3x3"),
    "dpn68b": ("standard", "pre"),
    "inception_v3": ("standard",),
    "inception_v4": ("standard",),
    "inception_resnet_v2": ("standard", "post"),
    "legacy_xception": ("standard", "pre", "post", "identity"),
    "xception41": ("standard", "pre", "post", "identity"),
    "xception41p": ("standard", "pre", "post", "identity"),
    "mobilenetv1_100": ("standard", "pre", "post", "conv3x3"),
    "mobilenetv2_050": ALL,
    "mobilenetv3_small_050": ALL,
    "mobilenetv4_conv_small_050": ALL,
    "efficientnet_b0": ALL,
    "tf_efficientnetv2_b0": ALL,
    "tf_efficientnetv2_s": ALL,
    "mnasnet_small": ALL,
    "hardcorenas_a": ALL,
    "ghostnet_050": ALL,
    "ghostnetv2_100": ALL,
    "ghostnetv3_050": ALL,
    "repghostnet_050": ALL,
    "convnext_atto": ALL,
    "convnextv2_atto": ALL,
    "hrnet_w18_small": ALL,
    "ese_vovnet19b_slim_dw": ("standard", "post"),
    "ese_vovnet39b": ("standard", "post", "identity"),
    "cspresnet50": ("standard", "pre", "post", "conv3x3"),
    "cspdarknet53": ("standard", "pre", "post", "identity"),
    "cspnext_tiny": ALL,
    "nf_resnet26": ALL,
    "eca_nfnet_l0": ALL,
    "rexnet_100": ("standard", "pre", "post", "conv3x3"),
    "repvgg_a0": ("standard", "post"),
    "mobileone_s0": ("standard", "post"),
    "gernet_s": ALL,
    "resnet26t": ALL,
    "selecsls42": ("standard",),
    "tresnet_m": ALL,
    "starnet_s1": ALL,
    "fasternet_t0": ALL,
    "inception_next_atto": ALL,
    "lcnetv2_base": ("standard", "post", "identity", "conv3x3"),
    "hgnetv2_b0": ("standard", "post", "identity"),
    "hgnet_tiny": ("standard", "post", "identity"),
    "repvit_m0_9": ("standard", "pre", "post", "conv3x3"),
    "poolformer_s12": ALL,
    "convformer_s18": ALL,
    "fastvit_t8": ("standard", "pre", "post", "conv3x3"),
    "mambaout_femto": ("standard", "pre", "post"),
    "rdnet_tiny": ("standard", "pre"),
    "legacy_seresnext26_32x4d": ALL,
    "dla34": ALL,
    "dla60_res2next": ALL,
    "skresnet50": ALL,
    "efficientnet_cc_b0_4e": ALL,
    "test_byobnet": ALL,
    "cs3edgenet_x": ALL,
    "pnasnet5large": ("standard",),
    "convmixer_1024_20_ks9_p14": ("standard", "pre", "post", "identity"),
    "focalnet_tiny_srf": ("standard", "pre", "post", "conv3x3"),
    "nasnetalarge": ("standard",),
    "lowformer_e1": ALL,
    "lowformer_b0": ALL,
    "torchvision:resnet18": ALL,
    "torchvision:resnext50_32x4d": ALL,
    "torchvision:regnet_x_400mf": ALL,
    "torchvision:regnet_y_400mf": ALL,
    "torchvision:mobilenet_v2": ALL,
    "torchvision:mobilenet_v3_small": ALL,
    "torchvision:efficientnet_b0": ALL,
    "torchvision:efficientnet_v2_s": ALL,
    "torchvision:convnext_tiny": ALL,
    "torchvision:mnasnet0_5": ALL,
    "torchvision:shufflenet_v2_x0_5": ALL,
    "torchvision:densenet121": ("standard", "pre"),
    "torchvision:googlenet": ("standard",),
    "torchvision:inception_v3": ("standard",),
    "torchvision:vgg11_bn": ("standard",),
    "shufflenet_v1_g3": ALL,
    "bn_inception": ("standard",),
    "cifar_preact_resnet164": ALL,
    "cifar_wrn16_8": ALL,
    "cifar_shake_shake26_2x96d": ("standard", "pre", "post", "identity"),
    "cifar_shake_shake29_2x4x64d": ("standard", "pre", "post", "identity"),
}

SHARED_ACTIVATION = (
    "legacy_seresnet18",
    "legacy_seresnext26_32x4d",
    "res2net50_48w_2s",
    "dla34",
    "dla46_c",
    "dla60_res2next",
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
)
"""Nets whose blocks use one activation module throughout, so that a test cannot take the last one out."""


class Gate(nn.Module):
    """A gate that rises from `first` to `last` over the channels, whatever the unit says."""

    def __init__(self, first: float, last: float) -> None:
        super().__init__()
        self.ends = first, last

    def forward(self, gate: torch.Tensor) -> torch.Tensor:
        return torch.linspace(*self.ends, gate.shape[1], dtype=gate.dtype).expand_as(gate)


@functools.cache
def shared(name):
    """Return a net on the meta device that no test changes."""
    with torch.device("meta"):
        net = build_torchvision(name, pretrained=False) if name.startswith(PREFIX) else timm.create_model(name)
    return net.eval()


def on_meta(name):
    return pickle.loads(pickle.dumps(shared(name)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", COUNTED)
def test_backbones_of_the_paper_have_its_parameters_with_se_where_the_paper_puts_it(name, bias):
    net = on_meta(name)
    assert sum(p.numel() for p in net.parameters()) == COUNTED[name][0]
    insert_se(net, SESpec(bias=bias))
    assert sum(p.numel() for p in net.parameters()) == COUNTED[name][1 + bias]


def test_senet_154_has_the_parameters_of_timms():
    net = on_meta("senet154_base")
    insert_se(net, SESpec(bias=True))
    # issue 3: 115,088,984; timm's own senet154 says the same
    assert (
        sum(p.numel() for p in net.parameters())
        == 115088984
        == sum(p.numel() for p in on_meta("senet154").parameters())
    )


def test_shufflenet_with_units_of_stride_one_has_the_printed_parameters():
    net = on_meta("shufflenet_v1_g3")
    sites = insert_se(net, SESpec(units="stride_1"))
    assert len(sites) == 13
    assert "SE_2_1" not in [site.name for site in sites]
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 2.4  # Table 3


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("vgg16_bn", [2, 2, 3, 3, 3]),  # Simonyan and Zisserman 2014, Table 1, column D
        ("bn_inception", [3, 5, 2]),  # 3a-3c, 4a-4e, 5a-5b
        ("inception_resnet_v2", [10, 20, 10]),  # Szegedy et al. 2016, Figure 15
        ("mobilenetv1_100", [1, 2, 2, 6, 2]),  # Howard et al. 2017, Table 1, by resolution
        ("shufflenet_v1_g3", [4, 8, 4]),  # Zhang et al. 2018, Table 1
        ("resnet50_v1", [3, 4, 6, 3]),
        ("dla34", [2, 4, 4, 2]),  # Yu et al. 2018, Table 1: levels 3 to 6 of [1, 1, 1, 2, 2, 1], two blocks a tree
        ("dpn68", [3, 4, 12, 3]),  # Chen et al. 2017, Table 1
        ("rexnet_100", [1, 2, 2, 3 + 3, 5]),  # Han et al. 2021: units by stride
        ("legacy_xception", [1, 1, 1 + 8, 1]),  # Chollet 2017, Figure 5: entry, eight in the middle, exit
        ("selecsls42", [2, 2, 2]),
        ("inception_v4", [4, 8, 4]),  # 4 A, reduction and 7 B, reduction and 3 C
        ("nasnetalarge", [6, 7, 7]),  # Zoph et al. 2018, Figure 2: six normal cells, and reductions between them
        ("torchvision:mobilenet_v2", [1, 2, 3, 7, 4]),  # Sandler et al. 2018, Table 2, by resolution
        ("torchvision:efficientnet_b0", [1, 2, 2, 3, 3, 4, 1]),  # Tan and Le 2019, Table 1
        ("torchvision:googlenet", [2, 5, 2]),  # Szegedy et al. 2015, Table 1: 3a-3b, 4a-4e, 5a-5b
        ("torchvision:shufflenet_v2_x0_5", [4, 8, 4]),  # Ma et al. 2018, Table 5
        ("torchvision:densenet121", [6, 12, 24, 16]),  # Huang et al. 2017, Table 1
        ("hrnet_w18_small", [1, 4, 6, 8, 4]),  # one bottleneck; modules of 2 units a branch; one unit a head branch
    ],
)
def test_stages_hold_the_units_that_the_papers_say(name, units):
    places = find_places(shared(name))
    stages = [place.stage for place in places]
    assert [stages.count(stage) for stage in sorted(set(stages))] == units
    assert sorted(set(stages))[0] == 2
    assert [place.name for place in places] == [f"SE_{place.stage}_{place.unit}" for place in places]
    assert len({place.name for place in places}) == len(places)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("dpn48b", [3, 4, 6, 3]),  # k_sec in timm
        ("lowformer_e2", [2, 3, 1 + 4, 1 + 4]),  # depth_list in timm; the last two stages have a block that strides
    ],
)
def test_siblings_of_the_small_nets_have_places_too(name, units):
    places = find_places(shared(name))
    stages = [place.stage for place in places]
    assert [stages.count(stage) for stage in sorted(set(stages))] == units
    assert len(insert_se(on_meta(name), SESpec())) == len(places)


def test_vgg_takes_se_after_each_non_linearity():
    net = on_meta("vgg16_bn")
    hosts = [net.get_submodule(place.spots["standard"].host) for place in find_places(net)]
    assert len(hosts) == 13
    assert all(isinstance(host, nn.ReLU) for host in hosts)


def test_every_row_of_the_tables_is_tried():
    tried = set()
    for name in SMALL:
        net = shared(name)
        for place in find_places(net):
            tried |= {f"{c.__module__}.{c.__qualname__}" for c in type(net.get_submodule(place.path)).__mro__}
    assert set(LAYOUTS) <= tried


@pytest.mark.parametrize("name", SMALL)
def test_each_insertion_scales_what_it_says(name):
    """Gates of 1 change nothing; without branch and without shortcut the unit's output is what the other gives."""
    torch.manual_seed(0)
    plain = shared(name)
    places = find_places(plain)
    assert {insertion for place in places for insertion in place.spots} == set(SMALL[name])
    places = first_of_each_form(plain, places)
    net = on_meta(name)
    shapes = captured(net, [place.path for place in places])
    for place in places:
        materialise(net, place)
    pickled = pickle.dumps(net)  # three times as fast as copy.deepcopy
    nets = {insertion: pickle.loads(pickled) for insertion in SMALL[name]}
    sites = {insertion: insert_se(nets[insertion], SESpec(insertion=insertion), "keep") for insertion in nets}
    for place, shape in zip(places, shapes, strict=True):
        units = {}
        for insertion in place.spots:
            for site in sites[insertion]:
                if site.path.startswith(f"{place.path}."):
                    unit = units[insertion] = nets[insertion].get_submodule(site.path).to_empty(device="cpu").double()
                    unit.load_state_dict({key: torch.zeros_like(value) for key, value in unit.state_dict().items()})
        check_points(name, place, net, nets, units, shape)


def first_of_each_form(net, places):
    """Return the first place of each class of block and each set of spots in it."""
    forms = {}
    for place in places:
        spots = tuple((name, spot.host.removeprefix(place.path), spot.how) for name, spot in place.spots.items())
        forms.setdefault((type(net.get_submodule(place.path)), spots), place)
    return list(forms.values())


def materialise(net, place):
    """Give a block of a net on the meta device random weights; its last insertion follows the join at once."""
    block = net.get_submodule(place.path).to_empty(device="cpu").double()
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 1).mul_(torch.randint(0, 2, tensor.shape) * 2 - 1 if tensor.dim() > 1 else 1)
    if (last := place.spots.get("post")) and last.how != "block":  # the join itself, without what follows
        net.set_submodule(last.host, nn.Identity())


def check_points(name, place, plain, nets, units, shapes):
    inputs, others = randomised(shapes), randomised(shapes)

    def out(insertion, gate, inputs=inputs, last=None):
        units[insertion].gate = Gate(gate, gate if last is None else last)
        return first(nets[insertion].get_submodule(place.path)(*tree_map(clone, inputs)))

    with torch.no_grad():
        expected = first(plain.get_submodule(place.path)(*tree_map(clone, inputs)))
        for insertion in place.spots:
            assert torch.equal(out(insertion, 1), expected), insertion
            assert not torch.allclose(out(insertion, 0.5, last=1), expected), insertion
        if "post" in place.spots:
            assert out("post", 0).abs().max() == 0
            torch.testing.assert_close(out("post", 0.5), expected / 2)
        if "identity" not in place.spots:
            return
        shortcut, branch = out("standard", 0), out("identity", 0)
        if name in SHARED_ACTIVATION:  # relu(a + b) = relu(a) + relu(b) where both are positive
            both = (shortcut > 0) & (branch > 0)
            shortcut, branch, expected = shortcut[both], branch[both], expected[both]
            assert both.any()
        torch.testing.assert_close(shortcut + branch, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
        if name in SHARED_ACTIVATION:
            return
        torch.testing.assert_close(out("standard", 0.5), (expected + shortcut) / 2)
        torch.testing.assert_close(out("identity", 0.5), (expected + branch) / 2)
        for insertion in set(place.spots) & {"pre", "conv3x3"} - ({"conv3x3"} if name in TWO_BRANCHES else set()):
            rest = out(insertion, 0) - shortcut  # a branch that sees nothing of x
            torch.testing.assert_close(
                out(insertion, 0, others) - out("standard", 0, others), rest, rtol=1e-6, atol=1e-6
            )


TWO_BRANCHES = ("poolformer_s12", "convformer_s18")
"""conv3x3 is in the first of a unit's two branches, the other insertions in the second."""


def captured(net, paths):
    """Return what a net on the meta device hands to its modules at `paths`."""
    seen = {}
    handles = [
        net.get_submodule(path).register_forward_pre_hook(
            lambda module, inputs, path=path: seen.setdefault(path, tree_map(lambda x: x, inputs))
        )
        for path in paths
    ]
    side = net.pretrained_cfg["input_size"][-1]
    net(torch.empty(1, 3, *(2 * [side if side < 128 else 128]), device="meta"))
    for handle in handles:
        handle.remove()
    return [seen[path] for path in paths]


def randomised(shapes):
    return tree_map(lambda x: torch.rand(x.shape, dtype=torch.float64) if isinstance(x, torch.Tensor) else x, shapes)


def clone(x):
    return x.clone() if isinstance(x, torch.Tensor) else x


def first(output):
    return output[0] if isinstance(output, list) else output


def test_of_a_net_with_attention_only_the_convolutional_units_count():
    net = on_meta("caformer_s18")
    sites = insert_se(net, SESpec())
    assert {site.stage for site in sites} == {2, 3}
    net(torch.empty(1, 3, 64, 64, device="meta"))


def test_a_net_without_known_units_is_refused():
    with pytest.raises(
        SpecError, match=r"vit_tiny.* \(timm\.models\.vision_transformer\.VisionTransformer\) has no known blocks"
    ):
        find_places(on_meta("vit_tiny_patch16_224"))
