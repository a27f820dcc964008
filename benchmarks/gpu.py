"""What SE costs on a GPU: `python benchmarks/gpu.py --results benchmarks/RESULTS.md`.

kernels: every pass of the fused tail at the block shapes of ResNet-50, batch 256, bfloat16, its largest error against
float64 beside plain PyTorch's, its time, and the share of the bandwidth that a copy on the device reaches in the same
run. long: the same errors on a tensor of more than 2³¹ elements. training and inference: plain, timm's SE and ours,
each eager and compiled, in turn within each round, 224 px, bfloat16 autocast, channels last; ours over plain is to stay
within the limit beside it. capture: what looking at excitations adds to inference. The batch is halved until all sides
fit, and a side that fails is named with its reason, beside the times of the others.

Each part runs in a process of its own and is recorded as soon as it is measured, in place of the one before of the same
device: a part that fails, or a run that is killed, costs no other. Compiling takes minutes a net: where a run may not
last, give each net one (`--parts training inference --nets resnet152`). `--smoke` goes through all of it at tiny shapes
on a CPU, with Triton's interpreter, and times nothing worth keeping.
"""

from __future__ import annotations

import os
import sys

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import argparse
import contextlib
import datetime
import gc
import multiprocessing
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from measure import interleave, ratio, table, with_section
from torch import Tensor, nn

from se_lab import ModelSpec, SESpec, create_model
from se_lab.store import write_whole
from se_lab.training.failures import OUT_OF_MEMORY, failure_kind
from se_lab.units.fused import kernels

HERE = Path(__file__).parent
SHAPES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
"""Channels and side of the block outputs of ResNet-50 and ResNeXt-50 at 224 px, stage by stage."""
LAYOUTS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
NETS = {"resnet50": "seresnet50", "resnext50_32x4d": "seresnext50_32x4d", "resnet152": "seresnet152"}
LIMITS = {"training": (1.03, 0.85), "inference": (1.10, None)}
"""Of ours, compiled: over plain, compiled, and over plain, eager."""
PARTS = ("kernels", "long", "training", "inference", "capture")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="Steps a round.")
    parser.add_argument("--results", type=Path, help="Markdown file to record each part in.")
    parser.add_argument("--commit", help="What to record as the commit, where there is no git.")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    options.size, options.device, options.shapes = 224, "cuda", SHAPES
    options.nets = {net: NETS[net] for net in options.nets}
    if options.smoke:
        options.size, options.device, options.shapes = 32, "cpu", [(24, 9), (70, 3)]
        options.nets, options.batch, options.rounds, options.steps = {"resnet18": "seresnet18"}, 2, 1, 1
    elif not alone(_ready):
        print("status: skipped; gpu.py needs a GPU with CUDA and Triton (--smoke goes through it without)")
        return 0
    well = True
    for name, part, *arguments in plan(options):
        began = time.monotonic()
        try:
            device, section, passed = alone(_measured, name, part, options, *arguments)
        except Exception:  # whatever became of it, the others are measured
            traceback.print_exc()
            print(f"{name}: FAILED after {time.monotonic() - began:.0f} s\n", flush=True)
            well = False
            continue
        print(f"{section}\n\n{name}: {time.monotonic() - began:.0f} s{'' if passed else ', FAILED'}\n", flush=True)
        well = well and passed
        if options.results:
            record(options.results, f"gpu: {device}: {name}", section)
    return 0 if well else 1


