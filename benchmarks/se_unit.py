"""Cost of an SE unit: `python benchmarks/se_unit.py`, half a minute on two cores.

Runs the tail of a residual block, BN → [SE] → add → ReLU, and the SE unit only, forward and backward (training) or
forward with running statistics (inference): without SE, with timm's SE, and with SE-Lab's plain and fused units, in
turn. The time of a copy of the map is given for comparison. Goals: a fused tail as fast as one without SE in training,
and an SE unit in half the time of timm's for bfloat16 inference.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from measure import interleave, ratio, table
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

from se_lab.training.process import prepare
from se_lab.units.fused import units
from se_lab.units.squeeze_excite import SqueezeExcite

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
LIMITS = {("unit", "bf16", "inference"): "≤ 0.5 × timm's"} | {
    ("tail", dtype, "training"): "≤ 1.05 × no SE" for dtype in DTYPES
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(8, 256, 56, 56), metavar=("N", "C", "H", "W"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare(options.threads)
    rows = []
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for mode in ("training", "inference"):
                for part in ("tail", "unit"):
                    rows.append(measure(part, dtype, layout, mode, options.shape, options.rounds))
    print(
        f"Map {tuple(options.shape)}, {options.threads} threads; milliseconds are medians, ratios medians by round.\n"
    )
    columns = ("part", "type", "layout", "mode", "copy (ms)", "no SE (ms)", "timm's SE (ms)", "ours, plain (ms)")
    print(table((*columns, "fused (ms)", "fused / no SE", "fused / timm's", "goal"), rows))


def measure(part: str, dtype: str, layout: str, mode: str, shape: tuple[int, ...], rounds: int) -> list[str]:
    training = mode == "training"
    made = {"dtype": DTYPES[dtype]}
    x, shortcut, grad, out = (torch.randn(shape, **made).to(memory_format=LAYOUTS[layout]) for _ in range(4))
    x.requires_grad_(training)
    shortcut.requires_grad_(training)
    norm = nn.BatchNorm2d(shape[1], **made).train(training)
    ours = SqueezeExcite(shape[1]).to(**made)
    timms = SEModule(shape[1], rd_divisor=1).to(**made)

    def step(function: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.set_grad_enabled(training):
                result = function()
                if training:
                    result.backward(grad)
                    x.grad = shortcut.grad = None

        return run

    def joined(branch: Tensor) -> Tensor:
        branch += shortcut
        return torch.relu_(branch)

    if part == "tail":
        sides = {
            "no SE": lambda: joined(norm(x)),
            "timm": lambda: joined(timms(norm(x))),
            "plain": lambda: joined(ours(norm(x))),
            "fused": lambda: units.tail(x, shortcut, norm, ours, None, "relu"),
        }
    else:
        sides = {"timm": lambda: timms(x), "plain": lambda: ours(x), "fused": lambda: units.scale(x, ours)}
    times = interleave({"copy": lambda: out.copy_(grad)} | {name: step(side) for name, side in sides.items()}, rounds)
    milliseconds = {name: f"{1000 * statistics.median(seconds):.2f}" for name, seconds in times.items()}
    return [
        *(part, dtype, layout, mode),
        *(milliseconds.get(name, "") for name in ("copy", "no SE", "timm", "plain", "fused")),
        str(ratio(times, "fused", "no SE")) if "no SE" in times else "",
        str(ratio(times, "fused", "timm")),
        LIMITS.get((part, dtype, mode), ""),
    ]


if __name__ == "__main__":
    main()
