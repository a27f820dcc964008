"""A small run of benchmarks/chaos.py: processes killed at random, each trial done once, every record whole."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
def test_killed_processes_lose_no_trial_and_do_none_twice(tmp_path):
    flags = ["--processes=4", "--trials=12", "--seconds=60", "--pause=3", f"--keep={tmp_path / 'chaos'}"]
    done = subprocess.run([sys.executable, str(BENCHMARK), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in done.stdout.splitlines()[2:]]
    figures = {name: value for name, value, _ in rows}
    assert figures["finished"] == "12" and figures["recorded more than once"] == "0"
    assert int(figures["parents killed"]) + int(figures["workers killed"]) > 0, "nothing was killed"
