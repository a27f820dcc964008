"""The real `wandb` command, its agents and its Api against an emulated server (wandb_server.py)."""

import dataclasses
import json
import socket
import subprocess

import pandas as pd
import pytest
import wandb as client
import yaml

from se_lab import store
from se_lab.cli import main
from se_lab.spec import ExecSpec, SESpec, run_name, variant_name
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from se_lab.sweep.schedule import execute
from se_lab.training.run import run
from tests.sweep.agents import QUICK, SWEEP, agent, alike, wandb, write
from tests.sweep.wandb_server import ENTITY


@pytest.mark.slow
def test_wandb_sweep_and_three_agents_run_every_trial_once(server, tmp_path):
    path = write(tmp_path)
    trials = [trial.trial_id for trial in read_sweep(path).trials]
    made = subprocess.run(wandb("sweep", str(path)), capture_output=True, text=True)
    assert "sweep1" in made.stderr, made.stderr
    agents = [agent("sweep1") for _ in range(3)]
    said = [process.communicate(timeout=300)[0] for process in agents]
    runs = server.runs_of("sweep1")
    assert [run["state"] for run in runs] == ["finished"] * 6, said
    assert sorted(run["config"]["trial_id"]["value"] for run in runs) == sorted(trials)
    assert sorted(path.parent.name for path in (tmp_path / "store").glob("*/record.json")) == sorted(trials)

    through_api = client.Api().sweep(f"{ENTITY}/lab/sweep1").runs
    assert sorted(run.config["trial_id"] for run in through_api) == sorted(trials)

    from_disk = alike(load_records(path, tmp_path / "store"))
    pd.testing.assert_frame_equal(alike(load_records(f"wandb:{ENTITY}/lab/sweep1")), from_disk)

    # a sweep that shares two of the trials, in one command: they end at once, with the metrics in the store
    stamps = {record: record.stat().st_mtime_ns for record in (tmp_path / "store").glob("*/record.json")}
    shared = write(tmp_path, parameters=SWEEP["parameters"] | {"seed": {"values": [1]}})
    assert main(["sweep", str(shared), "--wandb", "--agents", "2"]) == 0
    assert [run["state"] for run in server.runs_of("sweep2")] == ["finished"] * 2
    pd.testing.assert_frame_equal(alike(load_records(f"wandb:{ENTITY}/lab/sweep2")), alike(load_records(shared)))
    assert stamps == {record: record.stat().st_mtime_ns for record in (tmp_path / "store").glob("*/record.json")}
    assert not server.unknown


@pytest.mark.slow
def test_agents_run_the_seeds_that_are_added_and_again_nothing_is_run(server, tmp_path, capsys):
    path = write(tmp_path, parameters=SWEEP["parameters"] | {"seed": {"values": [0, 1]}})
    grow = ["sweep", str(path), "--wandb", "--agents=2", "--until_halfwidth=0.0001", "--max_seeds=3"]
    assert main(grow) == 0
    assert capsys.readouterr().out.endswith("points in 3 seeds\n")
    assert [len(server.runs_of(sweep)) for sweep in ("sweep1", "sweep2")] == [4, 2]
    assert {run["config"]["seed"]["value"] for run in server.runs_of("sweep2")} == {2}  # of both variants
    assert yaml.safe_load(server.sweeps["sweep2"]["config"])["name"] == "tiny, seed 2"
    assert sorted(load_records(path)["seed"]) == [0, 0, 1, 1, 2, 2]
    assert main(grow) == 0 and len(server.sweeps) == 2  # the looks again, without a trial
    assert capsys.readouterr().out.endswith("points in 3 seeds\n")
    assert not server.unknown


