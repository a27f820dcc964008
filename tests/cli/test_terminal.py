"""Processes of the command: what they import, and what a terminal, a pipe or a full disk makes of their output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from se_lab import store
from se_lab.spec import RunSpec

MODULES = """
import sys
from se_lab.cli import main
status = main(sys.argv[1:])
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(status)
"""
HEAVY = {"torch", "lightning", "timm", "torchvision", "wandb", "matplotlib", "sklearn"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        spec = RunSpec(seed=seed)
        record = store.RunRecord(spec.trial_id, "finished", spec.flat(), {}, metrics={"test/top1_error": 1.0 + seed})
        for name in ("metrics.csv", "predictions.npz"):
            (folder / spec.trial_id).mkdir(exist_ok=True)
            (folder / spec.trial_id / name).touch()
        store.mark_store(folder)
        store.write_record(folder / spec.trial_id, record)
    return folder


@pytest.mark.parametrize("verb", [["--help"], ["status", "demo", "--store=RUNS"], ["gc", "RUNS"], ["table", "RUNS"]])
def test_verbs_that_read_files_do_not_import_pytorch(verb, runs):
    argv = [str(runs) if word == "RUNS" else word.replace("RUNS", str(runs)) for word in verb]
    done = subprocess.run([sys.executable, "-c", MODULES, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.rpartition("imported ")[2].split())
    assert "se_lab" in imported and not imported & HEAVY
    assert verb[0] == "table" or "pandas" not in imported


def test_a_terminal_that_is_not_utf_8_gets_ascii(runs):
    where = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "se_lab.cli", "table", str(runs), "--spread", "std"]
    done = subprocess.run(command, env=where, capture_output=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("ascii")
    assert "1.50 +- 0.71" in said and "?" not in said  # 1 and 2, whose deviation is √½


def test_output_that_nobody_takes_is_no_traceback(runs):
    command = [sys.executable, "-m", "se_lab.cli", "status", "demo", f"--store={runs}"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")  # as of a process that SIGPIPE ends
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        said = "se-lab: No space left on device: the output is incomplete\n"
        assert (done.returncode, done.stderr) == (1, said)
