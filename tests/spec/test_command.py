"""Commands that run a module in another process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from se_lab.spec.command import module_command


def test_a_module_runs_without_those_of_the_current_folder(tmp_path):
    (tmp_path / "argparse.py").write_text("raise SystemExit(3)")
    (tmp_path / "data.json").write_text("[1]")
    usual = subprocess.run([sys.executable, "-m", "json.tool", "data.json"], cwd=tmp_path, capture_output=True)
    assert usual.returncode, "python -m takes the folder's argparse"
    ours = subprocess.run(module_command("json.tool", "--compact", "data.json"), cwd=tmp_path, capture_output=True)
    assert (ours.returncode, ours.stdout) == (0, b"[1]\n"), ours.stderr


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_module_is_found_in_the_folders_of_pythonpath(tmp_path, safe):
    (tmp_path / "mine.py").write_text("print('found')")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PYTHONSAFEPATH": safe,
    }  # which leaves out the first itself
    done = subprocess.run(module_command("mine"), env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "found\n"), done.stderr
