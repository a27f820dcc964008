"""Processes are forked from a server that has everything imported, whatever the calling process has done before."""

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

from se_lab.sweep.server import in_a_child, in_children

TRAINED = """
import json, sys
import torch
from se_lab.spec import DataSpec, ExecSpec, ModelSpec, RunSpec, SESpec, SpecError, TrainSpec
from se_lab.units.squeeze_excite import SQUEEZE
from se_lab.sweep.schedule import execute

print("begins", flush=True)
torch.set_num_threads(2)
net = torch.nn.Conv2d(3, 64, 3)
net(torch.randn(64, 3, 64, 64)).square().mean().backward()  # no fork of this could train
torch.cuda.is_available()  # and none could use a GPU

def trial(epochs=1, squeeze="avg", seed=0):
    model = ModelSpec("cifar_resnet20", SESpec(reduction=4, squeeze=squeeze), kwargs={"units": 1})
    return RunSpec(model, DataSpec(batch_size=512), train=TrainSpec(epochs=epochs), seed=seed)

here = ExecSpec(store=sys.argv[1], logger="none", threads=2)
"""


def script(folder, text):
    """Start an unguarded script, in a session of its own."""
    (folder / "script.py").write_text(TRAINED + textwrap.dedent(text))
    command = [sys.executable, "-W", "ignore", str(folder / "script.py"), str(folder / "store")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_sweep_runs_from_an_unguarded_script_that_has_trained_and_asked_for_a_gpu(tmp_path):
    process = script(
        tmp_path,
        """
        rows = []
        outcomes = execute([trial(seed=0), trial(seed=1)], here, 2, lambda e: rows.append((e.trial.seed, dict(e.row))))
        print(json.dumps([[o.status for o in outcomes], [seed for seed, row in rows if "epoch" in row]]))
        print(torch.get_num_threads())
        SQUEEZE["mine"] = lambda x: x.mean((2, 3))
        try:
            execute([trial(squeeze="mine")], here, 1, lambda e: None)
        except SpecError as error:
            print(error)
        """,
    )
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    begins, first, threads, refused = out.splitlines()
    statuses, seeds = json.loads(first)
    assert (begins, statuses, sorted(seeds), threads) == ("begins", ["finished"] * 2, [0, 1], "2")
    assert "model.se.squeeze is 'mine'" in refused and "name it in plugins" in refused


def test_a_signal_to_that_script_leaves_its_trial_resumable_and_the_trial_ends_with_it(tmp_path):
    process = script(
        tmp_path,
        """
        print([o.status for o in execute([trial(epochs=5000)], here, 1, lambda e: None)], flush=True)
        execute([trial(epochs=5000)], here, 1, lambda e: None)
        """,
    )

    def claimed(number):
        end = time.monotonic() + 600
        while not list((tmp_path / "store").glob(f"*/claims/{number}")):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        return json.loads(next((tmp_path / "store").glob(f"*/claims/{number}")).read_text())["pid"]

    try:
        claimed("000001")
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline() for _ in range(2)] == ["begins\n", "['interrupted']\n"]
        assert not list(tmp_path.glob("store/*/record.json"))
        worker = claimed("000002")
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 120
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "what it was running goes on unseen"
        time.sleep(0.05)


def test_ctrl_c_ends_a_child_without_a_traceback():
    code = "import time; from se_lab.sweep.server import in_a_child; print(flush=True); in_a_child(time.sleep, 60)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # at once: the server may not have imported anything yet
    assert process.communicate(timeout=600)[1].count("Traceback") == 1  # the parent's own


def test_a_child_has_the_environment_of_now_and_hands_over_what_it_raises(monkeypatch):
    assert in_a_child(torch.get_num_threads) >= 1
    monkeypatch.setenv("SET_AFTER_THE_SERVER_STARTED", "yes")
    assert in_children(2, os.getenv, "SET_AFTER_THE_SERVER_STARTED") == ["yes", "yes"]
    with pytest.raises(ValueError, match="invalid literal"):
        in_a_child(int, "x")
    with pytest.raises(RuntimeError, match="status 3 and no answer"):
        in_a_child(os._exit, 3)
