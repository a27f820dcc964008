"""Launch the Triton kernels of a fused SE tail; `kernels` checks the arguments.

Tensors are dense in one of two layouts. Channels last, (N, H·W, C) in memory: a program takes a block of pixels by a
block of channels. NCHW, (N·C, H·W) in memory: reductions take a block of rows by a block of pixels; elementwise kernels
take a contiguous range of the tensor, so that loads are full vectors for odd H·W as well, and so do reductions whose
rows do not start at a multiple of 16 bytes. The base of a program is an int64, and offsets within its tile are int32,
so that the same kernels work for 2³¹ elements and more.

Arithmetic is float32 (float64 for float64 tensors), rounded once, when a result is stored. There are no atomic sums: if
an image's pixels are split among programs, each stores a partial result, and these are merged in order.
"""

# mypy: disable-error-code="no-untyped-def", allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from se_lab.units.fused import triton_pointwise as pointwise
from se_lab.units.fused import triton_reductions as reductions
from se_lab.units.fused.torch_state import uses_interpreter

INTERPRETED = uses_interpreter()
"""Whether Triton interprets kernels on the CPU; read once, as Triton does."""


def moments(x: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Return mean and biased variance over H and W of dense x, as one tensor, (2, N, C)."""
    n, c, hw = _shape(x)
    rows, parts = _split(n, c, hw, channels_last)
    partial = x.new_empty((parts, 2, n, c), dtype=dtype)
    if not channels_last and _rows_are_unaligned(x):
        _launch_rows(reductions.row_moments, x, x, partial, n)
        return partial[0]
    _launch_reduction(reductions.moments, x, channels_last, parts, x, partial, n, rows, parts == 1)
    if parts == 1:
        return partial[0]
    merged = torch.empty_like(partial[0])
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(n * c, 256),)
        reductions.merge_moments[grid](x, partial, merged, n, c, hw, parts, rows, BLOCK=256, enable_fp_fusion=True)
    return merged


def backward_moments(
    grad: Tensor, out: Tensor | None, g: Tensor, x: Tensor, mean: Tensor, channels_last: bool
) -> Tensor:
    """Return Σ g and Σ g·(x − mean) over H and W as one tensor, (2, N, C).

    With `out`, grad · [out > 0] is written to g; without, g must be grad.
    """
    n, c, hw = _shape(x)
    rows, parts = _split(n, c, hw, channels_last)
    partial = mean.new_empty((parts, 2, n, c))
    relu_out = grad if out is None else out
    if not channels_last and _rows_are_unaligned(x):
        _launch_rows(reductions.row_backward_moments, x, grad, relu_out, g, x, mean, partial, n, out is not None)
        return partial[0]
    arguments = (grad, relu_out, g, x, mean, partial, n, rows, out is not None)
    _launch_reduction(reductions.backward_moments, x, channels_last, parts, *arguments)
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
    """Write act(scale·(x − centre) + shift + shortcut) to out; coefficients are (N, C)."""
    centre_input = scale if centre is None else centre
    shortcut_input = x if shortcut is None else shortcut
    flags = (centre is not None, shortcut is not None, relu)
    _launch_pointwise(
        pointwise.apply, x, channels_last, out, x, scale, shift, centre_input, shortcut_input, x.shape[0], *flags
    )


def backward_input(
    dx: Tensor, g: Tensor, x: Tensor, p: Tensor, q: Tensor, r: Tensor, centre: Tensor | None, channels_last: bool
) -> None:
    """Write p·g + q·(x − centre) + r to dx; p, q, r and centre are (N, C)."""
    centre_input = p if centre is None else centre
    _launch_pointwise(
        pointwise.backward_input, x, channels_last, dx, g, x, p, q, r, centre_input, x.shape[0], centre is not None
    )


def _shape(x: Tensor) -> tuple[int, int, int]:
    n, c, h, w = x.shape
    return n, c, h * w


PROGRAMS = 2048
"""Number of programs of 64 channels, about 15 per multiprocessor of an H100, below which pixels are split."""


def _split(n: int, c: int, hw: int, channels_last: bool) -> tuple[int, int]:
    """Return (pixels per part, parts); only the shape matters, so that all devices sum alike."""
    if not channels_last:
        return hw, 1
    target = PROGRAMS // (n * triton.cdiv(c, 64))
    parts = max(1, min(target, triton.cdiv(hw, 64)))
    rows = triton.cdiv(triton.cdiv(hw, parts), 64) * 64 if parts > 1 else hw
    return rows, triton.cdiv(hw, rows)


MAX_ROW = 1024
"""Maximum number of pixels in a row for which eight rows fit into a program's registers."""


def _rows_are_unaligned(x: Tensor) -> bool:
    """Return whether rows of NCHW do not start at multiples of 16 bytes, and are short enough."""
    pixels = x.shape[2] * x.shape[3]
    return pixels <= MAX_ROW and pixels * x.element_size() % 16 != 0


def _launch_rows(kernel: Any, x: Tensor, *arguments: object) -> None:
    n, c, _ = _shape(x)

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(n * c, tile["BLOCK_C"]),)

    _launch(kernel, _row_tiles, x, False, grid, torch.are_deterministic_algorithms_enabled(), *arguments)


