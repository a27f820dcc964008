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

from se_lab import ModelSpec, SESpec, create_model, find_places
from se_lab.training.process import prepare

GOALS = {"training": 1.03, "inference": 1.04}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--backbone", default="resnet50", help="Also mobilenetv3_large_100, efficientnet_b0, convnext_tiny …"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="Side of the images.")
    parser.add_argument("--rounds", type=int, default=7, help="Of training; of inference twice as many.")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare(options.threads)
    nets = nets_of(options.backbone)
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


def nets_of(backbone: str) -> dict[str, nn.Module]:
    """Return a backbone without SE, with timm's units where timm has it so, and with ours, plain and fused."""

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
