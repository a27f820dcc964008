"""Scaling of the cost of fused SE tails: `python benchmarks/scaling.py`, a minute.

Runs the tails BN → SE → add → ReLU of a ResNet, forward and backward, at their shapes in the net but without the
convolutions, for different depths, resolutions, batch sizes and numbers of SE units. Predictions: time = a fixed cost
per unit, that of a unit with as many channels on maps of one pixel, + 11 reads or writes of maps per unit, with the
time per byte of the base in the same round; memory = 2 maps per unit, x and the output, + coefficients by image and
channel, those kept by a unit on maps of one pixel. Goal: within 10 %. Freed memory is kept, since clearing new pages
would dominate the time for large maps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from measure import table
from torch import Tensor, nn

from se_lab.training.process import prepare
from se_lab.units.fused import units
from se_lab.units.squeeze_excite import SqueezeExcite

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
CHANNELS = (256, 512, 1024, 2048)


@dataclass(frozen=True)
class Point:
    """A net and its images; `stages` is the number of final stages with SE units."""

    depth: int = 50
    size: int = 224
    batch: int = 8
    stages: int = 4

    def shapes(self) -> list[tuple[int, tuple[int, int, int, int]]]:
        """Return the number of units and the shape of their maps, by stage."""
        found = [
            (count, (self.batch, channels, self.size // 4 >> stage, self.size // 4 >> stage))
            for stage, (count, channels) in enumerate(zip(UNITS[self.depth], CHANNELS, strict=True))
        ]
        return found[4 - self.stages :]

    def map_bytes(self) -> int:
        """Return the total size of the maps of all units in bytes."""
        return sum(4 * count * n * c * h * w for count, (n, c, h, w) in self.shapes())

    def units(self) -> int:
        """Return the number of SE units."""
        return sum(count for count, _ in self.shapes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", type=int, nargs="*", default=[50, 101, 152], choices=UNITS)
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 160, 224, 288, 384])
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare(options.threads)
    base = Point()
    points = [("base", base)]
    points += [("depth", Point(depth=depth)) for depth in options.depths]
    points += [("resolution", Point(size=size)) for size in options.sizes]
    points += [("batch", Point(batch=batch)) for batch in options.batches]
    points += [("units", Point(stages=stages)) for stages in options.stages]
    tails = {shape: Tail(shape) for _, point in points for _, shape in point.shapes()}
    pixel = {channels: Tail((base.batch, channels, 1, 1)) for channels in CHANNELS}
    coefficients = {channels: tail.kept() / base.batch for channels, tail in pixel.items()}
    different = list(dict.fromkeys(point for _, point in points))
    times: dict[Point, list[float]] = {point: [] for point in different}
    predictions: dict[Point, list[float]] = {point: [] for point in different}
    fixed: dict[int, list[float]] = {channels: [] for channels in CHANNELS}
    for number in range(options.rounds + 1):
        first = {channels: tail.seconds(10) / 10 for channels, tail in pixel.items()}
        taken = {p: sum(tails[shape].seconds(count) for count, shape in p.shapes()) for p in different}
        at_first = {p: sum(count * first[shape[1]] for count, shape in p.shapes()) for p in different}
        a_byte = (taken[base] - at_first[base]) / base.map_bytes()
        if number:
            for point in different:
                times[point].append(taken[point])
                predictions[point].append(at_first[point] + a_byte * point.map_bytes())
            for channels, seconds in first.items():
                fixed[channels].append(seconds)
    rows = []
    for series, point in points:
        seconds, predicted = statistics.median(times[point]), statistics.median(predictions[point])
        ratio = statistics.median(one / other for one, other in zip(times[point], predictions[point], strict=True))
        to_keep = 2 * point.map_bytes() + sum(count * n * coefficients[c] for count, (n, c, *_) in point.shapes())
        kept = sum(count * tails[shape].kept() for count, shape in point.shapes())
        rows.append(
            [
                *(series, point.depth, point.size, point.batch, point.units()),
                *(f"{1000 * seconds:.1f}", f"{1000 * predicted:.1f}", deviation(ratio)),
                *(f"{kept / 1e6:.1f}", f"{to_keep / 1e6:.1f}", deviation(kept / to_keep)),
            ]
        )
    costs = ", ".join(f"{1000 * statistics.median(seconds):.2f}" for seconds in fixed.values())
    print(f"{options.threads} threads; a unit's fixed cost with {', '.join(map(str, CHANNELS))} channels: {costs} ms\n")
    columns = ("series", "ResNet-", "px", "batch", "SE units", "ms", "predicted", "off", "MB kept", "predicted", "off")
    print(table(columns, rows))


def deviation(ratio: float) -> str:
    off = ratio - 1
    return f"{off:+.1%}" + ("" if abs(off) <= 0.1 else " !")


class Tail:
    """A fused tail for maps of a shape."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self.norm, self.unit = nn.BatchNorm2d(shape[1]), SqueezeExcite(shape[1])

    def seconds(self, count: int) -> float:
        """Return the time of `count` forward and backward passes."""
        x, shortcut = (torch.randn(self.shape).requires_grad_() for _ in range(2))
        grad = torch.randn(self.shape)
        began = time.perf_counter()
        for _ in range(count):
            units.tail(x, shortcut, self.norm, self.unit, None, "relu").backward(grad)
            x.grad = shortcut.grad = None
        return time.perf_counter() - began

    def kept(self) -> int:
        """Return the number of bytes saved for the backward pass."""
        storages: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in (*self.norm.parameters(), *self.unit.parameters())}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        x, shortcut = (torch.randn(self.shape).requires_grad_() for _ in range(2))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = units.tail(x, shortcut, self.norm, self.unit, None, "relu")
        assert out.requires_grad
        return sum(storages.values())


if __name__ == "__main__":
    main()