def _launch_reduction(kernel: Any, x: Tensor, channels_last: bool, parts: int, *arguments: object) -> None:
    n, c, _ = _shape(x)
    groups, columns = (n, c) if channels_last else (1, n * c)

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        return groups * triton.cdiv(columns, tile["BLOCK_C"]), parts

    # the split of a sum affects its last bits, so deterministic runs use a fixed tile
    fixed = torch.are_deterministic_algorithms_enabled()
    _launch(kernel, _reduction_tiles, x, channels_last, grid, fixed, *arguments, channels_last)


def _launch_pointwise(kernel: Any, x: Tensor, channels_last: bool, *arguments: object) -> None:
    n, c, hw = _shape(x)

    def grid(tile: dict[str, int]) -> tuple[int]:
        pixels, channels = tile["BLOCK_HW"], tile["BLOCK_C"]
        if channels_last:
            return (n * triton.cdiv(hw, pixels) * triton.cdiv(c, channels),)
        return (triton.cdiv(n * c * hw, pixels * channels),)

    _launch(kernel, _pointwise_tiles, x, channels_last, grid, False, *arguments, channels_last)


Tiles = Callable[[int, int, bool], list[triton.Config]]


def _launch(
    kernel: Any, tiles: Tiles, x: Tensor, channels_last: bool, grid: object, fixed: bool, *arguments: object
) -> None:
    n, c, hw = _shape(x)
    constants = {"C": c, "HW": hw, "enable_fp_fusion": True}
    with torch.cuda.device_of(x):
        if fixed or INTERPRETED:
            tile = tiles(c, hw, channels_last)[0]
            kernel[grid](*arguments, **constants, **tile.kwargs, num_warps=tile.num_warps)
        else:
            size = (n * c * hw).bit_length() // 2
            _tuned(kernel, tiles, c, hw, channels_last, size)[grid](*arguments, **constants)


@functools.cache
def _tuned(kernel: Any, tiles: Tiles, c: int, hw: int, channels_last: bool, size: int) -> Any:
    """Return a kernel with an autotuner for this shape, layout and approximate size."""
    clock = functools.partial(triton.testing.do_bench, warmup=5, rep=25)
    return triton.autotune(configs=tiles(c, hw, channels_last), key=[], do_bench=clock)(kernel)


def _reduction_tiles(c: int, hw: int, channels_last: bool) -> list[triton.Config]:
    if channels_last:
        shapes = [(32, 64, 4, 1), (32, 64, 8, 3), (64, 64, 8, 1), (16, 128, 4, 3), (32, 128, 8, 1), (64, 32, 4, 1)]
        return _configs(shapes, c, hw)
    block = triton.next_power_of_2(hw)
    sizes = ((1024, 4), (2048, 4), (4096, 8))
    shapes = [
        (pixels, size // pixels, warps, 1)
        for pixels in (min(block, 1024), min(block, 4096), min(block, 256))
        for size, warps in sizes
        if pixels <= size
    ]
    return _configs(shapes, c, hw)


def _row_tiles(c: int, hw: int, channels_last: bool) -> list[triton.Config]:
    block = triton.next_power_of_2(hw)
    shapes = [(block, max(8, size // block), warps, 0) for size, warps in ((2048, 4), (4096, 8), (1024, 4), (8192, 8))]
    return _configs(list(dict.fromkeys(shapes)), 2**16, hw)


def _pointwise_tiles(c: int, hw: int, channels_last: bool) -> list[triton.Config]:
    if channels_last:
        shapes = [(32, 64, 4, 0), (64, 64, 8, 0), (16, 128, 4, 0), (32, 128, 8, 0), (16, 256, 8, 0), (64, 32, 4, 0)]
        return _configs(shapes, c, hw)
    return _configs([(1, 1024, 4, 0), (1, 2048, 4, 0), (1, 2048, 8, 0), (1, 4096, 8, 0)], 4096, 1)


def _configs(shapes: list[tuple[int, int, int, int]], c: int, hw: int) -> list[triton.Config]:
    """Return distinct configurations for (pixels, channels, warps, stages), cut to the tensor."""
    most_c, most_hw = triton.next_power_of_2(c), triton.next_power_of_2(hw)
    tiles = dict.fromkeys((min(hw_, most_hw), min(c_, most_c), warps, stages) for hw_, c_, warps, stages in shapes)
    return [
        triton.Config(
            {"BLOCK_HW": pixels, "BLOCK_C": channels} | ({"STAGES": stages} if stages else {}), num_warps=warps
        )
        for pixels, channels, warps, stages in tiles
    ]
