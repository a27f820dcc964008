"""Insertion: equality with timm's own SE nets, what stays as it was, and what a patched net still can do."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.blur_pool import BlurPool2d
from timm.layers.create_attn import create_attn
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from se_lab import SESpec, SpecError, SqueezeExcite, insert_se
from se_lab.backbones import build_torchvision
from se_lab.units.squeeze_excite import EXCITATION, SQUEEZE

INSERTIONS = ("standard", "pre", "post", "identity", "conv3x3")
BLOCKS = {
    "basic": {"block": BasicBlock},
    "bottleneck": {"block": Bottleneck},
    "d-variant": {"block": Bottleneck, "stem_type": "deep", "stem_width": 8, "avg_down": True},
    "blur": {"block": Bottleneck, "aa_layer": BlurPool2d},
    "average pooling": {"block": BasicBlock, "aa_layer": nn.AvgPool2d},
    "drop path": {"block": BasicBlock, "drop_path_rate": 0.2},
    "grouped": {"block": Bottleneck, "cardinality": 4, "base_width": 16},
}


class One(nn.Module):
    def forward(self, gate):
        return torch.ones_like(gate)


def small(variant="basic"):
    """Return a narrow ResNet of timm's blocks, with units that have and that lack a projection."""
    return ResNet(layers=(2, 1, 1, 2), channels=(16, 24, 32, 40), num_classes=5, **BLOCKS[variant])


def randomise(net, seed=0):
    """Give every weight and statistic a value that shows: norms are not ones, gates are not halves."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            fresh = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            fan = tensor[0].numel() if tensor.dim() > 1 else 1
            low, high = (0.5, 1.5) if name.endswith("running_var") else (-1, 1)
            tensor.copy_((low + (high - low) * fresh) * (3 / fan) ** 0.5)
    return net.double().eval()


def copied(theirs, ours, renamed):
    """Load timm's weights into our net, 1×1 convolutions of SE units into its linear layers."""
    state = {}
    for key, value in theirs.state_dict().items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        state[key] = value
    own = ours.state_dict()
    ours.load_state_dict({key: value.reshape(own[key].shape) for key, value in state.items()})
    return ours.double().eval()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def images(side=64, n=2):
    return torch.randn(n, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet50", "seresnet50"),
        ("resnext50_32x4d", "seresnext50_32x4d"),
        ("resnet18", "seresnet18"),
    ],
)
def test_forward_equals_timms_own_se_net(ours, theirs):
    # timm rounds the hidden width to a multiple of 8, which for these widths is C // 16 except at 64 channels
    attention = functools.partial(create_attn, "se", rd_ratio=1 / 16, rd_divisor=1)
    reference = randomise(timm.create_model(theirs, block_args={"attn_layer": attention}))
    net = timm.create_model(ours)
    assert len(insert_se(net, SESpec(bias=True))) in (8, 16)
    net = copied(reference, net, {".se.fc1": ".se.reduce", ".se.fc2": ".se.expand"})
    with torch.no_grad():
        assert relative(net(images()), reference(images())) < 1e-12


def test_forward_equals_timms_legacy_seresnet50():
    reference = randomise(timm.create_model("legacy_seresnet50"))
    net = timm.create_model("resnet50_v1")  # it strides in the first 1×1
    net.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    insert_se(net, SESpec(bias=True))
    renamed = {"layer0.": "", "se_module.fc1": "se.reduce", "se_module.fc2": "se.expand", "last_linear": "fc"}
    net = copied(reference, net, renamed)
    with torch.no_grad():
        assert relative(net(images()), reference(images())) < 1e-12


def test_torchvisions_resnet50_equals_timms_seresnet50():
    attention = functools.partial(create_attn, "se", rd_ratio=1 / 16, rd_divisor=1)
    reference = randomise(timm.create_model("seresnet50", block_args={"attn_layer": attention}))
    net = build_torchvision("torchvision:resnet50", pretrained=False)
    assert len(insert_se(net, SESpec(bias=True))) == 16
    net = copied(reference, net, {".se.fc1": ".bn3.se.reduce", ".se.fc2": ".bn3.se.expand"})
    with torch.no_grad():
        assert relative(net(images()), reference(images())) < 1e-12


