"""How the trials of a sweep stand, without Slurm."""

import json
import os
import socket
import sys
import time

import pytest

from se_lab import store
from se_lab.cli import main
from se_lab.spec import SpecError
from se_lab.store import RunRecord
from se_lab.sweep import slurm, status
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.status import Submission, standings, summary


def test_a_sweep_that_ran_here_is_told_trial_by_trial(sweep_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules[store.Claim.__module__], "HEARTBEAT_SECONDS", 1e6)
    path = sweep_file(seed=range(5))
    trials = read_sweep(path).trials
    folders = [tmp_path / "store" / trial.trial_id for trial in trials]
    for trial, folder, state in zip(trials, folders, ("finished", "failed"), strict=False):
        error = None if state == "finished" else "Traceback ...\nMemoryError: no more"
        store.write_record(folder, RunRecord(trial.trial_id, state, trial.flat(), {}, error=error))
    with store.claim(folders[2]):
        pass
    with store.claim(folders[3]) as claim:
        long_ago = time.time() - 600
        os.utime(claim.path, (long_ago, long_ago))  # as of a worker that is frozen, on this host
        assert main(["status", str(path), f"--store={tmp_path / 'store'}", "--format=json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert main(["status", str(path), f"--store={tmp_path / 'store'}"]) == 0
        table = capsys.readouterr().out
    assert [row["status"] for row in listed] == ["finished", "failed", "interrupted", "running", "not started"]
    assert [row["trial_id"] for row in listed] == [trial.trial_id for trial in trials]
    assert listed[3]["worker"] == f"process {os.getpid()} on {socket.gethostname()}, without a heartbeat for 10 min"
    assert "without a heartbeat for 10 min" in " ".join(table.split())
    assert listed[1]["error"] == "MemoryError: no more" and listed[0]["spec"]["seed"] == 0
    assert "MemoryError: no more" in table and "seed" in table
    assert table.endswith("tiny: 1 failed, 1 finished, 1 interrupted, 1 not started, 1 running\n")


def test_where_slurms_queue_cannot_be_asked_nothing_is_guessed(sweep_file, tmp_path, monkeypatch):
    sweep = read_sweep(sweep_file(seed=[0, 1]))
    ids = [trial.trial_id for trial in sweep.trials]
    Submission("se-lab-tiny", 1, [(["7_0"], ids[:1]), (["7_1"], ids[1:])]).note(tmp_path / ".slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError, match="this machine has no squeue"):
        standings(sweep, tmp_path)
    for trial in sweep.trials:
        folder = tmp_path / trial.trial_id
        store.write_record(folder, RunRecord(trial.trial_id, "finished", trial.flat(), {}))
    assert summary(sweep, standings(sweep, tmp_path)) == "tiny: 2 finished"  # nothing that Slurm would have to be asked


def test_flags_for_slurm_without_slurm_are_refused(sweep_file, tmp_path, capsys):
    here = [str(sweep_file(seed=[0])), f"--store={tmp_path / 'store'}"]
    assert main(["sweep", *here, "--slurm.partition=gpu"]) == 2
    assert "need --executor slurm" in capsys.readouterr().err
    assert main(["sweep", *here, "--executor=slurm", "--slurm.trials_per_task=0"]) == 2
    assert "slurm.trials_per_task is 0; it must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def program(folder, name, text):
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_busy_controller_is_asked_again_before_a_queue_is_given_up(sweep_file, tmp_path, monkeypatch):
    sweep = read_sweep(sweep_file(seed=[0]))
    Submission("se-lab-tiny", 1, [(["7"], [sweep.trials[0].trial_id])]).note(tmp_path / ".slurm")
    busy = "{ echo Socket timed out >&2; exit 1; }"
    program(
        tmp_path,
        "squeue",
        f"echo x >> {tmp_path}/asked; test $(wc -l < {tmp_path}/asked) = 2 && echo 7 PENDING || {busy}",
    )
    monkeypatch.setattr(status, "ASK_AGAIN_SECONDS", (0.01,))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [s.status for s in standings(sweep, tmp_path)] == ["queued"]
    with pytest.raises(SpecError, match="cannot be read: Socket timed out"):
        standings(sweep, tmp_path)


def test_a_job_that_must_leave_asks_a_busy_controller_again(tmp_path, monkeypatch):
    program(tmp_path, "squeue", f"test -e {tmp_path}/asked && echo RUNNING || {{ touch {tmp_path}/asked; exit 1; }}")
    program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/told')
    monkeypatch.setattr(status, "ASK_AGAIN_SECONDS", (0.01,))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(SystemExit, match="75"):
        slurm._end_job(made_progress=True)
    assert (tmp_path / "told").read_text() == "requeue 7\n"
