"""The Triton kernels of a fused SE tail that sum over pixels.

In channels last, or if each row of NCHW starts at a multiple of 16 bytes, tiles are loaded in full vectors. Rows of 7×7
or 14×14 pixels are not aligned: for these, a program loads a range of whole rows and rearranges it in shared memory.
"""

# ruff: noqa: N803 (N, C and H·W are the field's names, and constants of a kernel are upper case)
# mypy: disable-error-code="no-untyped-def", allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _columns(N, C: tl.constexpr, HW: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return base, offsets, indices n·C + c, and mask of a reduction's columns.

    Images are processed last to first, since the last ones written by the previous kernel are still in the cache.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    column = tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
        n = (block // blocks).to(tl.int64)
        column += block % blocks * BLOCK_C
        base, offset, index, mask = n * (HW * C), column, n * C + column, column < C
    else:
        first = block.to(tl.int64) * BLOCK_C
        base, offset, index, mask = first * HW, column * HW, first + column, first + column < N.to(tl.int64) * C
    return base, offset, index, mask


@triton.jit(do_not_specialize=["N", "rows"])
def moments(
    x, partial, N, rows,
    WHOLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store mean and variance of the pixels [part · rows, (part + 1) · rows).

    Each lane of the tile uses Welford's recurrence for its pixels, and Chan's formula merges the lanes. The column's
    first pixel is subtracted from x, so that a mean far above the deviation loses no digits; it is also subtracted
    from the means of parts that will be merged.
    """
    accumulator: tl.constexpr = partial.dtype.element_ty
    step: tl.constexpr = C if CHANNELS_LAST else 1
    base, column, index, mask = _columns(N, C, HW, CHANNELS_LAST, BLOCK_C)
    part = tl.program_id(1)
    length = tl.minimum(HW - part * rows, rows) if CHANNELS_LAST else HW  # NCHW: one part, and its masks are known
    pivot = tl.load(x + base + column, mask=mask, other=0).to(accumulator)
    if CHANNELS_LAST:
        base += part.to(tl.int64) * rows * step
    lane = tl.arange(0, BLOCK_HW)
    offsets = lane[:, None] * step + column[None, :]

    mean = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    squares = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    tiles = tl.full((), 0, accumulator)
    for start in tl.range(0, length, BLOCK_HW, num_stages=STAGES):
        valid = (start + lane < length)[:, None] & mask[None, :]
        value = tl.load(x + base + offsets, mask=valid, other=0).to(accumulator) - pivot[None, :]
        base += BLOCK_HW * step
        tiles += 1
        delta = tl.where(valid, value - mean, 0)
        mean += delta * (1 / tiles)
        squares += delta * (value - mean)

    pixels = tl.full((), length, accumulator)
    count = ((length - lane + BLOCK_HW - 1) // BLOCK_HW).to(accumulator)
    count = tl.where(lane < length, count, 0)[:, None]
    shift = tl.sum(count * mean, axis=0) / pixels
    difference = mean - shift[None, :]
    variance = tl.sum(squares + count * difference * difference, axis=0) / pixels
    channels = N.to(tl.int64) * C
    result = partial + part.to(tl.int64) * 2 * channels + index
    tl.store(result, pivot + shift if WHOLE else shift, mask=mask)
    tl.store(result + channels, variance, mask=mask)


@triton.jit(do_not_specialize=["N", "C", "HW", "parts", "rows"])
def merge_moments(x, partial, merged, N, C, HW, parts, rows, BLOCK: tl.constexpr):
    """Merge the parts of each column of channels-last x by Chan's formula, in order."""
    accumulator: tl.constexpr = merged.dtype.element_ty
    columns = N.to(tl.int64) * C
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < columns
    source = partial + index
    pixels = tl.minimum(rows, HW)
    mean = tl.load(source, mask=mask, other=0)
    squares = tl.load(source + columns, mask=mask, other=0) * pixels.to(accumulator)
    for _ in range(1, parts):
        source += 2 * columns
        length = tl.minimum(HW - pixels, rows)
        share = length.to(accumulator) / (pixels + length).to(accumulator)
        delta = tl.load(source, mask=mask, other=0) - mean
        squares += tl.load(source + columns, mask=mask, other=0) * length.to(accumulator)
        squares += delta * delta * (pixels.to(accumulator) * share)
        mean += delta * share
        pixels += length
    pivot = tl.load(x + index // C * HW * C + index % C, mask=mask, other=0).to(accumulator)
    tl.store(merged + index, pivot + mean, mask=mask)
    tl.store(merged + columns + index, squares / HW.to(accumulator), mask=mask)


@triton.jit(do_not_specialize=["N", "rows"])
def backward_moments(
    grad, out, g, x, mean, partial, N, rows,
    RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store g (with RELU), Σ g and Σ g·(x − mean) of pixels [part · rows, (part + 1) · rows)."""
    accumulator: tl.constexpr = partial.dtype.element_ty
    step: tl.constexpr = C if CHANNELS_LAST else 1
    base, column, index, mask = _columns(N, C, HW, CHANNELS_LAST, BLOCK_C)
    part = tl.program_id(1)
    length = tl.minimum(HW - part * rows, rows) if CHANNELS_LAST else HW  # NCHW: one part, and its masks are known
    if CHANNELS_LAST:
        base += part.to(tl.int64) * rows * step
    centre = tl.load(mean + index, mask=mask, other=0).to(accumulator)
    lane = tl.arange(0, BLOCK_HW)
    offsets = lane[:, None] * step + column[None, :]

    total = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    product = tl.zeros((BLOCK_HW, BLOCK_C), accumulator)
    for start in tl.range(0, length, BLOCK_HW, num_stages=STAGES):
        valid = (start + lane < length)[:, None] & mask[None, :]
        value = tl.load(grad + base + offsets, mask=valid, other=0).to(accumulator)
        if RELU:
            # as in PyTorch, NaN is kept
            is_zero = tl.load(out + base + offsets, mask=valid, other=0).to(accumulator) <= 0
            value = tl.where(is_zero, 0, value)
            tl.store(g + base + offsets, value.to(g.dtype.element_ty), mask=valid)
        difference = tl.load(x + base + offsets, mask=valid, other=0).to(accumulator) - centre[None, :]
        base += BLOCK_HW * step
        total += value
        product = tl.fma(value, difference, product)

    channels = N.to(tl.int64) * C
    result = partial + part.to(tl.int64) * 2 * channels + index
    tl.store(result, tl.sum(total, axis=0), mask=mask)
    tl.store(result + channels, tl.sum(product, axis=0), mask=mask)


@triton.jit
def _rows(N, C: tl.constexpr, HW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr):
    """Return the first row, n·C + c, offsets and mask of a range of BLOCK_C rows of NCHW."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * BLOCK_C
    rows = tl.minimum(N.to(tl.int64) * C - first, BLOCK_C).to(tl.int32)
    flat = tl.arange(0, BLOCK_C * BLOCK_HW)
    return first, flat, flat < rows * HW


@triton.jit
def _by_row(flat, HW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HW: tl.constexpr):
    """Return a range of rows as (BLOCK_C, BLOCK_HW), with zeros after the HW pixels of each row."""
    pixel = tl.arange(0, BLOCK_HW)[None, :]
    source = tl.arange(0, BLOCK_C)[:, None] * HW + tl.minimum(pixel, HW - 1)
    rows = tl.reshape(tl.gather(flat, tl.reshape(source, (BLOCK_C * BLOCK_HW,)), 0), (BLOCK_C, BLOCK_HW))
    return tl.where(pixel < HW, rows, 0)


@triton.jit(do_not_specialize=["N"])
def row_moments(x, result, N, C: tl.constexpr, HW: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr):
    """Store mean and variance of whole rows of NCHW, with all pixels of a row in registers.

    The mean is corrected by the mean of the differences, so that a mean far above the deviation loses no digits.
    """
    accumulator: tl.constexpr = result.dtype.element_ty
    first, flat, mask = _rows(N, C, HW, BLOCK_C, BLOCK_HW)
    value = _by_row(tl.load(x + first * HW + flat, mask=mask, other=0).to(accumulator), HW, BLOCK_C, BLOCK_HW)
    pixel_mask = tl.arange(0, BLOCK_HW)[None, :] < HW
    estimate = tl.sum(value, axis=1) / HW
    difference = tl.where(pixel_mask, value - estimate[:, None], 0)
    shift = tl.sum(difference, axis=1) / HW
    difference = tl.where(pixel_mask, difference - shift[:, None], 0)
    variance = tl.sum(difference * difference, axis=1) / HW
    row = first + tl.arange(0, BLOCK_C)
    rows = N.to(tl.int64) * C
    tl.store(result + row, estimate + shift, mask=row < rows)
    tl.store(result + rows + row, variance, mask=row < rows)


@triton.jit(do_not_specialize=["N"])
def row_backward_moments(
    grad, out, g, x, mean, result, N,
    RELU: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Store the results of `backward_moments` for whole rows of NCHW."""
    accumulator: tl.constexpr = result.dtype.element_ty
    first, flat, mask = _rows(N, C, HW, BLOCK_C, BLOCK_HW)
    base = first * HW
    value = tl.load(grad + base + flat, mask=mask, other=0).to(accumulator)
    if RELU:
        is_zero = tl.load(out + base + flat, mask=mask, other=0).to(accumulator) <= 0  # NaN is kept
        value = tl.where(is_zero, 0, value)
        tl.store(g + base + flat, value.to(g.dtype.element_ty), mask=mask)
    difference = tl.load(x + base + flat, mask=mask, other=0).to(accumulator)
    difference -= tl.load(mean + first + flat // HW, mask=mask, other=0)
    row = first + tl.arange(0, BLOCK_C)
    rows = N.to(tl.int64) * C
    tl.store(result + row, tl.sum(_by_row(value, HW, BLOCK_C, BLOCK_HW), axis=1), mask=row < rows)
    product = tl.sum(_by_row(value * difference, HW, BLOCK_C, BLOCK_HW), axis=1)
    tl.store(result + rows + row, product, mask=row < rows)
