"""What SE costs a whole net: `python benchmarks/network.py`, three minutes on two cores.

ResNet-50 without SE, timm's seresnet50, and ResNet-50 with our units, plain and fused (r = 16, biases): a training
step (forward, backward) and inference, the sides in turn. Goals: fused / without SE at most 1.03 in training and 1.04
in inference. A copy of the largest map is there for scale.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import timm
import torch
from measure import interleave, ratio, table
from torch import nn

from se_lab import ModelSpec, SESpec, create_model
from se_lab.training.process import prepare

GOALS = {"training": 1.03, "inference": 1.04}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="resnet50", help="One that timm has with SE, too, as se… .")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="Side of the images.")
    parser.add_argument("--rounds", type=int, default=7, help="Of training; of inference twice as many.")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare(options.threads)
    with_se = ModelSpec(options.backbone, SESpec(bias=True), init="timm")
    nets = {
        "without SE": timm.create_model(options.backbone),
        "timm's SE": timm.create_model(f"se{options.backbone}"),
        "ours, plain": create_model(with_se, 1000),
        "ours, fused": create_model(ModelSpec(options.backbone, SESpec(bias=True), init="timm", fused="on"), 1000),
    }
    rows = []
    for mode, goal in GOALS.items():
        for layout, memory_format in LAYOUTS.items():
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
                milliseconds = 1000 * statistics.median(times[name])
                against = ratio(times, name, "without SE") if name != "without SE" else ""
                rows.append([mode, layout, name, f"{milliseconds:.0f}", against, goal if "fused" in name else ""])
            rows.append([mode, layout, "a copy of the largest map", f"{1000 * statistics.median(times['copy']):.1f}"])
            rows[-1] += ["", ""]
    print(f"{options.backbone}, batch {options.batch}, {options.size} px, fp32, {options.threads} threads\n")
    print(table(("mode", "layout", "net", "ms", "ratio to without SE (quartiles)", "goal"), rows))


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
