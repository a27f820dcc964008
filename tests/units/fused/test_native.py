"""The passes in C++: what passes.py defines, compiled once, in any number of threads."""

from __future__ import annotations

import itertools
import multiprocessing

import pytest
import torch

from se_lab.units.fused import native, passes

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [(2, 3, 5, 7), (3, 40, 14, 14), (1, 1, 1, 1), (2, 17, 1, 1), (1, 70, 45, 40), (9, 5, 33, 1)]


def calls(shape, dtype, layout):
    """Return arguments for each pass, from a stream of its own."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, shortcut, grad, out = (
        torch.randn(shape, generator=generator).to(dtype).to(memory_format=layout) for _ in range(4)
    )
    by = [torch.randn(shape[:2], generator=generator) for _ in range(7)]
    return [
        ("moments", (x,)),
        ("mean", (x,)),
        ("apply", (x, shortcut, "relu", False, *by[:3])),
        ("apply", (x, shortcut, "identity", False, *by[:3])),
        ("apply", (x, None, "identity", False, *by[:3])),
        ("backward_moments", (x, grad, out, by[0], "relu")),
        ("backward_moments", (x, grad, None, by[0], "identity")),
        ("backward_input", (x, grad, *by[:4])),
        ("activated_moments", (x, *by[:3])),
        ("gate_activated", (x, *by[:4])),
        ("backward_gate_moments", (x, grad, *by[:3])),
        ("backward_gate_input", (x, grad, *by)),
    ]


def several(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_pass_gives_what_plain_pytorch_gives_in_double(dtype, layout):
    for shape in SHAPES:
        for name, arguments in calls(shape, dtype, LAYOUTS[layout]):
            exact = [value.double() if isinstance(value, torch.Tensor) else value for value in arguments]
            found = several(native.PASSES[name](*arguments))
            expected = several(passes.PASSES[name](*exact))
            for ours, theirs in zip(found, expected, strict=True):
                is_map = ours.dim() == 4
                assert ours.dtype == (dtype if is_map else torch.float64)
                digits = torch.finfo(dtype if is_map else torch.float32).eps
                largest = max(theirs.abs().max().item(), 1.0)
                torch.testing.assert_close(ours.double(), theirs, rtol=digits, atol=8 * digits * largest, msg=name)
                assert not is_map or ours.stride() == arguments[0].stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_number_of_threads_changes_no_bit(layout):
    before = torch.get_num_threads()
    try:
        for shape in SHAPES:
            for name, arguments in calls(shape, torch.float32, LAYOUTS[layout]):
                found = []
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    found.append(several(native.PASSES[name](*arguments)))
                for ours, theirs in itertools.product(found[1:], found[:1]):
                    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_is_no_number_or_infinite_stays_so(dtype):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, 3.3e38]).to(dtype).reshape(1, 1, 1, 5)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    for activation, expected in (("relu", torch.relu(x)), ("identity", x)):
        out = native.PASSES["apply"](x, torch.zeros_like(x), activation, False, zero, one, zero)
        assert torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert native.PASSES["mean"](x).isnan().all()


def test_bfloat16_is_rounded_as_pytorch_rounds_it():
    x = torch.randn(1, 1, 1, 4096, generator=torch.Generator().manual_seed(0))
    halves = x.view(torch.int32).bitwise_and(~0xFFFF).bitwise_or(0x8000).view(torch.float32)  # ties
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    for values in (x, halves):
        high = values.to(torch.bfloat16)
        rest = (values - high.float()).to(torch.bfloat16)
        out = native.PASSES["apply"](high, rest, "identity", False, zero, one, zero)
        assert torch.equal(out, (high.float() + rest.float()).to(torch.bfloat16))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a cache folder of the test's own, and let the library be one that compiles at once."""
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _path_of_the_library(start, answers):
    start.wait()
    answers.put(native.library.__wrapped__()._name)


def test_processes_that_begin_at_once_share_one_library(cache):
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(2), context.Queue()
    begun = [context.Process(target=_path_of_the_library, args=(start, answers)) for _ in range(2)]
    for process in begun:
        process.start()
    (path,) = {answers.get() for _ in begun}
    for process in begun:
        process.join()
    assert [str(made) for made in (cache / "se-lab").iterdir()] == [path]


def test_without_a_cache_it_is_compiled_for_the_process(cache):
    cache.touch()  # a file where the folder should be
    assert native.library.__wrapped__().one() == 1
    assert cache.is_file()


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false", ""])
def test_without_a_compiler_there_is_none(compiler, cache, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("PATH", "/nowhere")
    assert native.library.__wrapped__() is None


def test_a_file_that_others_can_write_or_replace_is_not_loaded(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    file, link = folder / "passes-1.so", folder / "passes-2.so"
    file.touch()
    file.chmod(0o600)
    link.symlink_to(file)
    assert native._is_ours(file) and not native._is_ours(link) and not native._is_ours(folder / "absent")
    file.chmod(0o620)
    assert not native._is_ours(file)
    file.chmod(0o600)
    for above in (folder, tmp_path):
        above.chmod(0o777)
        assert not native._is_ours(file)
        above.chmod(0o700)


def test_folders_above_the_home_are_trusted(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "passes.so").touch(mode=0o600)
    tmp_path.chmod(0o777)
    assert not native._is_ours(home / "passes.so")
    monkeypatch.setenv("HOME", str(home))
    assert native._is_ours(home / "passes.so")
