"""Cost of SE for whole nets on a GPU: plain, timm's SE and SE-Lab's, eager and compiled.

Run gpu.py, which uses this module.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import traceback
from collections.abc import Callable

import timm
import torch
from measure import interleave, ratio, table
from torch import Tensor, nn

from se_lab import ModelSpec, SESpec, create_model
from se_lab.training.failures import OUT_OF_MEMORY, failure_kind

NETS = {"resnet50": "seresnet50", "resnext50_32x4d": "seresnext50_32x4d", "resnet152": "seresnet152"}
LIMITS = {"training": (1.03, 0.85), "inference": (1.10, None)}
"""Limits for SE-Lab's compiled net, relative to the compiled and the eager plain net."""


def net_table(options: argparse.Namespace, kind: str, net: str, with_se: str) -> tuple[str, bool]:
    batch = options.batch
    while (measured := net_times(options, kind, net, with_se, batch)) is None:
        if batch == 1:
            return f"{net} and SE, {kind}: not even batch 1 fits.", False
        torch.compiler.reset()  # frees compiled code
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
        pace = (f"{1000 * each:.1f}", f"{batch / each:.0f}", memory[side])
        rows.append((side, *pace, same, limits[0], eager, limits[1]))
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
    """Return seconds by round, memory, and errors of each side; None if the batch does not fit."""
    device, size = torch.device(options.device), options.size
    dense = {"zero_init_last": False}  # avoids zero gradients of branches, for which a GPU is faster
    ours = ModelSpec(net, SESpec(bias=True), fused="on", kwargs=dense)  # with biases, as in timm
    builds: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: timm.create_model(net, **dense),
        "timm's SE": lambda: timm.create_model(with_se, **dense),
        "ours": lambda: create_model(ours, 1000),
    }
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    make = training if kind == "training" else inference
    sides: dict[str, Callable[[], None]] = {}
    memory, failed = {}, {}
    for mode in ("eager", "compiled"):  # eager first, to detect a lack of memory before compiling
        for name, build in builds.items():
            side, began = f"{name}, {mode}", time.monotonic()
            try:
                model = build().to(device, memory_format=torch.channels_last)
                forward = one_graph(model, options.backend) if mode == "compiled" else model
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


def one_graph(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    """Return the net compiled as one graph; graph breaks raise an error."""
    return torch.compile(model, backend=backend, dynamic=False, fullgraph=True)


def gibibytes(run: Callable[[], None], device: torch.device) -> str:
    """Return the additional GPU memory of a run in GiB."""
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
        if not loss.isfinite():  # waits for the device
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
        if not out.isfinite().all():  # waits for the device
            raise FloatingPointError("logits are not finite")

    return run