@pytest.mark.parametrize("insertion", INSERTIONS)
@pytest.mark.parametrize("variant", BLOCKS)
def test_gates_of_one_equal_the_plain_net_and_its_state_dict_fits(variant, insertion):
    torch.manual_seed(0)
    plain = randomise(small(variant))
    patched = small(variant)
    sites = insert_se(patched, SESpec(insertion=insertion))
    missing, unexpected = patched.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {key.rsplit(".", 2)[0] for key in missing} == {site.path for site in sites}
    patched.double().eval()
    with torch.no_grad():
        assert not torch.allclose(patched(images()), plain(images()))
        for site in sites:
            patched.get_submodule(site.path).gate = One()
        assert torch.equal(patched(images()), plain(images()))


def test_without_a_projection_identity_scales_the_input_itself():
    torch.manual_seed(0)
    plain = small().layer1
    net = small()
    site = next(s for s in insert_se(net, SESpec(insertion="identity")) if s.name == "SE_2_2")
    block, unit = randomise(net).layer1[1], net.get_submodule(site.path)
    assert plain[1].downsample is None
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
        torch.testing.assert_close(block(x), torch.relu(branch + unit(x)), rtol=0, atol=0)


def test_what_each_insertion_computes():
    torch.manual_seed(0)
    for insertion in INSERTIONS:
        net = small("bottleneck")
        site = next(s for s in insert_se(net, SESpec(insertion=insertion, reduction=4)) if s.name == "SE_3_1")
        block, unit = randomise(net).layer2[0], net.get_submodule(site.path)
        se = {name: unit if name == insertion else nn.Identity() for name in INSERTIONS}
        x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
        norms = [functools.partial(bn_eval, getattr(block, f"bn{i}")) for i in (1, 2, 3)]
        convs = [functools.partial(conv, getattr(block, f"conv{i}")) for i in (1, 2, 3)]
        with torch.no_grad():  # published.yaml, `insertion`
            u = torch.relu(norms[0](convs[0](se["pre"](x))))
            u = se["conv3x3"](torch.relu(norms[1](convs[1](u))))
            u = se["standard"](norms[2](convs[2](u)))
            shortcut = bn_eval(block.downsample[1], conv(block.downsample[0], x))
            expected = se["post"](torch.relu(u + se["identity"](shortcut)))
            torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def conv(layer, x):
    return nn.functional.conv2d(x, layer.weight, stride=layer.stride, padding=layer.padding)


def bn_eval(layer, x):
    return nn.functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)


@settings(max_examples=25, deadline=None)
@given(
    stages=st.sets(st.sampled_from([2, 3, 4, 5]), min_size=1),
    insertion=st.sampled_from(INSERTIONS),
    squeeze=st.sampled_from(sorted(SQUEEZE)),
    excitation=st.sampled_from(sorted(EXCITATION)),
    reduction=st.integers(1, 64),
    bias=st.booleans(),
    variant=st.sampled_from(["basic", "bottleneck"]),
)
def test_every_variant_builds_and_every_site_is_where_it_says(
    stages, insertion, squeeze, excitation, reduction, bias, variant
):
    net = small(variant)
    spec = SESpec(insertion, "se", reduction, squeeze, excitation, tuple(stages), bias)
    sites = insert_se(net, spec)
    units = {2: 2, 3: 1, 4: 1, 5: 2}
    assert [s.name for s in sites] == [
        f"SE_{stage}_{unit}" for stage in sorted(stages) for unit in range(1, units[stage] + 1)
    ]
    found = [path for path, module in net.named_modules() if isinstance(module, SqueezeExcite)]
    assert sorted(site.path for site in sites) == sorted(found)
    for site in sites:
        unit = net.get_submodule(site.path)
        assert site.path.startswith(f"layer{site.stage - 1}.{site.unit - 1}.")
        assert (
            unit.reduce.weight.shape
            == (max(site.channels // reduction, 1), site.channels)
            == (site.hidden, site.channels)
        )
        assert (unit.expand.bias is not None) == bias
    with torch.no_grad():
        assert torch.isfinite(net.eval()(torch.randn(1, 3, 32, 32))).all()


@pytest.mark.parametrize("insertion", INSERTIONS)
def test_a_patched_net_can_be_copied_pickled_scripted_and_exported(insertion):
    torch.manual_seed(0)
    net = small().eval()
    insert_se(net, SESpec(insertion=insertion, reduction=4))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = net(x)
        for again in (
            copy.deepcopy(net),
            pickle.loads(pickle.dumps(net)),
            torch.jit.script(net),
            torch.export.export(net, (x,)).module(),
            net.to(memory_format=torch.channels_last),
        ):
            torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("insertion", ["standard", "identity"])
def test_a_patched_net_compiles_without_a_graph_break(insertion):
    torch.manual_seed(0)
    net = small().eval()
    insert_se(net, SESpec(insertion=insertion, reduction=4))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x))


