"""The Triton kernels of a fused SE tail that go element by element; `triton_kernels` launches them.

Channels last, a program takes a block of pixels by a block of channels; NCHW, a flat run of the tensor.
"""

# ruff: noqa: N803 (N, C and H·W are the field's names, and constants of a kernel are upper case)
# mypy: disable-error-code="no-untyped-def", allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


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
def apply(
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
    CHANNELS_LAST: tl.constexpr,
    C: tl.constexpr,
    HW: tl.constexpr,
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
def backward_input(
    dx,
    g,
    x,
    p,
    q,
    r,
    centre,
    N,
    CENTRED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    C: tl.constexpr,
    HW: tl.constexpr,
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
