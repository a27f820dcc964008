"""A tracker that fails does not fail its trial."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import wandb

from se_lab.spec import SpecError
from se_lab.store import read_record, trial_folder
from se_lab.training.run import run


@pytest.fixture
def offline(here, wandb_offline):
    """Return a store with W&B, offline."""
    return dataclasses.replace(here, logger="wandb")


def services():
    """Return the processes of W&B's service that this process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text(encoding="utf-8").partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if name.startswith("wandb-core") and int(parent) == os.getpid() and state != "Z":
            found.append(int(status.parent.name))
    return found


def test_a_trial_whose_wandb_service_is_killed_trains_on_and_the_next_one_logs(few, offline, capsys):
    killed = []

    def kill(row):
        if "epoch" in row and not killed:
            killed.extend(services())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    spec = few()
    record = run(spec, offline, progress=kill)
    assert killed and record.status == "finished"
    assert record.host["wandb"] in capsys.readouterr().err and "not logged" in record.host["wandb"]
    following = run(few(seed=1), offline)
    assert following.status == "finished" and "wandb" not in following.host
    folder = trial_folder(offline.store, following.trial_id)
    assert list(folder.glob(f"wandb/offline-run-*/run-{following.trial_id}.wandb"))


def test_a_tracker_that_does_not_start_is_recorded(few, offline, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionResetError("the service is gone")

    monkeypatch.setattr(wandb, "init", refuse)
    run(few(), offline)
    record = read_record(trial_folder(offline.store, few().trial_id))
    assert record.status == "finished"
    assert record.host["wandb"] == "nothing was logged: ConnectionResetError: the service is gone"


def test_the_run_has_the_group_tags_notes_and_job_type_of_the_flags(few, offline, monkeypatch):
    seen = {}

    def note(row):
        run_now = wandb.run
        seen.update(group=run_now.group, tags=run_now.tags, notes=run_now.notes, job_type=run_now.job_type)

    flags = {"group": "ablation", "tags": ("small", "first"), "notes": "a try", "job_type": "train"}
    run(few(), dataclasses.replace(offline, **flags), progress=note)
    assert seen == flags
    assert wandb.run is None


def test_the_run_of_an_agent_is_left_open(few, offline, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_MODE", "offline")  # for an agent's trials the usual is online
    run(few(), offline)
    assert wandb.run is not None
    wandb.finish()


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID"])
def test_an_empty_variable_says_nothing(few, offline, monkeypatch, name):
    monkeypatch.setenv(name, "")
    record = run(few(), offline)
    assert "wandb" not in record.host and wandb.run is None
    assert list(trial_folder(offline.store, record.trial_id).glob("wandb/offline-run-*"))


def test_a_mode_that_wandb_does_not_have_is_refused_before_anything_is_written(few, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "Offline")
    with pytest.raises(SpecError, match=r"WANDB_MODE.*'Offline'.*did you mean 'offline'"):
        run(few(), offline)
    assert not Path(offline.store).exists()