def plan(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Yield name, function and arguments of each part."""
    for layout in LAYOUTS:
        if "kernels" in options.parts:
            yield f"kernels, {layout}", kernel_table, layout
    for layout in LAYOUTS:
        if "long" in options.parts:
            yield f"more than 2³¹ elements, {layout}", long_table, layout
    for net, with_se in options.nets.items():
        for kind in LIMITS:
            if kind in options.parts:
                yield f"{net}, {kind}", net_table, kind, net, with_se
    if "capture" in options.parts:
        yield "capture of excitations", capture_table, next(iter(options.nets.values()))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own, which leaves nothing on the GPU and takes none along.

    The process is a fork, so that nothing is imported again: this one must not touch the GPU.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def _ready() -> bool:
    return torch.cuda.is_available() and kernels.available()


def _measured(
    name: str, part: Callable[..., tuple[str, bool]], options: argparse.Namespace, *arguments: Any
) -> tuple[str, str, bool]:
    """Return the device's name, the part as a section, and whether it passed what it checks."""
    cuda = options.device == "cuda"
    torch.backends.cudnn.benchmark = True
    if not cuda:
        torch.set_num_threads(1)
    text, passed = part(options, *arguments)
    device = torch.cuda.get_device_name() if cuda else "smoke run on a CPU"
    return device, f"## {device}: {name}\n\n{circumstances(options.commit, cuda)}\n\n{text}", passed


def circumstances(commit: str | None, cuda: bool) -> str:
    import triton

    versions = f"torch {torch.__version__}, Triton {triton.__version__}, timm {timm.__version__}"
    if cuda:
        versions += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    if commit is None:
        try:
            command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
            commit = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            commit = "not known"
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return f"{today} · commit {commit} · Python {sys.version.split()[0]}, {versions}"


def record(path: Path, name: str, section: str) -> None:
    """Put a section into a Markdown file, in place of the one of its name there, or at the end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Measured\n"
    whole = with_section(text, name, section, len(text))
    write_whole(path, lambda file: file.write(whole.encode()))


class Pass(NamedTuple):
    """One of the four passes, and the formula it stands for."""

    crossings: int
    """How often it reads or writes a tensor as large as x."""
    ours: Callable[..., tuple[Tensor, ...]]
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

    def apply(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
        return (kernels.apply(x, scale, shift, shortcut, "relu", mean),)

    def backward_moments(grad: Tensor, out: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
        return kernels.backward_moments(grad, out, x, mean, "relu")

    def backward_input(*tensors: Tensor) -> tuple[Tensor, ...]:
        return (kernels.backward_input(*tensors),)

    return {
        "moments": Pass(1, kernels.moments, moments_formula, (x,), torch.float32),
        "apply": Pass(3, apply, apply_formula, (x, scale, shift, shortcut, mean), x.dtype),
        "backward_moments": Pass(4, backward_moments, backward_moments_formula, (grad, out, x, mean), torch.float32),
        "backward_input": Pass(3, backward_input, backward_input_formula, (g, x, p, q, r, mean), x.dtype),
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


def drawn(shape: tuple[int, ...], device: str, layout: str) -> Tensor:
    """Return normal numbers, the same in each run: what is within its limits in one is so in the next."""
    seeded = torch.Generator(device).manual_seed(1)
    x = torch.empty(shape, device=device, dtype=torch.bfloat16, memory_format=LAYOUTS[layout])
    return x.normal_(generator=seeded)


def kernel_table(options: argparse.Namespace, layout: str) -> tuple[str, bool]:
    columns = ("shape", "pass", "error", "plain's", "within", "µs", "of copy bandwidth", "µs, tile not tuned")
    rows, all_within = [], True
    for channels, side in options.shapes:
        shape = (options.batch, channels, side, side)
        x = drawn(shape, options.device, layout).add_(10)
        target = torch.empty_like(x)
        copy = milliseconds(lambda: target.copy_(x), x.device) / 2  # noqa: B023 (called at once)
        for label, one in passes(x).items():
            tuned = milliseconds(lambda: one.ours(*one.tensors), x.device)  # noqa: B023
            fixed = ""
            if label.endswith("moments"):
                with repeatable():
                    fixed = f"{1000 * milliseconds(lambda: one.ours(*one.tensors), x.device):.1f}"  # noqa: B023
            *told, within = judged(one)
            all_within = all_within and within
            share = one.crossings * copy / tuned
            rows.append(("×".join(map(str, shape)), label, *told, f"{1000 * tuned:.1f}", f"{share:.0%}", fixed))
    title = (
        f"Each pass in bfloat16, {layout}: largest error over largest value, against float64, within twice that of "
        "plain PyTorch or a unit in the last place; share of the bandwidth of a copy."
    )
    return title + "\n\n" + table(columns, rows), all_within


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Let no clock choose how sums are split; and new memory not be filled, as PyTorch does in deterministic runs."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def judged(one: Pass) -> tuple[str, str, str, bool]:
    """Return the largest error of ours and of plain PyTorch, over the largest value, and whether ours will do."""
    found = [(ours, max(2 * plain, least), plain) for ours, plain, least in errors(one)]
    ours, limit, plain = max(found, key=lambda one: float("inf") if one[0] != one[0] else one[0] / one[1])
    within = ours <= limit
    return f"{ours:.1e}", f"{plain:.1e}", "yes" if within else "NO", within


def errors(one: Pass, images: int = 16) -> list[tuple[float, float, float]]:
    """Return, of each result, the largest error of ours and of plain PyTorch over the largest value, and a unit."""
    for spoilt in one.ours(*one.tensors):
        spoilt.fill_(float("nan"))  # the memory that the next call is given again: what it leaves out, shows
    del spoilt
    found = one.ours(*one.tensors)
    tops: list[list[Tensor]] = [[], [], []]
    for start in range(0, one.tensors[0].shape[0], images):
        part = slice(start, start + images)
        exact = one.formula(*(tensor[part].double() for tensor in one.tensors))
        usual = one.formula(*(tensor[part].to(one.plain) for tensor in one.tensors))
        for top, values in zip(
            tops,
            (
                exact,
                [ours[part] - value for ours, value in zip(found, exact, strict=True)],
                [plain.to(o.dtype) - value for plain, o, value in zip(usual, found, exact, strict=True)],
            ),
            strict=True,
        ):
            top.append(torch.stack([value.abs().amax() for value in values]))  # amax keeps what is no number
    largest, ours, plain = (torch.stack(top).amax(0).tolist() for top in tops)
    units = [2.0**-7 if result.dtype == torch.bfloat16 else 2.0**-21 for result in found]
    return [(a / top, b / top, unit) for a, b, top, unit in zip(ours, plain, largest, units, strict=True)]


def long_table(options: argparse.Namespace, layout: str) -> tuple[str, bool]:
    """Check the passes on a tensor whose offsets need more than 32 bits."""
    shape = (2**31 // (64 * 112 * 112) + 2, 64, 112, 112) if options.device == "cuda" else (3, 5, 4, 4)
    x = drawn(shape, options.device, layout)
    found = {label: judged(one) for label, one in passes(x).items()}
    rows = [(label, *told) for label, (*told, _) in found.items()]
    columns = ("pass", "error", "plain's", "within")
    title = f"On {'×'.join(map(str, shape))}, more than 2³¹ elements, {layout}:"
    return title + "\n\n" + table(columns, rows), all(within for *_, within in found.values())


def milliseconds(function: Callable[[], object], device: torch.device, repeats: int = 30) -> float:
    """Return how long the device takes for what a function asks of it; not how long Python takes to ask."""
    function()
    if device.type != "cuda":
        began = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - began)
    function()
    other = torch.zeros(2**26, device=device)  # 256 MiB: read, it takes the place in the cache of all else
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize()
    torch.cuda._sleep(2**26)  # cycles, some 35 ms, in which Python gets ahead of the device
    for before, after in events:
        other.sum()
        before.record()
        function()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in events)


def net_table(options: argparse.Namespace, kind: str, net: str, with_se: str) -> tuple[str, bool]:
    batch = options.batch
    while (measured := net_times(options, kind, net, with_se, batch)) is None:
        if batch == 1:
            return f"{net} and SE, {kind}: not even batch 1 fits.", False
        torch.compiler.reset()  # which holds what it compiled
        gc.collect()
        torch.cuda.empty_cache()
        batch //= 2
        print(f"{net}, {kind}: batch {batch}, since {2 * batch} does not fit", flush=True)
    times, memory, failed = measured
    of_compiled, of_eager = LIMITS[kind]
    rows = []

    def over(side: str, base: str) -> str:
        return str(ratio(times, side, base)) if base in times else "–"

    for side, seconds in times.items():
        ours = side == "ours, compiled"
        each = statistics.median(seconds) / options.steps
        same, eager = over(side, f"plain, {side.split(', ')[1]}"), over(side, "plain, eager")
        limits = (of_compiled if ours else "", of_eager or "" if ours else "")
        told = (f"{1000 * each:.1f}", f"{batch / each:.0f}", memory[side])
        rows.append((side, *told, same, limits[0], eager, limits[1]))
    columns = (
        "",
        "ms a step",
        "images/s",
        "GiB a step",
        "over plain, same mode",
        "limit",
        "over plain, eager",
        "limit",
    )
    note = "" if batch == options.batch else f" (batch {options.batch} does not fit)"
    title = (
        f"{net} and SE, {kind}, batch {batch}{note}, {options.size} px, bfloat16 autocast, channels last; "
        f"{options.rounds} rounds of {options.steps} steps; memory beside parameters and their momentum."
    )
    lines = [title, "", table(columns, rows), *(f"\n{side} failed: {why}" for side, why in failed.items())]
    return "\n".join(lines), not failed


def net_times(
    options: argparse.Namespace, kind: str, net: str, with_se: str, batch: int
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, str]] | None:
    """Return seconds by round, memory, and reason of failure, of each side; None where the batch does not fit."""
    device, size = torch.device(options.device), options.size
    dense = {"zero_init_last": False}  # else all gradients of the branches are 0, and a GPU is faster on zeros
    ours = ModelSpec(net, SESpec(bias=True), fused="on", kwargs=dense)  # timm's SE has biases
    builds: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: timm.create_model(net, **dense),
        "timm's SE": lambda: timm.create_model(with_se, **dense),
        "ours": lambda: create_model(ours, 1000),
    }
    backend = "inductor" if device.type == "cuda" else "eager"
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    make = training if kind == "training" else inference
    sides: dict[str, Callable[[], None]] = {}
    memory, failed = {}, {}
    for mode in ("eager", "compiled"):  # what does not fit is found out before anything is compiled
        for name, build in builds.items():
            side, began = f"{name}, {mode}", time.monotonic()
            try:
                model = build().to(device, memory_format=torch.channels_last)
                forward = torch.compile(model, backend=backend, dynamic=False) if mode == "compiled" else model
                run = make(model, forward, images, labels, options.steps)
                run()
                memory[side] = gibibytes(run, device)
            except Exception as error:
                if failure_kind(error) == OUT_OF_MEMORY:
                    return None
                traceback.print_exc()
                failed[side] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                continue
            sides[side] = run
            print(f"{net}, {kind}: {side} is ready after {time.monotonic() - began:.0f} s", flush=True)
    return interleave(sides, options.rounds), memory, failed


def gibibytes(run: Callable[[], None], device: torch.device) -> str:
    """Return what a run takes beside what is there before and after it."""
    if device.type != "cuda":
        run()
        return ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.1f}"


def training(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, steps: int
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model.train()

    def run() -> None:
        for _ in range(steps):
            with torch.autocast(images.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not loss.isfinite():  # which waits for the device
            raise FloatingPointError(f"the loss is {loss.item()}")

    return run


def inference(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, steps: int
) -> Callable[[], None]:
    model.eval()

    def run() -> None:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            for _ in range(steps):
                out = forward(images)
        if not out.isfinite().all():  # which waits for the device
            raise FloatingPointError("logits are not finite")

    return run


def capture_table(options: argparse.Namespace, backbone: str) -> tuple[str, bool]:
    """Run benchmarks/excitations.py, whose table has its own limit."""
    same = {name: getattr(options, name) for name in ("batch", "size", "rounds", "device")}
    flags = [f"--{name}={value}" for name, value in {"backbone": backbone, **same}.items()]
    command = [sys.executable, str(HERE / "excitations.py"), "--amp", *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), True


if __name__ == "__main__":
    sys.exit(main())
