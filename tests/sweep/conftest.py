"""W&B's own search engine, to hold ours against, and an emulation of its server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import end_service
from tests.sweep.wandb_server import emulated_server


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


@pytest.fixture
def pace(monkeypatch):
    """Let the test and all that it starts find the callback of pace.py, in any folder."""
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here, prepend=os.pathsep)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Run the emulated server, and point every wandb that is started from here to it."""
    with emulated_server() as state:
        for name, value in {
            "WANDB_BASE_URL": state.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_DIR": str(tmp_path),
            "WANDB_CONFIG_DIR": str(tmp_path / "config"),
            "WANDB_CACHE_DIR": str(tmp_path / "cache"),
            "WANDB_DATA_DIR": str(tmp_path / "data"),
            "WANDB_AGENT_REPORT_INTERVAL": "0",
            "SE_LAB_STORE": str(tmp_path / "store"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }.items():
            monkeypatch.setenv(name, value)
        for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SILENT"):
            monkeypatch.setenv(name, "")  # so that what wandb puts there is taken back as well
            monkeypatch.delenv(name)
        monkeypatch.chdir(tmp_path)
        end_service()  # a process of wandb's that another test started knows another server
        yield state
        end_service()
