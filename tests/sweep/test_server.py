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

from se_lab.sweep.server import call_in_process, call_in_processes

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


def test_an_unguarded_script_that_has_trained_and_asked_for_a_gpu_sweeps_and_is_stopped_by_a_signal(tmp_path):
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
            print(error, flush=True)
        print([o.status for o in execute([trial(epochs=5000)], here, 1, lambda e: None)], flush=True)
        execute([trial(epochs=5000)], here, 1, lambda e: None)
        """,
    )
    lines = [process.stdout.readline() for _ in range(4)]
    assert len(lines[3]), process.communicate()[1]
    statuses, seeds = json.loads(lines[1])
    assert (lines[0], statuses, sorted(seeds), lines[2]) == ("begins\n", ["finished"] * 2, [0, 1], "2\n")
    assert "model.se.squeeze is 'mine'" in lines[3] and "name the module in plugins" in lines[3]
    known = set((tmp_path / "store").glob("*/claims/0*"))

    def claimed(number):
        end = time.monotonic() + 600
        while not (new := set((tmp_path / "store").glob(f"*/claims/{number}")) - known):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        return json.loads(new.pop().read_text())["pid"]

    try:
        claimed("000001")
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "['interrupted']\n"
        assert len(list(tmp_path.glob("store/*/record.json"))) == 2
        worker = claimed("000002")
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 120
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "what it was running goes on unseen"
        time.sleep(0.05)


def test_ctrl_c_ends_a_child_without_a_traceback():
    code = "import time; from se_lab.sweep.server import call_in_process as run; print(flush=True); run(time.sleep, 60)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # at once: the server may not have imported anything yet
    assert process.communicate(timeout=600)[1].count("Traceback") == 1  # the parent's own


def test_a_child_has_the_environment_of_now_and_hands_over_what_it_raises(monkeypatch):
    assert call_in_process(torch.get_num_threads) >= 1
    monkeypatch.setenv("SET_AFTER_THE_SERVER_STARTED", "yes")
    assert call_in_processes(2, os.getenv, "SET_AFTER_THE_SERVER_STARTED") == ["yes", "yes"]
    with pytest.raises(ValueError, match="invalid literal"):
        call_in_process(int, "x")
    with pytest.raises(RuntimeError, match="status 3 and no result"):
        call_in_process(os._exit, 3)
