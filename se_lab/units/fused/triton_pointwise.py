"""The elementwise Triton kernels of a fused SE tail.

In channels last, a program takes a block of pixels by a block of channels; in NCHW, a contiguous range of the tensor.
"""

# ruff: noqa: N803 (N, C and H·W are the field's names, and constants of a kernel are upper case)
# mypy: disable-error-code="no-untyped-def", allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _elements(
    N,
    C: tl.constexpr, HW: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return base, offsets and mask of a tile's elements, and the same of their indices n·C + c."""
    block = tl.program_id(0)
    if CHANNELS_LAST:
        column_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
        row_blocks: tl.constexpr = (HW + BLOCK_HW - 1) // BLOCK_HW
        n = (block // (column_blocks * row_blocks)).to(tl.int64)
        top = block // column_blocks % row_blocks * BLOCK_HW
        row = tl.arange(0, BLOCK_HW)[:, None]
        index = block % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        first, index_mask = n * C, index < C
        base, offset, mask = (n * HW + top) * C, row * C + index, (top + row < HW) & index_mask
    else:
        base = block.to(tl.int64) * (BLOCK_HW * BLOCK_C)
        offset = tl.arange(0, BLOCK_HW * BLOCK_C)
        mask = offset < N.to(tl.int64) * (C * HW) - base
        first, index, index_mask = base // HW, ((base % HW).to(tl.int32) + offset) // HW, mask
    return base, offset, mask, first, index, index_mask


@triton.jit(do_not_specialize=["N"])
def apply(
    out, x, scale, shift, centre, shortcut, N,
    CENTRED: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, C: tl.constexpr,
    HW: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Store act(scale·(x − centre) + shift + shortcut)."""
    accumulator: tl.constexpr = scale.dtype.element_ty
    base, offsets, mask, first, index, index_mask = _elements(N, C, HW, CHANNELS_LAST, BLOCK_HW, BLOCK_C)
    a = tl.load(scale + first + index, mask=index_mask, other=0)
    b = tl.load(shift + first + index, mask=index_mask, other=0)
    value = tl.load(x + base + offsets, mask=mask, other=0).to(accumulator)
    if CENTRED:
        value -= tl.load(centre + first + index, mask=index_mask, other=0)
    value = tl.fma(a, value, b)
    if SHORTCUT:
        value += tl.load(shortcut + base + offsets, mask=mask, other=0).to(accumulator)
    if RELU:
        value = tl.where(value < 0, 0, value)  # tl.maximum would turn NaN into 0
    tl.store(out + base + offsets, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N"])
def backward_input(
    dx, g, x, p, q, r, centre, N,
    CENTRED: tl.constexpr, CHANNELS_LAST: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Store p·g + q·(x − centre) + r."""
    accumulator: tl.constexpr = p.dtype.element_ty
    base, offsets, mask, first, index, index_mask = _elements(N, C, HW, CHANNELS_LAST, BLOCK_HW, BLOCK_C)
    a = tl.load(p + first + index, mask=index_mask, other=0)
    b = tl.load(q + first + index, mask=index_mask, other=0)
    c = tl.load(r + first + index, mask=index_mask, other=0)
    value = tl.load(x + base + offsets, mask=mask, other=0).to(accumulator)
    if CENTRED:
        value -= tl.load(centre + first + index, mask=index_mask, other=0)
    value = tl.fma(b, value, c)
    value = tl.fma(a, tl.load(g + base + offsets, mask=mask, other=0).to(accumulator), value)
    tl.store(dx + base + offsets, value.to(dx.dtype.element_ty), mask=mask)
