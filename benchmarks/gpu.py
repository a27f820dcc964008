"""What SE costs on a GPU: `python benchmarks/gpu.py --results benchmarks/RESULTS.md`.

Four parts, each of which `--parts` can leave out. kernels: every pass of the fused tail at the block shapes of
ResNet-50, batch 256, bfloat16, its largest error against float64 beside plain PyTorch's, its time, and the share of the
bandwidth that a copy on the device reaches in the same run. training and inference: plain, timm's SE and ours, each
eager and compiled, in turn within each round, 224 px, bfloat16 autocast, channels last; ours over plain is to stay
within the limit beside it. capture: what looking at excitations adds to inference. The batch is halved until all sides
fit. `--results FILE` appends the tables as Markdown; `--smoke` goes through all of it at tiny shapes on a CPU, with
Triton's interpreter, and times nothing worth keeping.
"""

from __future__ import annotations

import os
import sys

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import argparse
import datetime
import gc
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from measure import interleave, ratio, table
from torch import Tensor, nn

from se_lab import ModelSpec, SESpec, create_model, kernels

HERE = Path(__file__).parent
SHAPES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
"""Channels and side of the block outputs of ResNet-50 and ResNeXt-50 at 224 px, stage by stage."""
NETS = {"resnet50": "seresnet50", "resnext50_32x4d": "seresnext50_32x4d", "resnet152": "seresnet152"}
LIMITS = {"training": (1.03, 0.85), "inference": (1.10, None)}
"""Of ours, compiled: over plain, compiled, and over plain, eager."""
PARTS = ("kernels", "training", "inference", "capture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="Steps a round.")
    parser.add_argument("--results", type=Path, help="Markdown file to append to.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if not options.smoke and not (torch.cuda.is_available() and kernels.available()):
        print("status: skipped; gpu.py needs a GPU with CUDA and Triton (--smoke goes through it without)")
        return
    device = torch.device("cpu" if options.smoke else "cuda")
    torch.backends.cudnn.benchmark = True
    size, nets, shapes = 224, {net: NETS[net] for net in options.nets}, SHAPES
    if options.smoke:
        torch.set_num_threads(1)
        size, nets, shapes = 32, {"resnet18": "seresnet18"}, [(24, 9), (70, 3)]
        options.batch, options.rounds, options.steps = 2, 1, 1

    sections = [heading(device)]
    print(sections[0], flush=True)
    for section in run_parts(options, device, nets, shapes, size):
        sections.append(section)
        print("\n" + section, flush=True)
    if options.results and not options.smoke:
        with options.results.open("a") as file:
            file.write("\n" + "\n\n".join(sections) + "\n")


def run_parts(
    options: argparse.Namespace, device: torch.device, nets: dict[str, str], shapes: list[tuple[int, int]], size: int
) -> Iterator[str]:
    if "kernels" in options.parts:
        yield kernel_table(options.batch, shapes, device)
        if device.type == "cuda":
            yield beyond_int32(device)
    for kind in LIMITS:
        if kind in options.parts:
            for net, with_se in nets.items():
                yield net_table(kind, net, with_se, options.batch, size, options.rounds, options.steps, device)
    if "capture" in options.parts:
        yield capture_table(next(iter(nets.values())), options.batch, size, options.rounds, device)


def heading(device: torch.device) -> str:
    cuda = device.type == "cuda"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    name = torch.cuda.get_device_name() if cuda else "smoke run on a CPU"
    import triton

    versions = f"torch {torch.__version__}, Triton {triton.__version__}, timm {timm.__version__}"
    if cuda:
        versions += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return f"## {name}, {today}, commit {commit.stdout.strip() or 'unknown'}\n\n{versions}."


class Pass(NamedTuple):
    """One of the four passes, and the formula it stands for."""

    crossings: int
    """How often it reads or writes a tensor as large as x."""
    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    formula: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    plain: torch.dtype
    """What plain PyTorch computes in: float32 for statistics, as BatchNorm does, else the dtype of x."""


def passes(x: Tensor) -> dict[str, Pass]:
    seeded = torch.Generator(x.device).manual_seed(0)
    shortcut, grad = (torch.empty_like(x).normal_(generator=seeded) for _ in range(2))
    scale, shift, p, q, r = torch.randn((5, *x.shape[:2]), generator=seeded, device=x.device)
    mean, _ = kernels.moments(x)
    out = kernels.apply(x, scale, shift, shortcut, "relu", mean)
    g, *_ = kernels.backward_moments(grad, out, x, mean, "relu")

    def apply(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor, mean: Tensor) -> Tensor:
        return kernels.apply(x, scale, shift, shortcut, "relu", mean)

    def backward_moments(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
        return kernels.backward_moments(grad, out, x, mean, "relu")

    return {
        "moments": Pass(1, kernels.moments, moments_formula, (x,), torch.float32),
        "apply": Pass(3, apply, apply_formula, (x, scale, shift, shortcut, mean), x.dtype),
        "backward_moments": Pass(4, backward_moments, backward_moments_formula, (grad, out, x, mean), torch.float32),
        "backward_input": Pass(3, kernels.backward_input, backward_input_formula, (g, x, p, q, r, mean), x.dtype),
    }


def moments_formula(x: Tensor) -> tuple[Tensor, ...]:
    return x.mean((2, 3)), x.var((2, 3), correction=0)


def apply_formula(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    return (torch.relu((x - wide(mean)) * wide(scale) + wide(shift) + shortcut),)


def backward_moments_formula(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    g = grad * (out > 0)
    return g, g.sum((2, 3)), (g * (x - wide(mean))).sum((2, 3))


def backward_input_formula(g: Tensor, x: Tensor, p: Tensor, q: Tensor, r: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
    return (wide(p) * g + wide(q) * (x - wide(mean)) + wide(r),)


def wide(coefficient: Tensor) -> Tensor:
    return coefficient[:, :, None, None]


def kernel_table(batch: int, shapes: list[tuple[int, int]], device: torch.device) -> str:
    columns = ("shape", "layout", "pass", "error", "beside plain's", "µs", "of copy bandwidth", "µs, tile not tuned")
    rows = []
    for channels, side in shapes:
        for layout, name in ((torch.channels_last, "channels last"), (torch.contiguous_format, "NCHW")):
            shape = (batch, channels, side, side)
            x = torch.randn(shape, device=device).add_(10).bfloat16().contiguous(memory_format=layout)
            target = torch.empty_like(x)
            copy = milliseconds(lambda: target.copy_(x), device) / 2  # noqa: B023 (called at once)
            for label, one in passes(x).items():
                tuned = milliseconds(lambda: one.ours(*one.tensors), device)  # noqa: B023
                torch.use_deterministic_algorithms(True)
                fixed = milliseconds(lambda: one.ours(*one.tensors), device)  # noqa: B023
                torch.use_deterministic_algorithms(False)
                error, plain = errors(one)
                share = one.crossings * copy / tuned
                told = (f"{error:.1e}", f"{plain:.1e}", f"{1000 * tuned:.1f}", f"{share:.0%}", f"{1000 * fixed:.1f}")
                rows.append(("×".join(map(str, shape)), name, label, *told))
    title = (
        "Each pass in bfloat16: largest error over largest value, against float64; share of the bandwidth of a copy."
    )
    return title + "\n\n" + table(columns, rows)


def errors(one: Pass, images: int = 16) -> tuple[float, float]:
    """Return the largest error of ours and of plain PyTorch, over the largest value, of the worst result."""
    found = one.ours(*one.tensors)
    found = found if isinstance(found, tuple) else (found,)
    largest, ours, plain = ([0.0] * len(found) for _ in range(3))
    for start in range(0, one.tensors[0].shape[0], images):
        part = slice(start, start + images)
        exact = one.formula(*(tensor[part].double() for tensor in one.tensors))
        usual = one.formula(*(tensor[part].to(one.plain) for tensor in one.tensors))
        for n, value in enumerate(exact):
            largest[n] = max(largest[n], value.abs().max().item())
            ours[n] = max(ours[n], (found[n][part] - value).abs().max().item())
            plain[n] = max(plain[n], (usual[n].to(found[n].dtype) - value).abs().max().item())
    relative = [(a / top, b / top) for a, b, top in zip(ours, plain, largest, strict=True)]
    return max(a for a, _ in relative), max(b for _, b in relative)


def beyond_int32(device: torch.device) -> str:
    """Check the passes on a tensor whose offsets need more than 32 bits."""
    shape = (2**31 // (64 * 112 * 112) + 2, 64, 112, 112)
    rows = []
    for layout, name in ((torch.channels_last, "channels last"), (torch.contiguous_format, "NCHW")):
        try:
            x = torch.empty(shape, device=device, dtype=torch.bfloat16, memory_format=layout).normal_()
            rows += [(name, label, *(f"{error:.1e}" for error in errors(one))) for label, one in passes(x).items()]
        except torch.cuda.OutOfMemoryError:
            rows.append((name, "does not fit", "", ""))
        gc.collect()
        torch.cuda.empty_cache()
    columns = ("layout", "pass", "error", "beside plain's")
    return f"On {'×'.join(map(str, shape))}, more than 2³¹ elements:\n\n" + table(columns, rows)


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(function, return_mode="median"))
    began = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - began)


def net_table(
    kind: str, net: str, with_se: str, batch: int, size: int, rounds: int, steps: int, device: torch.device
) -> str:
    asked = batch
    while (times := net_times(kind, net, with_se, batch, size, rounds, steps, device)) is None:
        if batch == 1:
            return f"{net} and SE, {kind}: not even batch 1 fits."
        gc.collect()
        torch.cuda.empty_cache()
        batch //= 2
        print(f"{net}, {kind}: batch {batch}, since {2 * batch} does not fit", flush=True)
    of_compiled, of_eager = LIMITS[kind]
    rows = []
    for side, seconds in times.items():
        mode = side.split(", ")[1]
        ours = side == "ours, compiled"
        each = statistics.median(seconds) / steps
        same, eager = ratio(times, side, f"plain, {mode}"), ratio(times, side, "plain, eager")
        limits = (of_compiled if ours else "", of_eager or "" if ours else "")
        rows.append((side, f"{1000 * each:.1f}", f"{batch / each:.0f}", same, limits[0], eager, limits[1]))
    columns = ("", "ms a step", "images/s", "over plain, same mode", "limit", "over plain, eager", "limit")
    note = "" if batch == asked else f" (batch {asked} does not fit)"
    title = f"{net} and SE, {kind}, batch {batch}{note}, {size} px, bfloat16 autocast, channels last; {rounds} rounds."
    return title + "\n\n" + table(columns, rows)


def net_times(
    kind: str, net: str, with_se: str, batch: int, size: int, rounds: int, steps: int, device: torch.device
) -> dict[str, list[float]] | None:
    """Return the seconds of each side by round, or None where the batch does not fit."""
    builds: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: timm.create_model(net),
        "timm's SE": lambda: timm.create_model(with_se),
        "ours": lambda: create_model(ModelSpec(net, SESpec(bias=True), fused="on"), 1000),  # timm's SE has biases
    }
    backend = "inductor" if device.type == "cuda" else "eager"
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    run = training if kind == "training" else inference
    torch.compiler.reset()
    sides = {}
    try:
        for mode in ("eager", "compiled"):
            for name, build in builds.items():
                model = build().to(device, memory_format=torch.channels_last)
                forward = torch.compile(model, backend=backend, dynamic=False) if mode == "compiled" else model
                sides[f"{name}, {mode}"] = run(model, forward, images, labels, steps)
        return interleave(sides, rounds)
    except torch.cuda.OutOfMemoryError:
        return None


def training(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, steps: int
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        model.train()
        for _ in range(steps):
            with torch.autocast(images.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert loss.isfinite()  # which waits for the device

    return run


def inference(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, steps: int
) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            for _ in range(steps):
                out = forward(images)
        assert out.isfinite().all()  # which waits for the device

    return run


def capture_table(backbone: str, batch: int, size: int, rounds: int, device: torch.device) -> str:
    """Run benchmarks/excitations.py, whose table has its own limit."""
    flags = {"backbone": backbone, "batch": batch, "size": size, "rounds": rounds, "device": device.type}
    command = [sys.executable, str(HERE / "excitations.py"), "--amp", *(f"--{k}={v}" for k, v in flags.items())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return "Capture of excitations: " + done.stdout.strip()


if __name__ == "__main__":
    main()
