"""Cost of SE for whole nets: `python benchmarks/network.py`, three minutes per backbone.

Compares a backbone without SE, with timm's units if available, and with SE-Lab's units, plain and fused (r = 16,
biases), in turn, for training steps (forward, backward) and inference. Goals for ResNet-50: fused / without SE at most
1.03 in training and 1.04 in inference. The time of a copy of the largest map is given for comparison.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import timm
import torch
from measure import interleave, ratio, table
from torch import nn

from se_lab import ModelSpec, SESpec, create_model, find_places
from se_lab.training.process import prepare

MODES = ("training", "inference")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
BASES = ("without SE", "timm's SE", "ours, plain")
"""The nets to which ratios are given, with median and quartiles over rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--backbone", nargs="+", default=["resnet50"], help="mobilenetv3_large_100 efficientnet_b0 regnety_008 …"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="Image size in pixels.")
    parser.add_argument("--rounds", type=int, default=7, help="Rounds of training; twice as many of inference.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    options = parser.parse_args()
    prepare(options.threads)
    print(f"batch {options.batch}, {options.size} px, fp32, {options.threads} threads\n")
    columns = ("backbone", "mode", "layout", "net", "ms", *(f"/ {base}" for base in BASES))
    print(table(columns, [row for backbone in options.backbone for row in rows_of(backbone, options)]))


def rows_of(backbone: str, options: argparse.Namespace) -> list[list[object]]:
    """Return the rows of one backbone."""
    nets = nets_of(backbone)
    rows: list[list[object]] = []
    for mode in MODES:
        for layout in options.layout:
            memory_format = LAYOUTS[layout]
            images = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=memory_format)
            largest = torch.randn(options.batch, 256, options.size // 4, options.size // 4)
            copied = torch.empty_like(largest)
            sides = {
                name: step(net.to(memory_format=memory_format).train(mode == "training"), images)
                for name, net in nets.items()
            }
            rounds = options.rounds * (1 if mode == "training" else 2)
            times = interleave({"copy": lambda a=copied, b=largest: a.copy_(b)} | sides, rounds)
            for name in sides:
                against = [ratio(times, name, base) if base in sides and base != name else "" for base in BASES]
                rows.append([backbone, mode, layout, name, f"{1000 * statistics.median(times[name]):.0f}", *against])
            copy = f"{1000 * statistics.median(times['copy']):.1f}"
            rows.append([backbone, mode, layout, "a copy of the largest map", copy, *("" for _ in BASES)])
    return rows


def nets_of(backbone: str) -> dict[str, nn.Module]:
    """Return a backbone without SE, with timm's units if available, and with SE-Lab's units."""

    def built(se: SESpec, fused: str = "off") -> nn.Module:
        return create_model(ModelSpec(backbone, se, "replace", init="timm", fused=fused), 1000)

    nets = {"without SE": built(SESpec(insertion="none"))}
    own = timm.create_model(backbone)
    if timm.is_model(f"se{backbone}"):
        nets["timm's SE"] = timm.create_model(f"se{backbone}")
    elif any(place.own for place in find_places(own)):
        nets["timm's SE"] = own
    ours = SESpec(bias=True)
    return nets | {"ours, plain": built(ours), "ours, fused": built(ours, "on")}


def step(net: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(net.training):
            out = net(images)
            if net.training:
                out.square().mean().backward()
                net.zero_grad()

    return run


if __name__ == "__main__":
    main()
