"""25 short trials with plain Lightning and with se-lab sweep.

    python benchmarks/sweep.py                                # 2 CPU cores: 1,024 images, 3 epochs
    python benchmarks/sweep.py --plain_trials 5               # the same, but only five plain trials, scaled up
    python benchmarks/sweep.py --device cuda --images 45000 --val_images 5000 --epochs 30 --precision bf16

The trials are five reduction ratios by five seeds of ResNet-20. Both sides train the same net with the same initial
weights on random images in CIFAR's file format, with batches of 128 and CIFAR's augmentation, validate every epoch,
test once, save checkpoints, and log to W&B offline. The plain side (plain_lightning.py) runs one process after another,
each with all cores, Lightning's defaults and two loader workers; SE-Lab is one command with --workers auto, including
its start.

The results are compared on digits, where both sides have the same tensors in the same order and one thread: losses on
test images within 0.1 %, errors within one image. (With another number of threads, rounding differs, and after ten
steps the losses differ by 0.6 %.) On CIFAR the sides draw different crops.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import table

from se_lab.data import create_data
from se_lab.spec import DataSpec
from se_lab.store import read_record
from se_lab.sweep.grammar import read_sweep

RATIOS, LR, TEST_IMAGES = (2, 4, 8, 16, 32), 0.05, 256
AIM = {"cpu": 4, "cuda": 20}
PLAIN = Path(__file__).with_name("plain_lightning.py")
RANDOM_CIFAR = '''"""CIFAR-10 of torchvision, with one file of training images, of random bytes."""
from torchvision.datasets import CIFAR10

CIFAR10.train_list, CIFAR10.test_list = [["data_batch_1", None]], [["test_batch", None]]
CIFAR10.meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="number of training images, in batches of 128")
    parser.add_argument("--val_images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plain_trials", type=int, default=25, help="number of plain trials to time")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--channels_last", action="store_true", help="use channels_last in SE-Lab, except for digits")
    parser.add_argument("--no_agreement", action="store_true", help="skip the comparison on digits")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sweep"))
    try:
        return report(options, folder)
    finally:
        shutil.rmtree(folder)


def report(options: argparse.Namespace, folder: Path) -> int:
    """Time both sides, and print the comparison."""
    # The same number of images of each class; both sides drop the last incomplete batch.
    train, val = 10 * -(-options.images // 10), 10 * (options.val_images // 10)
    write_cifar(folder, train + val)
    total = len(RATIOS) * options.seeds
    points = [(ratio, seed) for seed in range(options.seeds) for ratio in RATIOS][: options.plain_trials]
    kinds = {"fp32": "32-true", "bf16": "bf16-mixed"}
    shared = {"epochs": options.epochs, "lr": LR, "precision": kinds[options.precision], "device": options.device}
    began = time.perf_counter()
    for ratio, seed in points:
        sizes = {"images": train, "val_images": val, "root": folder}
        plain(folder, folder / f"plain-{ratio}-{seed}", ratio, seed, **shared, **sizes)
    plain_s = (time.perf_counter() - began) * total / len(points)
    began = time.perf_counter()
    data = {"name": "cifar10", "val_fraction": val / (train + val)}
    sweep, said = ours(folder, "cifar", data, options, range(options.seeds))
    ours_s = time.perf_counter() - began
    trials = [read_record(folder / "store" / trial.trial_id) for trial in sweep.trials]
    done = sum(record is not None and record.status == "finished" for record in trials)
    split = {(record.data["images"]["train"], record.data["images"]["val"]) for record in trials if record is not None}
    if split != {(train, val)}:
        raise RuntimeError(f"the sides train on other images: {split} and {(train, val)}")
    times = plain_s / ours_s
    print(
        f"{total} trials of {options.epochs} epochs of {options.images:,} images, {options.precision}, {options.device}"
    )
    print(said)
    scaled = "" if len(points) == total else f", {len(points)} of them timed and scaled up"
    rows = [
        [f"a plain Lightning process each{scaled}", f"{plain_s:.0f}", f"{60 * total / plain_s:.1f}", "–"],
        ["se-lab sweep", f"{ours_s:.0f}", f"{60 * total / ours_s:.1f}", f"{times:.2f} (aim {AIM[options.device]})"],
    ]
    print("\n" + table(["", "seconds", "trials a minute", "times faster"], rows))
    apart = [] if options.no_agreement else disagreements(options, folder)
    if not options.no_agreement:
        print(f"\nTrials on digits that come out otherwise: {len(apart)} of {len(RATIOS)}; limit 0. {'; '.join(apart)}")
    return int(done < total or bool(apart))


def disagreements(options: argparse.Namespace, folder: Path) -> list[str]:
    """Return a line for each ratio whose metrics on digits differ from the plain script's."""
    spec = {"name": "digits", "augment": "none"}
    sweep, _ = ours(folder, "digits", spec, options, range(1))
    data = create_data(DataSpec(**spec), 0)
    tensors: dict[str, Any] = {
        split: (data.normalise(images), labels)
        for split, (images, labels) in data.splits.items()  # type: ignore[attr-defined]
    }
    batches, order = data.train_dataloader(), []
    for epoch in range(options.epochs):
        batches.sampler.set_epoch(epoch)
        order.append([number for _, _, numbers in batches for number in numbers.tolist()])
    torch.save({**tensors, "order": order}, folder / "digits.pt")
    apart = []
    for trial in sweep.trials:
        ratio, out = trial.model.se.reduction, folder / f"digits-{trial.model.se.reduction}"
        given = {"epochs": options.epochs, "lr": LR, "digits": folder / "digits.pt", "device": "cpu", "threads": 1}
        theirs = plain(folder, out, ratio, 0, **given)
        record = read_record(folder / "store" / trial.trial_id)
        assert record is not None
        mine = record.metrics
        errors = mine["test/top1_error"], 100 * (1 - theirs["test/accuracy"])
        losses = mine["test/loss"], theirs["test/loss"]
        if abs(errors[0] - errors[1]) > 100 / data.sizes["test"] + 1e-3 or abs(losses[0] / losses[1] - 1) > 1e-3:
            apart.append(
                f"r={ratio}: error {errors[0]:.2f} and {errors[1]:.2f} %, loss {losses[0]:.4f} and {losses[1]:.4f}"
            )
    return apart


