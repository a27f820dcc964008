"""W&B's own search engine, to hold ours against."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def engine(pytestconfig):
    """Return a function that asks W&B's own engine, which lives in a folder of its own under pytest's cache."""
    folder = pytestconfig.cache.mkdir("sweeps-0.3.0")
    if not (folder / "complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
        for wanted in (["--no-deps", "sweeps==0.3.0"], ["jsonschema", "jsonref"]):  # its own pins go with numpy 1 only
            done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"sweeps 0.3.0 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        (folder / "complete").touch()

    def ask(questions):
        script = Path(__file__).with_name("engine.py")
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [sys.executable, str(script)], input=json.dumps(questions), capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask
