"""The four passes of a fused SE tail as Triton kernels: no checks here, `se_lab.units.fused.kernels` is the way in.

A tensor is dense in one of two layouts. Channels last, (N, H·W, C) in memory: a program takes a block of pixels by a
block of channels. NCHW, (N·C, H·W) in memory: reductions take a block of rows by a block of pixels, and what goes
element by element takes a flat run of the tensor, so that odd H·W still moves in whole vectors. A program's base is an
int64, offsets within its tile are int32: tensors of 2³¹ elements and more need no kernels of their own.

Arithmetic is float32 (float64 for float64 tensors), rounded once, where a result is stored. Nothing is added
atomically: where an image's pixels are split over programs, each stores its part and the parts are merged in order.
"""

# ruff: noqa: N803 (N, C and H·W are the field's names, and constants of a kernel are upper case)
# mypy: disable-error-code="no-untyped-def", allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Whether Triton runs kernels on the CPU, one operation after another, in NumPy: Triton reads it once, as we do."""


def moments(x: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Return mean and biased variance over H and W of dense x, (N, C, H, W), as one tensor, (2, N, C), of dtype."""
    n, c, hw = _shape(x)
    rows, parts = _split(n, c, hw, channels_last)
    partial = x.new_empty((parts, 2, n, c), dtype=dtype)
    _launch_reduction(_moments, x, channels_last, parts, x, partial, n, rows, parts == 1)
    if parts == 1:
        return partial[0]
    merged = torch.empty_like(partial[0])
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(n * c, 256),)
        _merge_moments[grid](x, partial, merged, n, c, hw, parts, rows, BLOCK=256, enable_fp_fusion=True)
    return merged


def backward_moments(
    grad: Tensor, out: Tensor | None, g: Tensor, x: Tensor, mean: Tensor, channels_last: bool
) -> Tensor:
    """Return Σ g and Σ g·(x − mean) over H and W as one tensor, (2, N, C).

    With `out`, g is grad where out is above 0, and is written; without, g is grad.
    """
    n, c, hw = _shape(x)
    rows, parts = _split(n, c, hw, channels_last)
    partial = mean.new_empty((parts, 2, n, c))
    masked = grad if out is None else out
    arguments = (grad, masked, g, x, mean, partial, n, rows, out is not None)
    _launch_reduction(_backward_moments, x, channels_last, parts, *arguments)
    return partial[0] if parts == 1 else partial.sum(0)


def apply(
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    centre: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    channels_last: bool,
) -> None:
    """Write act(scale·(x − centre) + shift + shortcut) to out; scale, shift and centre are (N, C)."""
    off = scale if centre is None else centre
    added = x if shortcut is None else shortcut
    flags = (centre is not None, shortcut is not None, relu)
    _launch_pointwise(_apply, x, channels_last, out, x, scale, shift, off, added, x.shape[0], *flags)


def backward_input(
    dx: Tensor, g: Tensor, x: Tensor, p: Tensor, q: Tensor, r: Tensor, centre: Tensor | None, channels_last: bool
) -> None:
    """Write p·g + q·(x − centre) + r to dx; p, q, r and centre are (N, C)."""
    off = p if centre is None else centre
    _launch_pointwise(_backward_input, x, channels_last, dx, g, x, p, q, r, off, x.shape[0], centre is not None)


def _shape(x: Tensor) -> tuple[int, int, int]:
    n, c, h, w = x.shape
    return n, c, h * w


PROGRAMS = 2048
"""With fewer programs of 64 channels, some 15 for each multiprocessor of an H100, an image's pixels are split."""


def _split(n: int, c: int, hw: int, channels_last: bool) -> tuple[int, int]:
    """Return (pixels a part, parts): a function of the shape alone, so that a sum is the same on every device."""
    if not channels_last:
        return hw, 1
    wanted = PROGRAMS // (n * triton.cdiv(c, 64))
    parts = max(1, min(wanted, triton.cdiv(hw, 64)))
    rows = triton.cdiv(triton.cdiv(hw, parts), 64) * 64 if parts > 1 else hw
    return rows, triton.cdiv(hw, rows)


def _launch_reduction(kernel: Any, x: Tensor, channels_last: bool, parts: int, *arguments: object) -> None:
    n, c, _ = _shape(x)
    groups, columns = (n, c) if channels_last else (1, n * c)

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        return groups * triton.cdiv(columns, tile["BLOCK_C"]), parts

    # how a sum is split decides its last bits, so where runs must repeat no clock chooses the tile
    fixed = torch.are_deterministic_algorithms_enabled()
    _launch(kernel, _reduction_tiles, x, channels_last, grid, fixed, *arguments)


def _launch_pointwise(kernel: Any, x: Tensor, channels_last: bool, *arguments: object) -> None:
    n, c, hw = _shape(x)

    def grid(tile: dict[str, int]) -> tuple[int]:
        down, across = tile["BLOCK_HW"], tile["BLOCK_C"]
        if channels_last:
            return (n * triton.cdiv(hw, down) * triton.cdiv(c, across),)
        return (triton.cdiv(n * c * hw, down * across),)

    _launch(kernel, _pointwise_tiles, x, channels_last, grid, False, *arguments)


Tiles = Callable[[int, int, bool], list[triton.Config]]


def _launch(
    kernel: Any, tiles: Tiles, x: Tensor, channels_last: bool, grid: object, fixed: bool, *arguments: object
) -> None:
    n, c, hw = _shape(x)
    constants = {"C": c, "HW": hw, "CHANNELS_LAST": channels_last, "enable_fp_fusion": True}
    with torch.cuda.device_of(x):
        if fixed or INTERPRETED:
            tile = tiles(c, hw, channels_last)[0]
            kernel[grid](*arguments, **constants, **tile.kwargs, num_warps=tile.num_warps)
        else:
            size = (n * c * hw).bit_length() // 2
            _tuned(kernel, tiles, c, hw, channels_last, size)[grid](*arguments, **constants)


@functools.cache
def _tuned(kernel: Any, tiles: Tiles, c: int, hw: int, channels_last: bool, size: int) -> Any:
    """Return the kernel with its autotuner: one for each shape, layout and power of 4 of elements."""
    clock = functools.partial(triton.testing.do_bench, warmup=5, rep=25)
    return triton.autotune(configs=tiles(c, hw, channels_last), key=[], do_bench=clock)(kernel)


def _reduction_tiles(c: int, hw: int, channels_last: bool) -> list[triton.Config]:
    if channels_last:
        shapes = [(32, 64, 4, 1), (32, 64, 8, 3), (64, 64, 8, 1), (16, 128, 4, 3), (32, 128, 8, 1), (64, 32, 4, 1)]
        return _configs(shapes, c, hw)
    whole = triton.next_power_of_2(hw)
    sizes = ((1024, 4), (2048, 4), (4096, 8))
    shapes = [
        (pixels, size // pixels, warps, 1)
        for pixels in (min(whole, 1024), min(whole, 4096), min(whole, 256))
        for size, warps in sizes
        if pixels <= size
    ]
    return _configs(shapes, c, hw)


def _pointwise_tiles(c: int, hw: int, channels_last: bool) -> list[triton.Config]:
    if channels_last:
        shapes = [(32, 64, 4, 0), (64, 64, 8, 0), (16, 128, 4, 0), (32, 128, 8, 0), (16, 256, 8, 0), (64, 32, 4, 0)]
        return _configs(shapes, c, hw)
    return _configs([(1, 1024, 4, 0), (1, 2048, 4, 0), (1, 2048, 8, 0), (1, 4096, 8, 0)], 4096, 1)


def _configs(shapes: list[tuple[int, int, int, int]], c: int, hw: int) -> list[triton.Config]:
    """Return a configuration for each (pixels, channels, warps, stages), cut to the tensor, each once."""
    most_c, most_hw = triton.next_power_of_2(c), triton.next_power_of_2(hw)
    cut = dict.fromkeys((min(hw_, most_hw), min(c_, most_c), warps, stages) for hw_, c_, warps, stages in shapes)
    return [
        triton.Config(
            {"BLOCK_HW": pixels, "BLOCK_C": channels} | ({"STAGES": stages} if stages else {}), num_warps=warps
        )
        for pixels, channels, warps, stages in cut
    ]


@triton.jit
def _columns(N, C: tl.constexpr, HW: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a reduction's columns: the first one's base, their offsets from it, their index n·C + c, and a mask.

    Images come last to first: what the kernel before wrote last, or the kernel after reads first, is then in the cache.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    column = tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
        n = (block // blocks).to(tl.int64)
        column += block % blocks * BLOCK_C
        base, offset, index, inside = n * (HW * C), column, n * C + column, column < C
    else:
        first = block.to(tl.int64) * BLOCK_C
        base, offset, index, inside = first * HW, column * HW, first + column, first + column < N.to(tl.int64) * C
    return base, offset, index, inside


@triton.jit(do_not_specialize=["N", "rows"])
def _moments(
    x,
    partial,
    N,
    rows,
    WHOLE: tl.constexpr,
    C: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and variance of the pixels [part · rows, (part + 1) · rows).

    Each lane of the tile goes through its pixels by Welford's recurrence, and Chan's formula merges the lanes. Both
    work on x less the column's first pixel, so that a mean far above the deviation costs no digits; parts that are
    still to be merged keep their means so.
    """
    accumulator: tl.constexpr = partial.dtype.element_ty
    step: tl.constexpr = C if CHANNELS_LAST else 1
    base, across, index, inside = _columns(N, C, HW, CHANNELS_LAST, BLOCK_C)
    part = tl.program_id(1)
    length = tl.minimum(HW - part * rows, rows) if CHANNELS_LAST else HW  # NCHW: one part, and its masks are known
    pivot = tl.load(x + base + across, mask=inside, other=0).to(accumulator)
    if CHANNELS_LAST:
        base += part.to(tl.int64) * rows * step
    down = tl.arange(0, BLOCK_HW)
    offsets = down[:, None] * step + across[None, :]

    mean = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    squares = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    seen = tl.full((), 0, accumulator)
    for start in tl.range(0, length, BLOCK_HW, num_stages=STAGES):
        valid = (start + down < length)[:, None] & inside[None, :]
        value = tl.load(x + base + offsets, mask=valid, other=0).to(accumulator) - pivot[None, :]
        base += BLOCK_HW * step
        seen += 1
        delta = tl.where(valid, value - mean, 0)
        mean += delta * (1 / seen)
        squares += delta * (value - mean)

    pixels = tl.full((), length, accumulator)
    count = ((length - down + BLOCK_HW - 1) // BLOCK_HW).to(accumulator)
    count = tl.where(down < length, count, 0)[:, None]
    shift = tl.sum(count * mean, axis=0) / pixels
    apart = mean - shift[None, :]
    variance = tl.sum(squares + count * apart * apart, axis=0) / pixels
    channels = N.to(tl.int64) * C
    result = partial + part.to(tl.int64) * 2 * channels + index
    tl.store(result, pivot + shift if WHOLE else shift, mask=inside)
    tl.store(result + channels, variance, mask=inside)


@triton.jit(do_not_specialize=["N", "C", "HW", "parts", "rows"])
def _merge_moments(x, partial, merged, N, C, HW, parts, rows, BLOCK: tl.constexpr):
    """Merge the parts of each column of channels-last x by Chan's formula, in order."""
    accumulator: tl.constexpr = merged.dtype.element_ty
    columns = N.to(tl.int64) * C
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < columns
    source = partial + index
    before = tl.minimum(rows, HW)
    mean = tl.load(source, mask=inside, other=0)
    squares = tl.load(source + columns, mask=inside, other=0) * before.to(accumulator)
    for _ in range(1, parts):
        source += 2 * columns
        length = tl.minimum(HW - before, rows)
        share = length.to(accumulator) / (before + length).to(accumulator)
        delta = tl.load(source, mask=inside, other=0) - mean
        squares += tl.load(source + columns, mask=inside, other=0) * length.to(accumulator)
        squares += delta * delta * (before.to(accumulator) * share)
        mean += delta * share
        before += length
    pivot = tl.load(x + index // C * HW * C + index % C, mask=inside, other=0).to(accumulator)
    tl.store(merged + index, pivot + mean, mask=inside)
    tl.store(merged + columns + index, squares / HW.to(accumulator), mask=inside)


@triton.jit(do_not_specialize=["N", "rows"])
def _backward_moments(
    grad,
    out,
    g,
    x,
    mean,
    partial,
    N,
    rows,
    RELU: tl.constexpr,
    C: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Where the ReLU let through, g; Σ g and Σ g·(x − mean) of the pixels [part · rows, (part + 1) · rows)."""
    accumulator: tl.constexpr = partial.dtype.element_ty
    step: tl.constexpr = C if CHANNELS_LAST else 1
    base, across, index, inside = _columns(N, C, HW, CHANNELS_LAST, BLOCK_C)
    part = tl.program_id(1)
    length = tl.minimum(HW - part * rows, rows) if CHANNELS_LAST else HW  # NCHW: one part, and its masks are known
    if CHANNELS_LAST:
        base += part.to(tl.int64) * rows * step
    centre = tl.load(mean + index, mask=inside, other=0).to(accumulator)
    down = tl.arange(0, BLOCK_HW)
    offsets = down[:, None] * step + across[None, :]

    total = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    product = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    for start in tl.range(0, length, BLOCK_HW, num_stages=STAGES):
        valid = (start + down < length)[:, None] & inside[None, :]
        value = tl.load(grad + base + offsets, mask=valid, other=0).to(accumulator)
        if RELU:
            # as PyTorch does: what is no number counts as let through, so that it stays visible
            shut = tl.load(out + base + offsets, mask=valid, other=0).to(accumulator) <= 0
            value = tl.where(shut, 0, value)
            tl.store(g + base + offsets, value.to(g.dtype.element_ty), mask=valid)
        apart = tl.load(x + base + offsets, mask=valid, other=0).to(accumulator) - centre[None, :]
        base += BLOCK_HW * step
        total += value
        product = tl.fma(value, apart, product)

    channels = N.to(tl.int64) * C
    result = partial + part.to(tl.int64) * 2 * channels + index
    tl.store(result, tl.sum(total, axis=0), mask=inside)
    tl.store(result + channels, tl.sum(product, axis=0), mask=inside)


@triton.jit
def _elements(
    N,
    C: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return a tile's elements (the first one's base, offsets from it, a mask), and the same of their n·C + c."""
    block = tl.program_id(0)
    if CHANNELS_LAST:
        across: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
        down: tl.constexpr = (HW + BLOCK_HW - 1) // BLOCK_HW
        n = (block // (across * down)).to(tl.int64)
        top = block // across % down * BLOCK_HW
        row = tl.arange(0, BLOCK_HW)[:, None]
        index = block % across * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        first, known = n * C, index < C
        base, offset, inside = (n * HW + top) * C, row * C + index, (top + row < HW) & known
    else:
        base = block.to(tl.int64) * (BLOCK_HW * BLOCK_C)
        offset = tl.arange(0, BLOCK_HW * BLOCK_C)
        inside = offset < N.to(tl.int64) * (C * HW) - base
        first, index, known = base // HW, ((base % HW).to(tl.int32) + offset) // HW, inside
    return base, offset, inside, first, index, known


@triton.jit(do_not_specialize=["N"])
def _apply(
    out,
    x,
    scale,
    shift,
    centre,
    shortcut,
    N,
    CENTRED: tl.constexpr,
    SHORTCUT: tl.constexpr,
    RELU: tl.constexpr,
    C: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """act(scale·(x − centre) + shift + shortcut)."""
    accumulator: tl.constexpr = scale.dtype.element_ty
    base, offsets, inside, first, index, known = _elements(N, C, HW, CHANNELS_LAST, BLOCK_HW, BLOCK_C)
    a = tl.load(scale + first + index, mask=known, other=0)
    b = tl.load(shift + first + index, mask=known, other=0)
    value = tl.load(x + base + offsets, mask=inside, other=0).to(accumulator)
    if CENTRED:
        value -= tl.load(centre + first + index, mask=known, other=0)
    value = tl.fma(a, value, b)
    if SHORTCUT:
        value += tl.load(shortcut + base + offsets, mask=inside, other=0).to(accumulator)
    if RELU:
        value = tl.where(value < 0, 0, value)  # tl.maximum would turn what is no number into 0
    tl.store(out + base + offsets, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])
def _backward_input(
    dx,
    g,
    x,
    p,
    q,
    r,
    centre,
    N,
    CENTRED: tl.constexpr,
    C: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """p·g + q·(x − centre) + r."""
    accumulator: tl.constexpr = p.dtype.element_ty
    base, offsets, inside, first, index, known = _elements(N, C, HW, CHANNELS_LAST, BLOCK_HW, BLOCK_C)
    a = tl.load(p + first + index, mask=known, other=0)
    b = tl.load(q + first + index, mask=known, other=0)
    c = tl.load(r + first + index, mask=known, other=0)
    value = tl.load(x + base + offsets, mask=inside, other=0).to(accumulator)
    if CENTRED:
        value -= tl.load(centre + first + index, mask=known, other=0)
    value = tl.fma(b, value, c)
    value = tl.fma(a, tl.load(g + base + offsets, mask=inside, other=0).to(accumulator), value)
    tl.store(dx + base + offsets, value.to(dx.dtype.element_ty), mask=inside)
