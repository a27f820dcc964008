"""Counting costs of 200 variants of ResNet-50: `python benchmarks/profiling.py`.

Compares building each net and counting with fvcore, with one trace and closed forms, in one process, including all
counts. The first is timed on every `--every`-th variant and scaled up.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import torch
from measure import table

from se_lab.spec import ModelSpec, SESpec
from se_lab.units.costs import profile, trace
from se_lab.units.model import create_model

SIZE = (3, 224, 224)
KEYS = ("params", "params_se", "macs", "macs_se", "elementwise", "elementwise_se", "activations")
GRID = [
    ModelSpec("resnet50", SESpec(insertion, "se", reduction, squeeze, stages=stages), init="timm")
    for insertion, reduction, squeeze, stages in itertools.product(
        ("standard", "pre", "post", "identity", "conv3x3"), (2, 4, 8, 16, 32), ("avg", "max"), ("all", (2,), (3,), (4,))
    )
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--every", type=int, default=10, help="Build and count every n-th variant in full.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sample = GRID[:: options.every]
    trace(sample[0], 10, (3, 64, 64)).variant(sample[0].se)  # for imports on first use

    start = time.perf_counter()
    traced = trace(GRID[0], 1000, SIZE)
    one_trace = time.perf_counter() - start
    fast = [traced.variant(spec.se) for spec in GRID]
    quick = time.perf_counter() - start

    start = time.perf_counter()
    full = [profile(create_model(spec, 1000), SIZE) for spec in sample]
    slow = (time.perf_counter() - start) * len(GRID) / len(sample)

    differing = sum(
        getattr(a, key) != getattr(b, key) for a, b in zip(fast[:: options.every], full, strict=True) for key in KEYS
    )
    print(f"{len(GRID)} variants of resnet50 at {SIZE[1]} pixels, {len(sample)} of them timed and scaled up\n")
    rows = [
        ["each built and counted by fvcore", f"{slow:.2f}", "–"],
        ["one trace and the closed form", f"{quick:.2f}", f"{slow / quick:.0f}"],
        ["the same with the trace at hand", f"{quick - one_trace:.2f}", f"{slow / (quick - one_trace):.0f}"],
    ]
    print(table(["", "seconds", "times faster"], rows))
    print(f"\nCounts that differ: {differing} of {len(sample) * len(KEYS)}; limit 0.")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
