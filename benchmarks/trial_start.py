"""Fixed cost of a trial in a fork and a new process, and cost of verbs that read a store.

    python benchmarks/trial_start.py --rounds 5

Trials of one step run in turn with `se-lab train` in a new process, and with `execute`, as in `se-lab sweep`. The fixed
cost is the time from the call until the record is written, minus the trial's own time for setup, training and testing.
A second table compares the time until the first step of `se-lab train` with the import of torch, timm and lightning.

The verbs read a store of 15 artificial trials in new processes, in turn with `python -c "import pandas"`. The table has
the ratio of the times, the peak memory, and whether a verb imports PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from measure import interleave, ratio, table

from analysis import make_store
from se_lab.spec import ExecSpec
from se_lab.spec.flags import parse_trial
from se_lab.store import read_record
from se_lab.sweep.schedule import execute

FLAGS = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=1024"]
LIMIT = 0.1
STEP_LIMIT = 1.3
FIRST_STEP = """
import os, sys
from se_lab.cli import main
from se_lab.training.task import ClassificationTask
ClassificationTask.training_step = lambda *_: os._exit(0)
sys.exit(main(sys.argv[1:]) or 1)
"""
"""A script that runs a command of SE-Lab, and exits with status 0 at the first training step."""
TRIALS, EPOCHS = 15, 20
MEGABYTES = 300
SPEC = str(Path(__file__).parents[1] / "sweeps/demo.yaml")
READERS = {
    "table": (["table", "STORE"], 5),
    "status": (["status", SPEC, "--store", "STORE"], 5),
    "gc": (["gc", "STORE"], 5),
    "verify": (["verify", "STORE"], 5),
    "plot": (["plot", "STORE", "-o", "FIGURES", "--overwrite"], 8.3),
}
"""Arguments of verbs, and limits relative to `import pandas` (0.3 s): 1.5 s, or 2.5 s for plot."""
READ = """
import resource, sys
from se_lab.cli import main
status = main(sys.argv[1:])
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{megabytes:.0f} {'torch' in sys.modules}", file=sys.stderr)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(starts(rounds), end="\n\n")
    print(first_step(rounds), end="\n\n")
    print(readers(rounds))


def readers(rounds: int) -> str:
    """Return the table of verbs that read a store."""
    said: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        make_store(store, TRIALS, EPOCHS)
        places = {"STORE": str(store), "FIGURES": str(Path(folder, "figures"))}

        def read(verb: str) -> None:
            words = [places.get(word, word) for word in READERS[verb][0]]
            done = subprocess.run([sys.executable, "-c", READ, *words], capture_output=True, text=True)
            assert done.returncode in (0, 1), done.stderr  # 1: an artificial trial lacks a file
            said[verb] = done.stderr.splitlines()[-1]

        sides = {verb: partial(read, verb) for verb in READERS}
        pandas = partial(subprocess.run, [sys.executable, "-c", "import pandas"], check=True)
        times = interleave({"pandas": pandas, **sides}, rounds)
    rows = []
    for verb, (_, limit) in READERS.items():
        megabytes, torch = said[verb].split()
        over = f"{ratio(times, verb, 'pandas')} (limit {limit})"
        rows.append([verb, f"{median(times[verb]):.2f}", over, f"{megabytes} (limit {MEGABYTES})", torch])
    return table(["verb", "seconds", "over import pandas", "MB", "imports PyTorch"], rows)


def starts(rounds: int) -> str:
    """Return the table of the fixed cost of a trial."""
    with tempfile.TemporaryDirectory() as folder:
        here, seeds, own = ExecSpec(store=folder, logger="none"), itertools.count(), {"fork": [], "fresh": []}

        def next_trial() -> tuple[list[str], object]:
            flags = [*FLAGS, f"--seed={next(seeds)}"]
            return flags, parse_trial(flags)[0]

        def took(side: str, trial: object) -> None:
            record = read_record(Path(folder, trial.trial_id))
            own[side].append(record.timings["seconds"])

        def fork() -> None:
            _, trial = next_trial()
            (outcome,) = execute([trial], here, 1, lambda event: None)
            assert outcome.status == "finished", outcome
            took("fork", trial)

        def fresh() -> None:
            flags, trial = next_trial()
            command = [sys.executable, "-W", "ignore", "-m", "se_lab.cli", "train", *flags]
            subprocess.run([*command, f"--store={folder}", "--logger=none"], check=True, capture_output=True)
            took("fresh", trial)

        whole = interleave({"fork": fork, "fresh": fresh}, rounds, time.perf_counter)
    fixed = {side: [a - b for a, b in zip(whole[side], own[side][1:], strict=True)] for side in whole}
    rows = []
    for side, name in (("fresh", "se-lab train, a fresh process"), ("fork", "se-lab sweep, a warm fork")):
        middle = [sorted(times[side])[rounds // 2] for times in (whole, fixed)]
        share = f"{ratio(fixed, 'fork', 'fresh')} (limit {LIMIT})" if side == "fork" else "1"
        rows.append([name, f"{middle[0]:.2f}", f"{middle[1]:.2f}", share])
    return table(["", "seconds in all", "fixed seconds", "fixed, share of fresh"], rows)


def first_step(rounds: int) -> str:
    """Return the table of the time until the first step of `se-lab train`, relative to imports."""
    with tempfile.TemporaryDirectory() as folder:
        seeds, python = itertools.count(), [sys.executable, "-W", "ignore", "-c"]

        def train() -> None:
            flags = [*FLAGS, f"--seed={next(seeds)}", f"--store={folder}", "--logger=none"]
            subprocess.run([*python, FIRST_STEP, "train", *flags], check=True, capture_output=True)

        imports = [*python, "import torch, timm, lightning"]
        times = interleave({"train": train, "imports": partial(subprocess.run, imports, check=True)}, rounds)
    middle = {side: f"{median(seconds):.2f}" for side, seconds in times.items()}
    over = f"{ratio(times, 'train', 'imports')} (limit {STEP_LIMIT})"
    rows = [
        ["import torch, timm, lightning", middle["imports"], "1"],
        ["se-lab train, to its first step", middle["train"], over],
    ]
    return table(["", "seconds", "over the imports"], rows)


if __name__ == "__main__":
    main()
