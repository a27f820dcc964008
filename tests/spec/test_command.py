"""Commands that run a module in another process."""

from __future__ import annotations

import subprocess
import sys

from se_lab.spec.command import module_command


def test_a_module_runs_without_those_of_the_current_folder(tmp_path):
    (tmp_path / "argparse.py").write_text("raise SystemExit(3)")
    (tmp_path / "data.json").write_text("[1]")
    usual = subprocess.run([sys.executable, "-m", "json.tool", "data.json"], cwd=tmp_path, capture_output=True)
    assert usual.returncode, "python -m takes the folder's argparse"
    ours = subprocess.run(module_command("json.tool", "--compact", "data.json"), cwd=tmp_path, capture_output=True)
    assert (ours.returncode, ours.stdout) == (0, b"[1]\n"), ours.stderr
