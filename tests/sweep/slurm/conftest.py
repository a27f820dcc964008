"""A Slurm of two nodes for the tests of a module. Each process of pytest has its own, and none knows of another."""

import subprocess

import pytest
import yaml

from tests.sweep.slurm.cluster import cluster, missing

TINY = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=512", "--model.kwargs={units: 1}"]


@pytest.fixture(scope="module")
def running_slurm():
    if absent := missing():
        pytest.skip(f"Slurm is not installed here ({', '.join(absent)} missing): apt-get install slurm-wlm munge")
    with cluster() as environment:
        yield environment


@pytest.fixture
def slurm(running_slurm, pace, monkeypatch):
    """Let sbatch and the others that the test starts reach the Slurm of the tests; leave it no job."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, running_slurm[name])
    yield
    jobs = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True).stdout.split()
    for job in jobs:
        subprocess.run(["scancel", job])
        subprocess.run(["scancel", "--signal=KILL", "--full", job], capture_output=True)


@pytest.fixture
def sweep_file(tmp_path):
    """Return a maker of sweep specs: tiny trials unless they are told otherwise."""

    def make(*flags, **axes):
        path = tmp_path / "sweep.yaml"
        command = ["${env}", "se-lab", "train", *TINY, *flags, "${args}"]
        parameters = {key.replace("__", "."): {"values": list(values)} for key, values in axes.items()}
        spec = {"name": "tiny", "program": "se-lab", "method": "grid", "command": command, "parameters": parameters}
        path.write_text(yaml.safe_dump(spec))
        return path

    return make