@pytest.mark.slow
def test_a_failing_trial_is_a_failed_run_that_tells_why(server, tmp_path):
    command = ["${env}", "se-lab", "train", *QUICK, "--optim.schedule=constant", "${args}"]
    path = write(tmp_path, command=command, parameters={"optim.lr": {"values": [1e25]}})
    subprocess.run(wandb("sweep", str(path)), check=True, capture_output=True)
    said = agent("sweep1", "--count", "1").communicate(timeout=600)[0]
    assert [run["state"] for run in server.runs_of("sweep1")] == ["failed"], said
    (row,) = load_records(f"wandb:{ENTITY}/lab/sweep1").to_dict("records")
    assert row["status"] == "failed" and "the loss on the test images is nan or infinite" in row["error"]


@pytest.mark.slow
def test_a_trial_of_an_agent_without_a_key_is_kept_and_says_what_is_missing(server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("HOME", str(tmp_path))  # without a .netrc
    command = ["se-lab", "train", *QUICK]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("se-lab train: W&B did not start the run of WANDB_SWEEP_ID abc: ")
    assert store.read_records(tmp_path / "store")["status"].tolist() == ["finished"]


@pytest.mark.slow
def test_the_emulation_hands_out_pauses_stops_filters_and_samples_as_the_client_asks(server):
    """The real client, no trial: what the tests of trials rely on."""
    spec = {"method": "random", "parameters": {"lr": {"min": 0.1, "max": 0.2}, "kind": {"value": "a"}}}

    def state_of(name, change):
        subprocess.run(wandb("sweep", change, f"{ENTITY}/lab/{name}"), check=True, capture_output=True)
        return client.Api().sweep(f"{ENTITY}/lab/{name}").state

    def log_ten_steps():
        with client.init(settings=client.Settings(silent=True, console="off")) as run:
            for step in range(10):
                run.log({"loss": 1.0 - 0.1 * step} | ({"rare": step} if step % 5 == 0 else {}))

    for method in ("random", "bayes"):
        metric = {"metric": {"name": "loss", "goal": "minimize"}} if method == "bayes" else {}
        name = client.sweep(spec | metric | {"method": method, "run_cap": 1}, project="lab", entity=ENTITY)
        client.agent(name, function=log_ten_steps, project="lab", entity=ENTITY)
        (run,) = server.runs_of(name)
        assert run["state"] == "finished" and 0.1 <= run["config"]["lr"]["value"] <= 0.2
    states = {"--pause": "PAUSED", "--resume": "RUNNING", "--stop": "FINISHED", "--cancel": "CANCELED"}
    for changes in (["--pause", "--resume", "--stop"], ["--cancel"]):
        other = client.sweep(spec, project="lab", entity=ENTITY)
        assert [state_of(other, change) for change in changes] == [states[c] for c in changes]
        client.agent(other, function=log_ten_steps, project="lab", entity=ENTITY)
        assert server.runs_of(other) == []

    api = client.Api()
    lr = run["config"]["lr"]["value"]
    for filters, count in (
        ({"state": "finished"}, 2), ({"state": {"$ne": "finished"}}, 0), ({"config.lr": lr}, 2),
        ({"$or": [{"config.lr.value": {"$gt": 1}}, {"sweep": name}]}, 1), ({"config.lr": 0.3}, 0),
        ({"config.kind": {"$in": ["a"]}}, 2),
    ):  # fmt: skip
        assert len(list(api.runs(f"{ENTITY}/lab", filters=filters, include_sweeps=False))) == count, filters
    found = api.run(f"{ENTITY}/lab/{run['name']}")
    assert len(found.history(keys=["rare"], pandas=False)) == 2 and len(found.history(samples=5, pandas=False)) >= 5
    assert [row["_step"] for row in found.scan_history()] == list(range(10))  # from the parquet file, then live
    assert not server.unknown


def test_offline_trials_are_sent_once_and_whole(server, tmp_path, capsys):
    path = write(tmp_path, parameters={"model.se": SWEEP["parameters"]["model.se"]})
    here = ExecSpec(logger="none", project="sent")
    trials = read_sweep(path).trials
    execute(trials[:1], here, 1, lambda _: None)
    assert main(["sync", str(path), "--project=sent"]) == 0
    told = capsys.readouterr().out.split()
    assert told == [trials[0].trial_id, "sent", trials[1].trial_id, "not", "started"]
    (run,) = server.runs.values()
    assert run["name"] == trials[0].trial_id and run["group"].startswith("cifar_resnet20 no SE, ")
    assert sorted(run["tags"]) == ["cifar_resnet20", "none", "tiny"] and run["config"]["sweep"]["value"] == "tiny"
    assert [row["epoch"] for row in run["history"]] == [0]
    execute(trials, here, 1, lambda _: None)
    assert main(["sync", str(path), "--project=sent"]) == 0
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()] == ["already there", "sent"]
    assert {run["name"]: run["ends"] for run in server.runs.values()} == {trial.trial_id: 1 for trial in trials}
    from_disk = alike(load_records(path))
    pd.testing.assert_frame_equal(alike(load_records(f"wandb:{ENTITY}/sent")), from_disk)
    assert not server.unknown