def plain(folder: Path, out: Path, reduction: int, seed: int, **flags: object) -> dict[str, float]:
    """Run a trial as a plain Lightning process, and return its metrics."""
    tokens = [f"--{key}={value}" for key, value in {"reduction": reduction, "seed": seed, "out": out, **flags}.items()]
    run([sys.executable, str(PLAIN), *tokens], folder)
    metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return metrics


def ours(folder: Path, name: str, data: dict[str, Any], options: argparse.Namespace, seeds: range) -> tuple[Any, str]:
    """Run the ratios and seeds as one sweep, and return the sweep and its message on workers."""
    on_cifar = name == "cifar"
    fixed = {
        "model.backbone": "cifar_resnet20",
        **{f"data.{key}": value for key, value in {**data, "batch_size": 128}.items()},
        **{"optim.lr": LR, "optim.weight_decay": 1e-4, "optim.schedule": "constant"},
        **{"train.epochs": options.epochs, "train.precision": options.precision if on_cifar else "fp32"},
        **{"train.channels_last": str(options.channels_last and on_cifar).lower()},
        "device": options.device if on_cifar else "cpu",
    }
    parameters = {"model.se.reduction": {"values": list(RATIOS)}, "seed": {"values": list(seeds)}}
    command = ["${env}", "se-lab", "train", *(f"--{key}={value}" for key, value in fixed.items()), "${args}"]
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump({"program": "se-lab", "method": "grid", "command": command, "parameters": parameters})
    )
    flags = [
        f"--store={folder / 'store'}",
        f"--data_root={folder}",
        "--plugins=random_cifar",
        "--workers",
        options.workers,
    ]
    said = run([sys.executable, "-m", "se_lab.cli", "sweep", str(path), *flags], folder)
    return read_sweep(path), next((line for line in said.splitlines() if line.startswith("--workers")), "")


def run(command: list[str], folder: Path) -> str:
    """Run a command with W&B offline, and return its output; raise RuntimeError if it fails."""
    paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    silent = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONWARNINGS": "ignore"}
    environment = os.environ | silent | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stderr + done.stdout


def write_cifar(folder: Path, images: int) -> None:
    """Write random images in the file format of CIFAR-10."""
    draw, there = np.random.default_rng(0), folder / "cifar-10-batches-py"
    there.mkdir()
    for name, count in (("data_batch_1", images), ("test_batch", TEST_IMAGES)):
        data = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": data, "labels": (np.arange(count) % 10).tolist(), "batch_label": name}
        (there / name).write_bytes(pickle.dumps(content))
    (there / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    (folder / "random_cifar.py").write_text(RANDOM_CIFAR)


if __name__ == "__main__":
    sys.exit(main())
