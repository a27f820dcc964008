"""A sweep called from a process that has trained, as notebooks do: no fork of it could train, a new Python does."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

TRAINED = """
import json, sys
import torch
from se_lab.spec import DataSpec, ExecSpec, ModelSpec, RunSpec, SESpec, SpecError, TrainSpec
from se_lab.units.squeeze_excite import SQUEEZE
from se_lab.sweep.child import can_fork
from se_lab.sweep.execute import execute

torch.set_num_threads(2)
net = torch.nn.Conv2d(3, 64, 3)
net(torch.randn(64, 3, 64, 64)).square().mean().backward()

def trial(epochs=1, squeeze="avg", seed=0):
    model = ModelSpec("cifar_resnet20", SESpec(reduction=4, squeeze=squeeze), kwargs={"units": 1})
    return RunSpec(model, DataSpec(batch_size=512), train=TrainSpec(epochs=epochs), seed=seed)

here = ExecSpec(store=sys.argv[1], wandb=False, threads=2)
"""


def script(store, text):
    command = [sys.executable, "-W", "ignore", "-c", TRAINED + textwrap.dedent(text), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def training(store, text):
    """Start a script whose trial has an epoch behind it."""
    process = script(store, text)
    while not list(store.glob("*/metrics.csv")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


def test_a_process_that_has_trained_with_threads_cannot_fork_and_its_sweep_runs_all_the_same(tmp_path):
    process = script(
        tmp_path / "store",
        """
        assert not can_fork(2)
        rows = []
        outcomes = execute([trial(seed=0), trial(seed=1)], here, 2, lambda e: rows.append((e.trial.seed, dict(e.row))))
        print(json.dumps([[o.status for o in outcomes], [seed for seed, row in rows if row], torch.get_num_threads()]))
        SQUEEZE["mine"] = lambda x: x.mean((2, 3))
        try:
            execute([trial(squeeze="mine")], here, 1, lambda e: None)
        except SpecError as error:
            print(error)
        """,
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    first, refused = out.splitlines()
    statuses, seeds, threads = json.loads(first)
    assert statuses == ["finished"] * 2 and sorted(seeds) == [0, 1] and threads == 2
    assert "model.se.squeeze is 'mine'" in refused and "name that as plugins" in refused


def test_the_new_python_forks_without_asking_whether_it_can(tmp_path):
    (tmp_path / "slow_machine.py").write_text(
        "import se_lab.sweep.execute\n\nse_lab.sweep.execute.can_fork = lambda threads: False\n"
    )
    process = script(
        tmp_path / "store",
        """
        import dataclasses, os
        os.chdir(os.path.dirname(sys.argv[1]))
        here = dataclasses.replace(here, plugins="slow_machine")
        print([o.status for o in execute([trial()], here, 1, lambda e: None)])
        """,
    )
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert out.strip() == "['finished']", err


@pytest.mark.slow
def test_a_signal_to_that_process_leaves_its_trial_resumable(tmp_path):
    store = tmp_path / "store"
    process = training(store, "print([o.status for o in execute([trial(epochs=500)], here, 1, lambda e: None)])")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out.strip() == "['interrupted']", err
    assert list(store.glob("*/last.ckpt")) and not list(store.glob("*/record.json"))


@pytest.mark.slow
def test_it_ends_with_the_process_that_called_it(tmp_path):
    store = tmp_path / "store"
    process = training(store, "execute([trial(epochs=5000)], here, 1, lambda e: None)")
    worker = json.loads(next(store.glob("*/claims/000001")).read_text())["pid"]
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "what it was running goes on unseen"
        time.sleep(0.1)


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch without CUDA")
def test_a_process_that_has_asked_cuda_for_a_gpu_cannot_fork_where_there_is_one():
    code = """
import torch
from se_lab.sweep.child import can_fork
torch.cuda.is_available()
print(can_fork(1))
torch.cuda.is_available = lambda: True
print(can_fork(1))
"""
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_process_that_has_not_trained_forks(tmp_path):
    code = "from se_lab.sweep.child import can_fork; print(can_fork(1), can_fork(2))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
