"""Time and memory for the analysis of a large study: python benchmarks/analysis.py.

Creates a store of finished trials with 100 epochs each, and two CSV files with the same rows for trials and epochs.
Reads both in turn, and prints times and ratios with limits: records and table in 2 s on a core of 2023, epochs within 3
times the time of pandas for the CSV file, and at most 1 GB of memory. The time for opening all files is given too.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measure import interleave, ratio, table

from se_lab.report import ablation_table, group_variants
from se_lab.report.figures.curves import read_curves
from se_lab.spec import RunSpec
from se_lab.store import read_bytes, read_records

KEYS = ["val/top1_error", "train/top1_error"]
SEEDS = 5
EPOCHS = 100


def make_store(folder: Path, trials: int, length: int = EPOCHS) -> None:
    """Write trials of 400 variants per backbone with five seeds, with realistic records."""
    flat, rng = RunSpec().flat(), np.random.default_rng(0)
    sites = [
        {"name": f"SE_{i}", "stage": 2, "unit": i, "channels": 256, "hidden": 16, "path": f"a.{i}.se"}
        for i in range(16)
    ]
    epochs = pd.DataFrame({"epoch": np.arange(length), "lr": 0.1})
    for number in range(trials):
        variant, seed = divmod(number, SEEDS)
        backbone, rest = divmod(variant, 400)
        spec = flat | {"model.backbone": f"net{backbone}", "optim.lr": 0.001 * (1 + rest // 20), "seed": seed}
        none = rest % 20 == 0
        spec |= {"model.se.insertion": "none"} if none else {"model.se.reduction": 1 + rest % 20}
        if none:
            spec |= {key: None for key in spec if key.startswith("model.se.") and key != "model.se.insertion"}
        curve = np.round(rng.random((length, 5)), 6)
        metrics = dict(zip(("test/loss", "test/top1_error", "test/top5_error"), curve[-1].tolist(), strict=False))
        record = {
            "trial_id": f"{number:012x}", "status": "finished", "spec": spec, "execution": {"store": "runs"},
            "sites": sites, "complexity": {"params": 25_000_000 + rest, "macs": 4_000_000_000 + rest},
            "metrics": metrics, "timings": {"step_ms": 100.0 + seed, "seconds": 1000.0},
            "data": {"digest": "d"}, "versions": {"se-lab": "1", "torch": "2"},
        }  # fmt: skip
        trial = folder / f"{number:012x}"
        trial.mkdir(parents=True)
        (trial / "record.json").write_text(json.dumps(record, indent=2))
        names = ["train/loss", "train/top1_error", "val/loss", "val/top1_error", "val/top5_error"]
        epochs.assign(**dict(zip(names, curve.T, strict=True))).to_csv(trial / "metrics.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--load_only", metavar="STORE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load_only:  # in a separate process, to measure its peak memory
        records = read_records(options.load_only)
        read_curves(group_variants(records), KEYS)
        ablation_table(records)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as name:
        store = Path(name, "store")
        print(f"creating {options.trials:,} trials of {EPOCHS} epochs …", file=sys.stderr, flush=True)
        make_store(store, options.trials)
        times = timed(store, options.rounds)
        command = [sys.executable, __file__, "--load_only", str(store)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6
    print(f"{options.trials:,} trials of {EPOCHS} epochs; seconds, and ratios with their quartiles.\n")
    print(table(["", "seconds", "against", "ratio", "limit"], [*compared(times), memory(peak)]))


def timed(store: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds by round of each operation, and of sums of operations."""
    records = read_records(store)
    study = group_variants(records)
    curves = read_curves(study, KEYS)
    rows, epochs = store.with_name("rows.csv"), store.with_name("epochs.csv")
    records.to_csv(rows, index=False)
    pd.concat([pd.read_csv(f"{folder}/metrics.csv") for folder in study.trials["folder"]]).assign(
        variant=curves["variant"].to_numpy(), seed=curves["seed"].to_numpy()
    ).to_csv(epochs, index=False)
    folders = list(records["folder"])

    times = interleave(
        {
            "records": lambda: read_records(store),
            "rows": lambda: pd.read_csv(rows, low_memory=False),  # infers one type per column
            "by epoch": lambda: read_curves(study, KEYS),
            "epochs": lambda: pd.read_csv(epochs, usecols=["epoch", *KEYS, "variant", "seed"]),
            "records opened": lambda: [read_bytes(f"{folder}/record.json") for folder in folders],
            "epochs opened": lambda: [read_bytes(f"{folder}/metrics.csv") for folder in folders],
            "table": lambda: ablation_table(records),
        },
        rounds,
    )

    def both(one: str, other: str) -> list[float]:
        return [a + b for a, b in zip(times[one], times[other], strict=True)]

    return times | {
        "csv": both("rows", "epochs"),
        "opened": both("records opened", "epochs opened"),
        "load": both("records", "by epoch"),
        "read": both("records", "table"),
    }


def compared(times: dict[str, list[float]]) -> list[list[str]]:
    lines = [
        ("the records and their table", "read", "rows", "2 s"),
        ("of it the records", "records", "rows", "–"),
        ("of it the table", "table", "rows", "–"),
        ("the epochs", "by epoch", "epochs", "3.0"),
        ("records and epochs", "load", "csv", "–"),
        ("lower bound: reading all files without parsing", "opened", "csv", "–"),
    ]
    names = {"csv": "CSV of trials + CSV of epochs", "rows": "CSV of trials", "epochs": "CSV of epochs"}
    return [
        [what, f"{statistics.median(times[ours]):.3f}", names.get(to, to), str(ratio(times, ours, to)), limit]
        for what, ours, to, limit in lines
    ]


def memory(peak: float) -> list[str]:
    return ["peak memory of a load and a table, GB", f"{peak:.2f}", "–", "–", "1.0"]


if __name__ == "__main__":
    main()
