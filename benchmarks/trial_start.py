"""What a trial costs beside its own work: forked from a sweep's warm process, and as a process of its own.

    python benchmarks/trial_start.py --rounds 5

Both sides run the same trials of one step, in turn: `se-lab train` in a fresh process, and `execute`, which `se-lab
sweep` calls, in this one. The fixed cost is the time from the call until the record is there, less what the trial's
own clock says for building the loop, training and testing.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import interleave, ratio, table

from se_lab.spec import ExecSpec
from se_lab.spec.flags import parse_trial
from se_lab.store import read_record
from se_lab.sweep.schedule import execute

FLAGS = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=1024"]
LIMIT = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
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
            subprocess.run([*command, f"--store={folder}", "--wandb=false"], check=True, capture_output=True)
            took("fresh", trial)

        whole = interleave({"fork": fork, "fresh": fresh}, rounds, time.perf_counter)
    fixed = {side: [a - b for a, b in zip(whole[side], own[side][1:], strict=True)] for side in whole}
    rows = []
    for side, name in (("fresh", "se-lab train, a fresh process"), ("fork", "se-lab sweep, a warm fork")):
        median = [sorted(times[side])[rounds // 2] for times in (whole, fixed)]
        share = f"{ratio(fixed, 'fork', 'fresh')} (limit {LIMIT})" if side == "fork" else "1"
        rows.append([name, f"{median[0]:.2f}", f"{median[1]:.2f}", share])
    print(table(["", "seconds in all", "fixed seconds", "fixed, share of fresh"], rows))


if __name__ == "__main__":
    main()
