"""Many `se-lab sweep` processes on one store, killed at random: no trial is lost.

    python benchmarks/chaos.py                                                       # 16 processes, 200 trials, 5 min
    python benchmarks/chaos.py --processes 4 --trials 12 --seconds 60

A process that dies is started again, as by a user or scheduler. Parents and forked workers are killed, including
processes that a parent forks before its first trial.
A plugin in each process appends a line to one log when a record with the status finished is written, and to another
when test images have been evaluated. A trial killed in between is evaluated again but recorded once; a trial that is
recorded twice was run twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml
from measure import table

PLUGIN = """
import json
import os
from pathlib import Path
from se_lab import store
from se_lab.training.task import ClassificationTask

def note(log, trial_id):
    line = f"{trial_id} {os.getpid()}\\n".encode()
    file = os.open(os.environ["CHAOS_LOGS"] + "/" + log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line)
    os.close(file)

put_in_place, end_test = store.put_in_place, ClassificationTask.on_test_epoch_end

def watched_put(aside, path):
    done = path.name == "record.json" and json.loads(aside.read_text())["status"] == "finished"
    put_in_place(aside, path)
    if done:
        note("recorded", path.parent.name)

def watched_end_test(self):
    end_test(self)
    note("tested", self.spec.trial_id)

store.put_in_place, ClassificationTask.on_test_epoch_end = watched_put, watched_end_test
"""


def main() -> int:
    """Run the benchmark, print the results, and return 0 if no trial was lost or run twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=16, help="number of parallel se-lab sweep processes")
    parser.add_argument("--trials", type=int, default=200, help="number of trials, of about a second each")
    parser.add_argument("--seconds", type=float, default=300, help="time during which processes are killed")
    parser.add_argument("--pause", type=float, default=4, help="mean time between two kills in seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    parser.add_argument("--keep", help="folder for all files, which is kept")
    options = parser.parse_args()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="chaos"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = chaos(folder, options.processes, options.trials, options.seconds, options.pause, options.seed)
    print(table(["figure", "value", "must be"], [[name, *values] for name, values in figures.items()]))
    wrong = any(must not in ("", str(value)) for value, must in figures.values())
    if wrong:
        print(f"all files are kept in {folder}", file=sys.stderr)
    elif not options.keep:
        shutil.rmtree(folder)
    return int(wrong)


def chaos(
    folder: Path, processes: int, trials: int, seconds: float, pause: float, seed: int
) -> dict[str, tuple[object, str]]:
    """Return results by name, each with its required value or an empty string."""
    command = _command(folder, trials)
    environment = os.environ | {"CHAOS_LOGS": str(folder), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

    def start() -> subprocess.Popen[bytes]:
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)

    draw, kills, torn, starts = random.Random(seed), Counter[str](), 0, processes
    kind = "parents"
    began = time.monotonic()
    alive = [start() for _ in range(processes)]
    next_kill = began + draw.expovariate(1 / pause)
    while (elapsed := time.monotonic() - began) < seconds + 3600:
        if elapsed < seconds and time.monotonic() >= next_kill:
            parents = [process.pid for process in alive if process.poll() is None]
            workers = [child for parent in parents for child in _children(parent)]
            if (targets := {"parents": parents, "workers": workers}[kind]) and _kill(draw.choice(targets)):
                kills[kind] += 1
                # Workers and parents are equally likely, although workers are short-lived.
                kind = draw.choice(["parents", "workers"])
                next_kill = time.monotonic() + draw.expovariate(1 / pause)
        alive = [process for process in alive if process.poll() != 0]  # 0: all trials have ended
        for place, process in enumerate(alive):
            if process.poll() is not None:
                alive[place], starts = start(), starts + 1
        torn += _torn(folder)
        if not alive or starts > 2 * (processes + kills.total()):  # too many starts: processes fail, see output.txt
            break
        time.sleep(0.1)
    took = time.monotonic() - began
    for process in alive:
        process.kill()
    return _figures(folder, trials, kills, starts, torn, took)


def _command(folder: Path, trials: int) -> list[str]:
    flags = ["--recipe=digits", "--train.epochs=2", "--data.batch_size=512"]
    spec = {
        "program": "se-lab",
        "method": "grid",
        "command": ["${env}", "se-lab", "train", *flags, "${args}"],
        "parameters": {"seed": {"values": list(range(trials))}, "model.backbone": {"value": "cifar_resnet20"}},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    (folder / "chaos_plugin.py").write_text(PLUGIN)
    more = ["--store", str(folder / "store"), "--logger=none", "--plugins=chaos_plugin", "--retries=1000"]
    return [sys.executable, "-m", "se_lab.cli", "sweep", str(folder / "sweep.yaml"), *more]


def _children(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


def _kill(pid: int) -> bool:
    """Kill a process, and return whether it was alive."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return state not in "ZX"


def _torn(folder: Path) -> int:
    """Return the number of records that cannot be read."""
    torn = 0
    for path in folder.glob("store/*/record.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            torn += 1
    return torn


def _figures(
    folder: Path, trials: int, kills: Counter[str], starts: int, torn: int, took: float
) -> dict[str, tuple[object, str]]:
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("store/*/record.json")}
    finished = {trial for trial, record in records.items() if record["status"] == "finished"}
    metrics = [record["metrics"].get("test/top1_error") for record in records.values()]
    recorded = Counter(_log(folder / "recorded"))
    tested = Counter(_log(folder / "tested"))
    claims = sum(name.isdigit() for path in folder.glob("store/*/claims") for name in os.listdir(path))
    left = sum(path.is_file() for path in folder.glob("store/*/.*"))
    return {
        "trials": (trials, ""),
        "finished": (len(finished), str(trials)),
        "recorded more than once": (sum(count > 1 for count in recorded.values()), "0"),
        "killed before the log was written": (trials - len(recorded), ""),
        "records without a test error": (sum(value is None for value in metrics), "0"),
        "torn records seen": (torn, "0"),
        "files left half-written": (left, "0"),
        "evaluated again after a kill": (sum(count - 1 for count in tested.values()), ""),
        "claims": (claims, ""),
        "parents killed": (kills["parents"], ""),
        "workers killed": (kills["workers"], ""),
        "processes started": (starts, ""),
        "minutes": (round(took / 60, 1), ""),
    }


def _log(path: Path) -> list[str]:
    """Return the trial ids in a log."""
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