def test_a_state_dict_goes_round():
    torch.manual_seed(0)
    nets = [small("bottleneck"), small("bottleneck")]
    for net in nets:
        insert_se(net, SESpec(insertion="post", bias=True))
    randomise(nets[0])
    buffer = io.BytesIO()
    torch.save(nets[0].state_dict(), buffer)
    buffer.seek(0)
    nets[1].double().eval().load_state_dict(torch.load(buffer, weights_only=True))
    with torch.no_grad():
        assert torch.equal(nets[0](images()), nets[1](images()))


def test_training_leaves_no_se_unit_without_gradient():
    torch.manual_seed(0)
    for insertion in INSERTIONS:
        net = small("drop path")
        sites = insert_se(net, SESpec(insertion=insertion, bias=True))
        net.train()(torch.randn(4, 3, 32, 32)).square().sum().backward()
        for site in sites:
            assert all(p.grad is not None for p in net.get_submodule(site.path).parameters())


@functools.cache
def meta(name):
    with torch.device("meta"):
        return timm.create_model(name).eval()


def test_a_stage_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(SpecError, match=r"has 7; the stages of .* are 2, 3, 4, 5"):
        insert_se(copy.deepcopy(meta("resnet18")), SESpec(stages=[2, 7]))


def test_an_insertion_that_a_net_has_no_place_for_is_refused_with_those_it_has():
    with pytest.raises(SpecError, match=r"'identity', for which the chosen blocks of vgg11 have no place; .* standard"):
        insert_se(copy.deepcopy(meta("vgg11")), SESpec(insertion="identity"))


def test_units_take_the_nets_type_and_mode():
    net = small().to(torch.bfloat16).eval()
    for site in insert_se(net, SESpec()):
        unit = net.get_submodule(site.path)
        assert unit.reduce.weight.dtype == torch.bfloat16
        assert not unit.training


def test_a_net_is_patched_once():
    net = copy.deepcopy(meta("resnet18"))
    insert_se(net, SESpec())
    with pytest.raises(SpecError, match="already has units of SE-Lab"):
        insert_se(net, SESpec())


TEN = (
    "mobilenetv1_100",
    "shufflenet_v1_g3",
    "bn_inception",
    "vgg16_bn",
    "resnet50_v1",
    "resnext50_32x4d",
    "inception_resnet_v2",
    "resnet101_v1",
    "resnext101_32x4d",
    "resnet152_v1",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEN)
def test_backbones_of_the_paper_can_do_all_that_plain_ones_can(name):
    torch.manual_seed(0)
    side = 96 if name == "inception_resnet_v2" else 64
    x = torch.randn(2, 3, side, side)
    net, again = (timm.create_model(name, num_classes=10).eval() for _ in range(2))
    for each in (net, again):
        insert_se(each, SESpec())
    again.load_state_dict(net.state_dict())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = net(x)
        assert torch.equal(again(x), expected)
        for other in (
            torch.export.export(net, (x,)).module(),
            torch.compile(net, backend="aot_eager", fullgraph=True),
            again.to(memory_format=torch.channels_last),
        ):
            torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-4)
    net.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
