"""SE-ResNet-50 before and after a change: `benchmarks/before_after.py BEFORE [AFTER]`.

A process for each checkout (AFTER is by default this one) runs training steps (forward, backward) and inference, with
plain and fused units, in turn. Ratios are after over before, with median and quartiles over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from measure import interleave, ratio, table

STEPS = """
import os, sys, torch
import se_lab
from se_lab import ModelSpec, SESpec, create_model
assert se_lab.__file__.startswith(os.getcwd()), se_lab.__file__
torch.set_num_threads(2)
specs = {fused: ModelSpec("resnet50", SESpec(bias=True), init="timm", fused=fused) for fused in ("off", "on")}
nets = {fused: create_model(spec, 1000) for fused, spec in specs.items()}
images = torch.randn(int(sys.argv[1]), 3, int(sys.argv[2]), int(sys.argv[2]))
for line in sys.stdin:
    fused, mode = line.split()
    net = nets[fused].train(mode == "training")
    with torch.set_grad_enabled(mode == "training"):
        output = net(images)
    if mode == "training":
        output.square().mean().backward()
        net.zero_grad()
    print(flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="A checkout, such as a git worktree.")
    parser.add_argument("after", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=160, help="Image size in pixels.")
    parser.add_argument("--rounds", type=int, default=7, help="Rounds of training; twice as many of inference.")
    options = parser.parse_args()
    sides = {name: start(getattr(options, name), options) for name in ("before", "after")}
    rows = []
    for fused in ("off", "on"):
        for mode in ("training", "inference"):
            steps = {name: lambda side=side, line=f"{fused} {mode}": step(side, line) for name, side in sides.items()}
            times = interleave(steps, options.rounds * (1 if mode == "training" else 2))
            middle = [f"{1000 * statistics.median(times[name]):.0f}" for name in sides]
            rows.append([f"fused={fused}", mode, *middle, ratio(times, "after", "before")])
    for side in sides.values():
        side.communicate()
    print(f"batch {options.batch}, {options.size} px, fp32, 2 threads\n")
    print(table(["units", "mode", "before, ms", "after, ms", "after / before"], rows))


def start(checkout: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start a process that runs a step of a checkout for each line of its input."""
    return subprocess.Popen(
        [sys.executable, "-c", STEPS, str(options.batch), str(options.size)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
    )  # fmt: skip


def step(side: subprocess.Popen[str], line: str) -> None:
    """Run a step, and wait for its end."""
    assert side.stdin is not None and side.stdout is not None
    print(line, file=side.stdin, flush=True)
    if not side.stdout.readline():
        raise RuntimeError("a process has ended")


if __name__ == "__main__":
    main()
