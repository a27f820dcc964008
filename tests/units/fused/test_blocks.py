"""Fused nets: equal to the plain net in all they do, and plain wherever fusing does not apply."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from timm.layers.drop import DropBlock2d
from timm.layers.norm import GroupNorm
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from se_lab import (
    ModelSpec,
    SESpec,
    SpecError,
    capture_excitations,
    create_model,
    insert_se,
    profile,
    run,
)
from se_lab.report.costs import net_costs
from se_lab.units.fused import Work, choose, form_of, fuse, passes, unfuse, units
from se_lab.units.unit import Unit

INSERTIONS = ("standard", "conv3x3", "pre", "post", "identity")


def small(insertion="standard", block=Bottleneck, dtype=torch.float64, squeeze="avg", **options):
    """Return a narrow ResNet with SE units, every weight and statistic of it a value that shows."""
    shape = {"layers": (2, 1, 1, 1), "channels": (8, 8, 16, 16)} | options
    net = ResNet(num_classes=5, block=block, **shape)
    insert_se(net, SESpec(insertion=insertion, reduction=4, squeeze=squeeze, bias=True))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.dim() > 1 else 1
            fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * (2 / fan) ** 0.5
            tensor.copy_(fresh.abs() + 0.5 if name.endswith("running_var") else fresh)
    return net.to(dtype)


def images(dtype=torch.float64, n=3):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def forms(net):
    return {form_of(net, path) for path, module in net.named_modules() if isinstance(module, Unit)}


def step(net, x):
    """Return the output, the gradients and the buffers of a step."""
    torch.manual_seed(3)
    out = net(x)
    out.square().sum().backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {"": out.detach()} | found | {f"{name} after": value for name, value in net.named_buffers()}


def assert_same(ours, theirs, tolerance=1e-10):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture
def counted(monkeypatch):
    """Count how often each fused form runs."""
    calls = dict.fromkeys(("tail", "inner", "scale"), 0)

    def counting(name):
        form = getattr(units, name)

        def run(*arguments):
            calls[name] += 1
            return form(*arguments)

        return run

    for name in calls:
        monkeypatch.setattr(units, name, counting(name))
    return calls


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("block", [Bottleneck, BasicBlock])
@pytest.mark.parametrize("insertion", INSERTIONS)
def test_a_step_of_a_fused_net_is_the_plain_nets(insertion, block, training, counted):
    plain = small(insertion, block, drop_path_rate=0.3).train(training)
    fused = fuse(copy.deepcopy(plain))
    expected = step(plain, images())
    assert not any(counted.values())
    assert_same(step(fused, images()), expected)
    form = {"standard": "tail", "conv3x3": "inner"}.get(insertion, "scale")
    assert counted == dict.fromkeys(counted, 0) | {form: 5}
    assert forms(fused) == forms(plain) == {"unit" if form == "scale" else form}


def test_state_dicts_move_both_ways():
    plain, fused = small(), fuse(small())
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    assert type(unfuse(fused).layer1[0]) is Bottleneck
    assert {type(m) for m in fused.modules()} == {type(m) for m in plain.modules()}


@pytest.mark.parametrize("insertion", ["standard", "conv3x3", "pre"])
def test_capture_sees_the_same_gates(insertion, counted):
    plain = small(insertion).eval()
    fused = fuse(copy.deepcopy(plain))
    seen = []
    for net in (plain, fused):
        with capture_excitations(net) as capture, torch.inference_mode():
            net(images())
        seen.append(capture.excitations)
    assert sum(counted.values()) == 5
    assert len(seen[0]) == 5
    assert_same(seen[1], seen[0])


def test_copies_and_pickles_stay_fused(counted):
    net = fuse(small()).eval()
    expected = net(images())
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(images()), expected)
    assert counted["tail"] == 3 * 5


def test_export_and_tracing_see_the_plain_operators(counted):
    net = fuse(small("conv3x3")).eval()
    expected = unfuse(copy.deepcopy(net))(images())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(net, (images(),)).module()
        traced = torch.jit.trace(net, images(), check_trace=False)  # the check runs the net
    assert not any(counted.values())
    for other in (exported, traced):
        torch.testing.assert_close(other(images()), expected)


def test_torchscript_turns_the_net_back(counted):
    net = fuse(small()).eval()
    expected = net(images())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(images()), expected)
    torch.testing.assert_close(net(images()), expected)
    assert counted["tail"] == 5  # the first forward's


def test_counts_are_the_plain_nets():
    spec = ModelSpec("cifar_resnet20", SESpec(reduction=4), init="timm")
    plain = profile(create_model(spec, 10), (3, 32, 32))
    fused = profile(
        create_model(ModelSpec("cifar_resnet20", SESpec(reduction=4), init="timm", fused="on"), 10), (3, 32, 32)
    )
    assert fused == plain


def test_profile_says_which_units_are_fused():
    spec = ModelSpec("cifar_resnet20", SESpec(reduction=4, stages=(2,)), init="timm", kwargs={"drop_path_rate": 0.1})
    told = [row["fused"] for row in net_costs(spec, 10, (3, 32, 32)) if "fused" in row]
    assert told == ["tail", "tail", "tail"]
    off = net_costs(ModelSpec("cifar_resnet20", SESpec(), init="timm", fused="off"), 10, (3, 32, 32))
    assert {row["fused"] for row in off if "fused" in row} == {"off"}


def test_gradient_checkpointing_changes_nothing():
    plain = small(drop_path_rate=0.3)
    checkpointed = fuse(copy.deepcopy(plain))
    checkpointed.set_grad_checkpointing()
    fused = step(fuse(plain), images())
    again = step(checkpointed, images())
    for name in fused:  # the running statistics see the recomputation as well, as in any net
        if not name.endswith("after"):
            torch.testing.assert_close(again[name], fused[name], rtol=1e-10, atol=1e-10)


def test_a_module_can_run_twice_in_one_step():
    nets = [small(), fuse(small())]
    steps = []
    for net in nets:
        block = net.layer1[1].train()
        x = torch.randn(2, 32, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        steps.append(step(nn.Sequential(block, block), x))
    assert_same(steps[1], steps[0])


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("insertion", ["standard", "conv3x3", "pre"])
def test_a_compiled_step_is_the_plain_nets(insertion, training):
    fused = fuse(small(insertion, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))).train(training)
    compiled = copy.deepcopy(fused)
    compiled.compile(backend="aot_eager", fullgraph=True)
    expected = step(fused, images())
    assert_same(step(compiled, images()), expected, 1e-9)


def test_more_blocks_of_a_class_than_may_be_compiled_anew_are_one_graph():
    """Dynamo compiles a code object only so often; blocks of one class that were graphs of their own would reach it."""
    torch._dynamo.reset()  # what earlier tests compiled counts
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    net = fuse(small(layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), block=BasicBlock)).train()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(2):
            compiled(images()).sum().backward()
    assert len(graphs) == 1


@pytest.mark.parametrize("insertion", ["standard", "conv3x3", "pre"])
def test_dynamic_int8_layers_in_a_fused_unit_compute_what_they_do_in_a_plain_one(insertion, counted):
    plain = small(insertion, dtype=torch.float32, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, torch.qint8)
    x = images(torch.float32)
    with torch.inference_mode():
        expected = quantised(x)
        torch.testing.assert_close(fuse(quantised)(x), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
    assert sum(counted.values()) == 4  # one a block


def test_autocast_keeps_the_types_of_the_plain_net(counted):
    plain = small(dtype=torch.float32)
    fused = fuse(copy.deepcopy(plain))
    grads = []
    for net in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(images(torch.float32))
        out.float().square().sum().backward()
        assert out.dtype == torch.bfloat16
        assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float32}
        grads.append(net.layer4[0].se.expand.weight.grad)
    assert counted["tail"] == 5
    assert (grads[1] - grads[0]).norm() < 0.3 * grads[0].norm()


def hooked(net):
    net.layer1[0].bn3.register_forward_hook(lambda *_: None)
    return net


PLAIN = {
    "squeeze": (lambda: small(squeeze="max"), {"plain: the squeeze is not avg"}, 0),
    "norm": (
        lambda: small(norm_layer=lambda channels, **_: GroupNorm(channels, 4)),
        {"unit: the norm is GroupNorm"},
        5,
    ),
    "activation": (lambda: small(act_layer=nn.SiLU), {"unit: the activation is SiLU"}, 5),
    "drop_block": (
        lambda: small("conv3x3", drop_block_rate=0.1),
        {"inner", "unit: drop_block before the activation"},
        2,
    ),
    "hooks": (lambda: hooked(small()), {"tail", "unit: hooks on the BatchNorm2d"}, 1),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_cannot_be_fused_runs_plain_and_says_why(case, counted):
    build, said, alone = PLAIN[case]
    plain = build()
    assert case != "drop_block" or any(isinstance(module, DropBlock2d) for module in plain.modules())
    fused = fuse(build())
    assert forms(fused) == said
    assert_same(step(fused, images()), step(plain, images()))
    assert counted["scale"] == alone


def test_what_a_hook_keeps_of_a_convolution_is_not_written_over():
    plain = small(dtype=torch.float32).eval()
    kept = []
    for net in (plain, fuse(copy.deepcopy(plain))):
        seen = []
        for block in (net.layer1[0], net.layer2[0]):
            block.conv3.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        x = images(torch.float32)
        with torch.no_grad():
            kept.append([net(x), *seen])
        torch.testing.assert_close(x, images(torch.float32), rtol=0, atol=0)
    assert len(kept[0]) == 3
    for ours, theirs in zip(kept[1], kept[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_value_a_channel_is_refused_as_by_the_plain_net():
    net = fuse(small()).train()
    block = net.layer4[0]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 64, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found"),
        AssertionError(),  # as Triton's, where it builds what talks to the driver
    ],
    ids=["Inductor", "Triton"],
)
def test_without_a_compiler_the_plain_path_runs_with_one_line_of_notice(error, counted, capfd, monkeypatch):
    def none_found(*_):
        raise error

    monkeypatch.setattr(passes, "native_pass", lambda *_: None)
    monkeypatch.setattr(passes, "_compiled", lambda *_: none_found)
    passes.compiles.cache_clear()
    try:
        plain = small(dtype=torch.float32).eval()
        fused = fuse(copy.deepcopy(plain))
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(fused(images(torch.float32)), plain(images(torch.float32)))
        said = capfd.readouterr().err
        assert said.count("SE units run unfused") == 1
        assert not any(counted.values())
        assert choose("on", "cpu", Work(1e12, 1e18), plain) == (False, "off: no compiler for cpu")
    finally:
        passes.compiles.cache_clear()


def test_auto_is_on_where_it_is_proven_and_pays():
    much, net = Work(1e12, 1e18), small()
    assert choose("off", "cpu", much, net)[0] is False
    assert choose("auto", "cuda", much, net) == (False, "off: not proven faster on cuda")
    digits, cifar = 2.5e6, 4.1e7  # multiply-accumulates of ResNet-20 at 8 and at 32 pixels
    few = Work(digits * 128, digits * 1149 * 15)
    assert choose("auto", "cpu", few, net) == (False, "off: the steps are too small to be faster")
    short = Work(cifar * 128, cifar * 1024)
    assert choose("auto", "cpu", short, net) == (False, "off: the trial is too short to recover the time of compiling")
    long = Work(cifar * 128, cifar * 45_000 * 30)
    assert choose("auto", "cpu", long, net) == (True, "on: the steps are large enough to be faster")


def test_auto_is_off_where_no_whole_block_would_be_fused():
    much, alone = Work(1e12, 1e18), small("post")
    assert forms(alone) == {"unit"}
    assert choose("auto", "cpu", much, alone)[1].startswith("off: only single units could be fused")
    assert choose("on", "cpu", much, alone)[0]


@pytest.mark.parametrize("unit", ["eca", "cbam", "gct"])
def test_a_unit_without_a_fused_form_stays_plain_and_fused_on_is_refused(unit):
    def built(fused):
        return create_model(ModelSpec("test_resnet", SESpec(unit=unit), fused=fused), 5)

    net = built("auto").eval()
    name = type(net.get_submodule(net.se_sites[0].path)).__name__
    assert forms(net) == {f"plain: {name} has no fused form"}
    assert choose("auto", "cpu", Work(1e12, 1e18), net) == (False, f"off: {name} has no fused form")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(fuse(net)(x), expected)
    with pytest.raises(SpecError, match=f"fused is 'on', but model.se.unit={unit} has no fused form; it must be auto"):
        built("on")


def test_an_unknown_choice_is_refused():
    with pytest.raises(SpecError, match=r"model.fused is 'yes'; allowed are auto, on, off"):
        ModelSpec(fused="yes")


@pytest.mark.slow
def test_digits_end_within_the_spread_of_seeds(quick, here):
    ends = {}
    for fused in ("on", "off"):
        model = ModelSpec("cifar_resnet20", SESpec(reduction=4), fused=fused)
        ends[fused] = [run(quick(model=model, seed=seed, epochs=10), here).metrics["test/loss"] for seed in range(3)]
    spread = max(ends["off"]) - min(ends["off"])
    assert ends["on"] != ends["off"]  # other kernels, other last digits
    assert abs(sum(ends["on"]) - sum(ends["off"])) / 3 <= spread