def test_a_trial_that_logs_to_wandb_itself_brings_its_provenance(server, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    here = ExecSpec(store=str(tmp_path / "store"), project="own", entity=ENTITY)
    record = run(quick(epochs=1), here)
    read = load_records(f"wandb:{ENTITY}/own").iloc[0]
    assert read["status"] == "finished" and json.loads(read["provenance"]) == record.provenance
    assert (read["data_digest"], read["code_version"]) == (record.data["digest"], record.provenance["se-lab"])


def test_the_name_of_a_variant_has_everything_that_varies_but_the_seed(quick):
    trial = quick()
    others = [
        dataclasses.replace(trial, model=dataclasses.replace(trial.model, se=SESpec(reduction=4, **change)))
        for change in ({"bias": True}, {"bias": True, "start": "identity"}, {"squeeze": "max"})
    ]
    others += [
        dataclasses.replace(trial, optim=dataclasses.replace(trial.optim, lr=0.3)),
        dataclasses.replace(trial, data=dataclasses.replace(trial.data, batch_size=128)),
        dataclasses.replace(trial, data=dataclasses.replace(trial.data, name="cifar10")),
    ]
    names = [variant_name(one) for one in (trial, *others)]
    assert len(set(names)) == len(names) and "bias=True" in names[1] and "lr=0.3" in names[4]
    other_seed = dataclasses.replace(trial, seed=9)
    assert variant_name(other_seed) == names[0] and run_name(other_seed) == f"{names[0]}, seed 9"
    long = dataclasses.replace(trial, data=dataclasses.replace(trial.data, name="folder:" + "x" * 200))
    assert len(variant_name(long)) == len(run_name(long)) == 128 and variant_name(long) != variant_name(
        dataclasses.replace(long, optim=others[3].optim)
    )


def test_without_a_network_nothing_is_sent_and_that_is_said_soon(tmp_path, quick, monkeypatch, capsys):
    trial = quick()
    record = store.RunRecord(trial.trial_id, "finished", trial.flat(), {})
    store.write_record(store.trial_folder(tmp_path / "store", trial.trial_id), record)
    with socket.socket() as silent:  # takes connections, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for url in (f"http://127.0.0.1:{silent.getsockname()[1]}", "http://127.0.0.1:9"):
            monkeypatch.setenv("WANDB_BASE_URL", url)
            monkeypatch.setattr("se_lab.sweep.wandb.check_network.__defaults__", (0.3,))
            assert main(["sync", str(tmp_path / "store")]) == 2
            assert f"W&B does not answer at {url}" in capsys.readouterr().err


def test_what_is_not_there_is_said(server, tmp_path, capsys):
    assert main(["table", "wandb:nobody"]) == 2
    assert "wandb:ENTITY/PROJECT" in capsys.readouterr().err
    assert main(["table", f"wandb:{ENTITY}/nothing"]) == 2
    assert "contains no trials" in capsys.readouterr().err
    path = write(tmp_path)
    assert main(["sweep", str(path), "--wandb", "--device=cpu"]) == 2
    assert "write it into the spec's command" in capsys.readouterr().err
