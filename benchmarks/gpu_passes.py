"""The passes of the fused tail on a GPU: error against float64, time, and bandwidth.

Run gpu.py, which uses this module.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from measure import table
from torch import Tensor

from se_lab.units.fused import kernels

SHAPES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
"""Channels and size of the block outputs of ResNet-50 and ResNeXt-50 at 224 px, by stage."""
LAYOUTS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}


class Pass(NamedTuple):
    """One of the four passes, with its formula."""

    crossings: int
    """Number of reads and writes of tensors with the size of x."""
    ours: Callable[..., tuple[Tensor, ...]]
    formula: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    plain: torch.dtype
    """dtype of plain PyTorch: float32 for statistics, as in BatchNorm, else that of x."""


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


def normal(shape: tuple[int, ...], device: str, layout: str) -> Tensor:
    """Return normally distributed numbers, the same in each run."""
    seeded = torch.Generator(device).manual_seed(1)
    x = torch.empty(shape, device=device, dtype=torch.bfloat16, memory_format=LAYOUTS[layout])
    return x.normal_(generator=seeded)


def kernel_table(options: argparse.Namespace, layout: str) -> tuple[str, bool]:
    columns = ("shape", "pass", "error", "plain's", "within", "µs", "of copy bandwidth", "µs, tile not tuned")
    rows, all_within = [], True
    for channels, side in options.shapes:
        shape = (options.batch, channels, side, side)
        x = normal(shape, options.device, layout).add_(10)
        target = torch.empty_like(x)
        copy = milliseconds(lambda: target.copy_(x), x.device) / 2  # noqa: B023 (called at once)
        for label, one in passes(x).items():
            tuned = milliseconds(lambda: one.ours(*one.tensors), x.device)  # noqa: B023
            fixed = ""
            if label.endswith("moments"):
                with repeatable():
                    fixed = f"{1000 * milliseconds(lambda: one.ours(*one.tensors), x.device):.1f}"  # noqa: B023
            *errors_of, within = judged(one)
            all_within = all_within and within
            share = one.crossings * copy / tuned
            rows.append(("×".join(map(str, shape)), label, *errors_of, f"{1000 * tuned:.1f}", f"{share:.0%}", fixed))
    title = (
        f"Each pass in bfloat16, {layout}: largest error over largest value, against float64, within twice that of "
        "plain PyTorch or a unit in the last place; share of the bandwidth of a copy."
    )
    return title + "\n\n" + table(columns, rows), all_within


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Use deterministic algorithms, without autotuning, but without filling new memory."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def judged(one: Pass) -> tuple[str, str, str, bool]:
    """Return relative errors of a pass and of plain PyTorch, and whether the pass is accurate."""
    found = [(ours, max(2 * plain, least), plain) for ours, plain, least in errors(one)]
    ours, limit, plain = max(found, key=lambda one: float("inf") if one[0] != one[0] else one[0] / one[1])
    within = ours <= limit
    return f"{ours:.1e}", f"{plain:.1e}", "yes" if within else "NO", within


def errors(one: Pass, images: int = 16) -> list[tuple[float, float, float]]:
    """Return relative errors of a pass and of plain PyTorch, and the resolution, by result."""
    for spoilt in one.ours(*one.tensors):
        spoilt.fill_(float("nan"))  # the next call reuses this memory, so values that it does not write are NaN
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
            top.append(torch.stack([value.abs().amax() for value in values]))  # amax propagates NaN
    largest, ours, plain = (torch.stack(top).amax(0).tolist() for top in tops)
    units = [2.0**-7 if result.dtype == torch.bfloat16 else 2.0**-21 for result in found]
    return [(a / top, b / top, unit) for a, b, top, unit in zip(ours, plain, largest, units, strict=True)]


def long_table(options: argparse.Namespace, layout: str) -> tuple[str, bool]:
    """Check the passes on a tensor with offsets of more than 32 bits."""
    shape = (2**31 // (64 * 112 * 112) + 2, 64, 112, 112) if options.device == "cuda" else (3, 5, 4, 4)
    x = normal(shape, options.device, layout)
    found = {label: judged(one) for label, one in passes(x).items()}
    rows = [(label, *columns) for label, (*columns, _) in found.items()]
    heading = ("pass", "error", "plain's", "within")
    title = f"On {'×'.join(map(str, shape))}, more than 2³¹ elements, {layout}:"
    return title + "\n\n" + table(heading, rows), all(within for *_, within in found.values())


def milliseconds(function: Callable[[], object], device: torch.device, repeats: int = 30) -> float:
    """Return the time of a function on the device in ms, without launching by Python."""
    function()
    if device.type != "cuda":
        began = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - began)
    function()
    other = torch.zeros(2**26, device=device)  # reading 256 MiB evicts all other data from the cache
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize()
    torch.cuda._sleep(2**26)  # about 35 ms, in which Python launches the calls ahead of the device
    for before, after in events:
        other.sum()
        before.record()
        function()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in events)
