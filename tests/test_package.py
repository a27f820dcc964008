"""The package as an index serves it: what a wheel holds, and that its version is told alike everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
DEMO = """
program: se-lab
command: ["${env}", se-lab, train, --recipe=digits, --train.epochs=1, "${args}"]
method: grid
parameters:
  model.se: {values: [{insertion: none}, {reduction: 4}]}
  seed: {values: [0, 1]}
"""


def test_every_folder_of_the_package_is_packed():
    listed = set(re.findall(r'^    "(se_lab[\w.]*)",$', PROJECT[PROJECT.index("\npackages = [") :].split("]")[0], re.M))
    folders = {".".join(file.relative_to(ROOT).parent.parts) for file in (ROOT / "se_lab").rglob("*.py")}
    assert listed == folders | {"se_lab.spec.sweeps", "se_lab.spec.analysis"}


def test_every_file_beside_the_code_is_packed():
    patterns = re.findall(r'"([^"]+)"', re.search(r"^se_lab = (\[.*\])$", PROJECT, re.M)[1])
    packed = {file for pattern in patterns for file in (ROOT / "se_lab").glob(pattern)}
    beside = {file for file in (ROOT / "se_lab").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert beside == packed


def test_the_version_is_told_alike_everywhere():
    (version,) = re.findall(r'^version = "(.+)"$', PROJECT, re.M)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d[\w.]*)\]", changelog, re.M)[0] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version


@pytest.mark.slow
def test_a_wheel_installed_alone_goes_from_init_through_sweep_to_table(tmp_path):
    def run(*command: object, **variables: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SE_LAB_STORE")}
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    files = sorted((tmp_path / "dist").iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    (sdist,) = (file for file in files if file.name.endswith(".tar.gz"))
    with tarfile.open(sdist) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {"tests/conftest.py", "sweeps/demo.yaml", "README.md", "CHANGELOG.md", "se_lab/__init__.py"} <= inside

    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", next(f for f in files if f.suffix == ".whl"))
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # the dependencies come from this Python's environment; the checkout that it may have installed does not
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    assert site in run(python, "-c", "import se_lab; print(se_lab.__file__)")
    command = tmp_path / "env" / "bin" / "se-lab"
    run(command, "init", "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"sweeps", "recipes", "analysis"}
    (tmp_path / "mine" / "sweeps" / "small.yaml").write_text(DEMO)
    run(command, "sweep", "mine/sweeps/small.yaml", WANDB_MODE="offline")
    assert "no SE" in run(command, "table", "mine/sweeps/small.yaml")
    assert (tmp_path / "runs").is_dir()
