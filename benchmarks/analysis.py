"""How fast and in how much memory a large study is read and tabled: python benchmarks/analysis.py [--trials 10000].

Makes a store of finished trials with 100 epochs each, and the same rows as two CSV files, one of trials and one of
epochs. Reads both in turn, in one run, the best of five, and prints ratios beside their limits: load within 3 times
pandas' reading of the CSV files, a table within a fifth of the load, all in under 1 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from se_lab.record_index import FILE
from se_lab.report import ablation_table, group_variants
from se_lab.report.training_curves import read_curves
from se_lab.spec import RunSpec
from se_lab.store import read_records

KEYS = ["val/top1_error", "train/top1_error"]
SEEDS = 5
EPOCHS = 100
ROUNDS = 5


def make_store(folder: Path, trials: int) -> None:
    """Write trials of 400 variants a backbone, five seeds each, with records as long as a real one's."""
    flat, rng = RunSpec().flat(), np.random.default_rng(0)
    sites = [
        {"name": f"SE_{i}", "stage": 2, "unit": i, "channels": 256, "hidden": 16, "path": f"a.{i}.se"}
        for i in range(16)
    ]
    epochs = pd.DataFrame({"epoch": np.arange(EPOCHS), "lr": 0.1})
    for number in range(trials):
        variant, seed = divmod(number, SEEDS)
        backbone, rest = divmod(variant, 400)
        spec = flat | {"model.backbone": f"net{backbone}", "optim.lr": 0.001 * (1 + rest // 20), "seed": seed}
        none = rest % 20 == 0
        spec |= {"model.se.insertion": "none"} if none else {"model.se.reduction": 1 + rest % 20}
        if none:
            spec |= {key: None for key in spec if key.startswith("model.se.") and key != "model.se.insertion"}
        curve = np.round(rng.random((EPOCHS, 5)), 6)
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


def best(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the seconds of the fastest of each call's turns, in rounds, so that a slow minute slows all."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--load-only", metavar="STORE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load_only:  # in a process of its own, whose peak memory is that of a load and a table
        records = read_records(options.load_only)
        read_curves(group_variants(records), KEYS)
        ablation_table(records)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as name:
        store = Path(name, "store")
        print(f"{options.trials:,} trials of {EPOCHS} epochs: making them …", flush=True)
        make_store(store, options.trials)
        records = read_records(store)
        study = group_variants(records)
        curves = read_curves(study, KEYS)
        rows, epochs = Path(name, "rows.csv"), Path(name, "epochs.csv")
        records.to_csv(rows, index=False)
        pd.concat([pd.read_csv(f"{folder}/metrics.csv") for folder in study.trials["folder"]]).assign(
            variant=curves["variant"].to_numpy(), seed=curves["seed"].to_numpy()
        ).to_csv(epochs, index=False)
        wanted = ["epoch", *KEYS, "variant", "seed"]

        def read_anew() -> None:
            (store / FILE).unlink()
            read_records(store)

        calls = {
            "first": read_anew,
            "second": lambda: read_records(store),
            "csv rows": lambda: pd.read_csv(rows),
            "epochs": lambda: read_curves(study, KEYS),
            "csv epochs": lambda: pd.read_csv(epochs, usecols=wanted),
            "table": lambda: ablation_table(records),
        }
        first, second, csv_rows, by_epoch, csv_epochs, table = best(calls).values()
        command = [sys.executable, __file__, "--load-only", str(store)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6

    csv = csv_rows + csv_epochs
    lines = [
        ("trials and epochs, first reading", first + by_epoch, csv, 3.0),
        ("trials and epochs, from the index", second + by_epoch, csv, 3.0),
        ("trials alone, first reading", first, csv_rows, None),
        ("trials alone, from the index", second, csv_rows, 3.0),
        ("epochs alone", by_epoch, csv_epochs, 3.0),
        ("the table, against the first load", table, first + by_epoch, 0.2),
        ("the table, against the second load", table, second + by_epoch, 0.2),
    ]
    print(f"{'':<36}{'ours (s)':>10}{'other (s)':>11}{'ratio':>8}{'limit':>7}")
    for what, ours, other, limit in lines:
        print(f"{what:<36}{ours:>10.3f}{other:>11.3f}{ours / other:>8.2f}{limit or '–':>7}")
    print(f"{'peak memory of a load and a table':<36}{peak:>10.2f} GB{'':>16}{1.0:>7}")


if __name__ == "__main__":
    main()
