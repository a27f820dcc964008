"""What a sweep will take, before it is run."""

import dataclasses
import os
import shutil

import yaml

from se_lab.cli import main
from se_lab.data import data_shape
from se_lab.spec import OptimSpec
from se_lab.store import trial_folder
from se_lab.sweep.plan import folder_bytes
from se_lab.training.run import run


def test_the_estimate_of_a_folder_is_what_a_trial_leaves(quick, here):
    trial = quick()
    params = run(trial, here).complexity["params"]
    folder = trial_folder(here.store, trial.trial_id)
    real = sum(os.path.getsize(folder / name) for name in os.listdir(folder) if (folder / name).is_file())  # noqa: PTH202
    estimate = folder_bytes(trial, params, data_shape(trial.data))
    assert 0.6 < estimate / real < 1.3, (estimate, real)
    adam = dataclasses.replace(trial, optim=OptimSpec(name="adamw", lr=0.001))
    assert folder_bytes(adam, params, data_shape(trial.data)) - estimate == 2 * 4 * params


def test_a_dry_run_totals_time_and_disk_and_says_where_that_is_too_much(tmp_path, capsys, monkeypatch):
    command = ["${env}", "se-lab", "train", "--recipe=digits", "${args}"]
    spec = {"program": "se-lab", "method": "grid", "command": command, "parameters": {"seed": {"values": [0, 1]}}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec))
    assert main(["sweep", str(path), "--dry_run", "--store", str(tmp_path / "new" / "store")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 trials, 2 to run: about" in said and "GiB of disk space" in said and "NOT ENOUGH" not in said
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1))
    assert main(["sweep", str(path), "--dry_run", "--store", str(tmp_path / "new" / "store")]) == 0
    assert "NOT ENOUGH" in capsys.readouterr().out


def test_a_dry_run_of_a_search_counts_what_it_has_yet_to_propose(tmp_path, capsys):
    command = ["${env}", "se-lab", "train", "--recipe=digits", "${args}"]
    axes = {"optim.lr": {"min": 0.01, "max": 0.1}}
    metric = {"name": "val/loss", "goal": "minimize"}
    spec = {"program": "se-lab", "method": "bayes", "run_cap": 7, "metric": metric, "command": command}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec | {"parameters": axes}))
    assert main(["sweep", str(path), "--dry_run", "--store", str(tmp_path / "store")]) == 0
    assert "7 trials, 7 to run: about" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()
