"""The Triton kernels where there is no GPU: what they compute, in Triton's interpreter, and what they compile to."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from se_lab.units.fused import kernels

pytest.importorskip("triton", "3.3")


def interpreter_is_broken() -> bool:
    """Return whether Triton's interpreter (3.6 and before) asks NumPy (from 2.4) for what that refuses.

    A bound of a loop is an array of one element there, of which int() is taken; 3.8 squeezes it first.
    """
    triton = importlib.util.find_spec("triton")
    assert triton is not None and triton.origin is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            int(np.ones(1))
        except TypeError:
            source = Path(triton.origin).with_name("runtime") / "interpreter.py"
            return "int(self.handle.data))" in source.read_text(encoding="utf-8")
    return False


with_interpreter = pytest.mark.skipif(
    interpreter_is_broken(), reason="this Triton's interpreter takes int() of an array, which this NumPy refuses"
)
HERE = Path(__file__).parent
GPU = HERE.parents[2] / "benchmarks" / "gpu.py"


def interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with Triton's interpreter, which is chosen once, when Triton is imported: hence another process."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=HERE.parents[2], capture_output=True, text=True, check=False
    )


@with_interpreter
@pytest.mark.slow
def test_the_kernels_compute_what_float64_says():
    done = interpreted("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_kernels.py"))
    assert done.returncode == 0, done.stdout + done.stderr


@with_interpreter
@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            ["kernels", "sweep", "batched", "capture", "long"],
            ["backward_input", "plain's", "of copy bandwidth", "limit", "aim", "all trials in one stack"],
        ),
        (["training", "inference"], ["ours, compiled", "1.03", "1.1", "0.85"]),
    ],
)
def test_the_benchmark_goes_through_without_a_gpu_and_records_each_part(parts, words, tmp_path):
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    said = ""
    for again in (parts, parts[-1:]):  # the second time in place of the first
        flags = ["--parts", *again, "--results", str(results), "--commit", "0123abc"]
        done = interpreted(str(GPU), "--smoke", "--backend", "eager", *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    text = results.read_text()
    assert text.startswith("# Results\n\n<!-- gpu: smoke run on a CPU: ")
    assert all(word in said and word in text for word in words)
    sections = re.findall(r"<!-- (gpu: .*) -->\n## .*\n\n.* · commit 0123abc · (?s:.*?)\n<!-- /(.*) -->", text)
    assert len(sections) == {"kernels": 7, "training": 2}[parts[0]] and all(start == end for start, end in sections)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU.parent))
    return importlib.import_module("gpu")


def crash(options, layout):
    os.kill(os.getpid(), signal.SIGKILL)


def unfit(options, layout):
    return "a table", False


def endless(options, layout):
    subprocess.run(["sleep", "600"])


def test_a_part_of_the_benchmark_that_crashes_costs_no_other_and_shows_in_the_status(
    gpu, monkeypatch, tmp_path, capsys
):
    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--results", str(results)])
    monkeypatch.setattr(gpu, "plan", lambda _: [("one", crash, ""), ("two", unfit, "")])
    assert gpu.main() == 1
    assert "one: FAILED" in capsys.readouterr().out
    assert "two" in results.read_text() and "one" not in results.read_text()


def test_with_minutes_a_part_that_takes_too_long_is_stopped_and_the_rest_is_named(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--minutes", "0.02"])
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(gpu, "plan", lambda _: [("one", endless, ""), ("two", unfit, ""), ("three", unfit, "")])
    assert gpu.main() == 1
    said = capsys.readouterr()
    assert "one: FAILED" in said.out and "the time limit was reached" in said.err
    assert "no time left for: two; three" in said.out


def test_what_is_worth_most_comes_first(gpu, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    names = [name for name, *_ in gpu.plan(gpu.parse())]
    assert names[:3] == ["resnet50, training", "kernels, channels last", "kernels, NCHW"]
    assert names[-1] == "more than 2³¹ elements, NCHW" and len(names) == len(set(names)) == 13


def test_a_result_that_is_no_number_or_left_out_is_no_small_error(gpu):
    def formula(x):
        return (x + 1,)

    def half(x):
        out = formula(x)[0]
        out[:, 1] = float("nan")
        return (out,)

    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    passes = importlib.import_module("gpu_passes")
    for ours, within in ((formula, True), (half, False), (lambda x: (x + 1.001,), False)):
        assert passes.judged(passes.Pass(2, ours, formula, (x,), x.dtype))[3] is within


FLAGS = {"rounds": 1, "steps": 1, "size": 32, "device": "cpu", "backend": "eager"}


@pytest.fixture
def nets(gpu):
    return importlib.import_module("gpu_nets")


def test_a_side_that_fails_is_named_and_the_others_are_timed(nets, monkeypatch):
    flags = {"batch": 2, **FLAGS}
    monkeypatch.setattr(nets, "create_model", lambda *_: torch.nn.Linear(3, 3))
    text, passed = nets.net_table(argparse.Namespace(**flags), "inference", "resnet18", "seresnet18")
    assert not passed and "ours, eager failed: RuntimeError" in text and "ours, compiled failed: " in text
    assert "| timm's SE, compiled |" in text and "| ours" not in text


def test_a_net_whose_graph_breaks_is_not_timed_in_pieces(nets, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x.mean((2, 3))

    monkeypatch.setattr(nets, "create_model", lambda *_: Broken())
    text, passed = nets.net_table(argparse.Namespace(batch=2, **FLAGS), "inference", "resnet18", "seresnet18")
    assert not passed and "ours, compiled failed: Unsupported" in text and "| ours, eager |" in text.replace("  ", "")


def test_the_batch_is_halved_until_all_sides_fit(nets, monkeypatch):
    original = nets.inference

    def small(model, forward, images, *rest):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, forward, images, *rest)

    monkeypatch.setattr(nets, "inference", small)
    flags = {"batch": 4, **FLAGS}
    text, _ = nets.net_table(argparse.Namespace(**flags), "inference", "resnet18", "seresnet18")
    assert "batch 1 (batch 4 does not fit)" in text and "| plain, compiled" in text


def test_without_a_gpu_the_benchmark_says_so_and_is_skipped(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "skipped" in line and "GPU" in line


def test_kernels_are_available_in_the_interpreter(monkeypatch):
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.available()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.available()


KERNELS = {
    "moments": {"WHOLE": True},
    "row_moments": {},
    "backward_moments": {"RELU": True},
    "row_backward_moments": {"RELU": True},
    "apply": {"CENTRED": True, "SHORTCUT": True, "RELU": True},
    "backward_input": {"CENTRED": True},
}
BIG = ("x", "out", "g", "grad", "dx", "shortcut")
WHOLE_NUMBERS = ("N", "C", "HW", "rows", "parts")
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
SHAPES = ((256, 3136), (512, 784), (1024, 196), (2048, 49))
"""Channels and pixels of the block outputs of ResNet-50 at 224 px."""


def kernel(name: str):
    from se_lab.units.fused import triton_pointwise, triton_reductions

    return getattr(triton_reductions, name, None) or getattr(triton_pointwise, name)


def compiled(name: str, tile, c: int, hw: int, channels_last: bool, capability: int, dtype: str = "bf16"):
    """Compile a kernel for a GPU that is not here."""
    constants = {"C": c, "HW": hw, "CHANNELS_LAST": channels_last, **tile.kwargs, **KERNELS[name]}
    return compiled_with(kernel(name), constants, tile.num_warps, capability, dtype)


def compiled_with(function, constants: dict[str, object], warps: int, capability: int, dtype: str):
    import triton
    from triton.backends.compiler import GPUTarget

    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    signature, aligned = {}, {}
    for number, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in WHOLE_NUMBERS:
            signature[argument] = "i32"
        else:
            signature[argument] = f"*{dtype if argument in BIG else 'fp32'}"
            aligned[(number,)] = [["tt.divisibility", 16]]
    places = {(function.arg_names.index(key),): value for key, value in constants.items()}
    source = triton.compiler.ASTSource(function, signature, places, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def tiles(name: str, c: int, hw: int, channels_last: bool):
    from se_lab.units.fused import triton_kernels

    kind = "row" if name.startswith("row") else "reduction" if name.endswith("moments") else "pointwise"
    return getattr(triton_kernels, f"_{kind}_tiles")(c, hw, channels_last)


def launched(name: str, hw: int, channels_last: bool, dtype: str) -> bool:
    """Whether the launcher would take this kernel: for sums over NCHW the pixels of a row decide."""
    from se_lab.units.fused import triton_kernels

    if not name.endswith("moments") or channels_last:
        return not name.startswith("row")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    return triton_kernels._rows_are_unaligned(torch.empty(1, 1, 1, hw, dtype=kind)) is name.startswith("row")


def big_accesses(ptx: str) -> list[str]:
    """Return how wide each access to a 16-bit tensor is: 16 bits alone, or 32 bits times a vector."""
    copied = {"0x10": "v4.b32", "0x8": "v2.b32", "0x4": "v1.b32"}  # to shared memory, ahead of its use
    ahead = [copied[size] for size in re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*?\], (0x\w+)", ptx)]
    return re.findall(r"(?:ld|st)\.global(?:\.\w+)*?\.(b16|v\d\.b32)\b", ptx) + ahead


@pytest.mark.parametrize("name", ["moments", "backward_moments", "apply", "backward_input"])
@pytest.mark.parametrize(("c", "hw", "channels_last"), [(256, 3136, True), (2048, 49, True), (24, 784, True)])
def test_channels_last_moves_16_bytes_at_a_time_and_adds_nothing_atomically(name, c, hw, channels_last):
    ptx = compiled(name, tiles(name, c, hw, channels_last)[0], c, hw, channels_last, 90).asm["ptx"]
    assert set(big_accesses(ptx)) == {"v4.b32"}
    assert not re.search(r"\b(atom|red)\.", ptx)


@pytest.mark.parametrize("capability", [80, 90])
def test_the_parts_of_an_image_are_merged_without_atomic_additions(capability):
    ptx = compiled_with(kernel("merge_moments"), {"BLOCK": 256}, 4, capability, "bf16").asm["ptx"]
    assert "ld.global" in ptx and not re.search(r"\b(atom|red)\.", ptx)


@pytest.mark.parametrize("hw", [3136, 784, 196, 49])
@pytest.mark.parametrize("name", KERNELS)
def test_nchw_moves_16_bytes_at_a_time_whatever_the_number_of_pixels(name, hw):
    if not launched(name, hw, False, "bf16"):
        return
    ptx = compiled(name, tiles(name, 256, hw, False)[0], 256, hw, False, 80).asm["ptx"]
    wide = big_accesses(ptx)
    first_pixel = name == "moments"  # the pivot, once a row
    assert set(wide) - ({"b16"} if first_pixel else set()) == {"v4.b32"} and wide.count("b16") <= first_pixel


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", list(BYTES))
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_every_tile_of_the_tuner_stays_in_registers_and_moves_whole_vectors(
    name, channels_last, dtype, capability, tmp_path
):
    import triton

    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for c, hw in SHAPES:
        if not launched(name, hw, channels_last, dtype):
            continue
        for tile in tiles(name, c, hw, channels_last):
            binary = compiled(name, tile, c, hw, channels_last, capability, dtype)
            (tmp_path / "kernel.cubin").write_bytes(binary.asm["cubin"])
            usage = subprocess.run([dump, "--dump-resource-usage", tmp_path / "kernel.cubin"], capture_output=True)
            stack = re.search(rb"STACK:(\d+)", usage.stdout)
            assert stack and int(stack[1]) <= 16, (tile.kwargs, usage.stdout)  # a spilled pair is no spilled tile
            if BYTES[dtype] == 2:
                wide = big_accesses(binary.asm["ptx"])
                # once before the loop: the first pixel, or the mean, of a thread's rows
                once = {"moments": ["b16", "b16"], "backward_moments": ["v2.b32"]}.get(name, [])
                assert set(Counter(wide) - Counter(once)) == {"v4.b32"}, (tile.kwargs, wide)
