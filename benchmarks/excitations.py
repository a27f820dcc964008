"""Cost of capturing excitations: `python benchmarks/excitations.py`, five minutes.

A batch of random images runs through a net in three ways, in turn: plain inference, inference with streaming statistics
(se_lab.excitations.statistics), and inference that stores all gates. Prints ms per image (median over rounds), the
ratio to plain inference (median of ratios within rounds; on a CPU of processor time, to reduce the influence of other
processes), and the memory for a validation set of ImageNet's size, with limits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from measure import interleave, ratio, table

from se_lab.excitations.capture import capture_excitations
from se_lab.excitations.statistics import ExcitationStatistics

IMAGES = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="seresnet50")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="Image size in pixels.")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=1, help="Batches per round.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="Use autocast with bfloat16.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    model = timm.create_model(options.backbone).eval().to(device, memory_format=torch.channels_last)
    images = torch.randn(options.batch, 3, options.size, options.size).to(device, memory_format=torch.channels_last)
    labels = torch.randint(options.classes, (options.batches, options.batch))
    with capture_excitations(model) as capture:
        streamed = ExcitationStatistics(capture.sites, [str(k) for k in range(options.classes)], device=device)
    stored: list[torch.Tensor] = []

    def plain() -> None:
        for _ in labels:
            model(images)

    def streaming() -> None:
        with capture_excitations(model) as capture:
            for batch in labels:
                model(images)
                streamed.update(capture.excitations, batch)

    def storing() -> None:
        stored.clear()
        with capture_excitations(model) as capture:
            for _ in labels:
                model(images)
                stored.append(torch.cat(list(capture.excitations.values()), dim=1).float().cpu())

    ways: dict[str, Callable[[], None]] = {"plain inference": plain, "streaming": streaming, "every gate kept": storing}

    def synchronized(way: Callable[[], None]) -> Callable[[], None]:
        return lambda: (way(), synchronize(device))[1]

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
        times = interleave({name: synchronized(way) for name, way in ways.items()}, options.rounds, clock)
    gates = stored[0].shape[1]
    memory = {"streaming": sum(t.numel() * t.element_size() for t in streamed.__dict__.values() if torch.is_tensor(t))}
    memory["every gate kept"] = IMAGES * gates * 4
    print(f"{options.backbone}, {gates:,} gates, batch {options.batch}, {options.size} px, {device}\n")
    rows = []
    for name, seconds in times.items():
        each = 1000 * statistics.median(seconds) / (options.batch * options.batches)
        against = "–" if name == "plain inference" else str(ratio(times, name, "plain inference"))
        limit = ("1.01" if device.type == "cpu" else "1.02") if name == "streaming" else "–"
        kept = f"{memory[name] / 1e6:,.0f}" if name in memory else "–"
        rows.append([name, f"{each:.2f}", against, limit, kept, "400" if name == "streaming" else "–"])
    headings = ["", "ms/image", "ratio to plain", "limit", f"MB for {IMAGES:,} images", "limit"]
    print(table(headings, rows))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
