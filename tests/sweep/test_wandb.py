"""The real `wandb` command, its agents and its Api against an emulated server (wandb_server.py)."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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
from tests.sweep.wandb_server import ENTITY, emulated_server

QUICK = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=512", "--model.kwargs={units: 1}"]
SWEEP = {
    "name": "tiny",
    "program": "se-lab",
    "method": "grid",
    "project": "lab",
    "command": ["${env}", "se-lab", "train", *QUICK, "${args}"],
    "parameters": {"model.se": {"values": [{"insertion": "none"}, {"reduction": 4}]}, "seed": {"values": [0, 1, 2]}},
}


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
        client.teardown()  # a process of wandb's that another test started knows another server
        yield state
        client.teardown()


def write(folder, **changes):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return path


def wandb(*arguments):
    return [sys.executable, "-W", "ignore", "-m", "wandb", *arguments]


def agent(sweep, *more):
    return subprocess.Popen(
        wandb("agent", "-f", *more, f"{ENTITY}/lab/{sweep}"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def alike(table):
    """Return a table without what names its place, its rows and columns in one order."""
    return table.drop(columns="folder").sort_values("trial_id", ignore_index=True).sort_index(axis=1)


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
def test_a_stopped_trial_is_handed_out_again_and_a_busy_one_is_waited_for(server, tmp_path):
    parameters = {"train.epochs": {"value": 60}, "data.batch_size": {"value": 32}}
    command = ["${env}", "se-lab", "train", "--recipe=digits", "${args}"]
    path = write(tmp_path, parameters=parameters, command=command)
    for _ in range(2):
        subprocess.run(wandb("sweep", str(path)), check=True, capture_output=True)
    (trial,) = read_sweep(path).trials
    folder = tmp_path / "store" / trial.trial_id
    first = agent("sweep1")
    until(lambda: (folder / "metrics.csv").exists())
    second = agent("sweep2")  # another sweep's agent gets the same trial, which the first is running
    said = ""
    while "held by process" not in said:
        line = second.stdout.readline()
        assert line, said
        said += line
    assert len(list((folder / "claims").glob("0*[0-9]"))) == 1, "two workers had the trial"
    os.kill(first.pid, signal.SIGTERM)
    said = first.communicate(timeout=600)[0]
    (preempted,) = server.runs_of("sweep1")
    assert (preempted["state"], preempted["exitcode"]) == ("preempted", 75), said
    os.kill(second.pid, signal.SIGTERM)  # which has the trial by now, or is about to
    said = second.communicate(timeout=600)[0]
    assert server.runs_of("sweep2")[0]["state"] == "preempted", said
    assert main(["train", "--recipe=digits", "--train.epochs=60", "--data.batch_size=32", "--wandb=false"]) == 0
    third = agent("sweep1")
    said = third.communicate(timeout=600)[0]
    assert (preempted["state"], preempted["commands"]) == ("finished", ["run", "resume"]), said
    record = store.read_record(folder)
    assert preempted["summary"]["test/top1_error"] == record.metrics["test/top1_error"]
    epochs = [int(line.split(",")[0]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert epochs == list(range(60))


LONG = {
    "command": ["${env}", "se-lab", "train", "--recipe=digits", "${args}"],
    "parameters": {"train.epochs": {"value": 40}, "data.batch_size": {"value": 64}},
}
"""One trial, which takes a while."""


def long_trial(tmp_path, **changes):
    """Register a sweep of it, and return its folder."""
    path = write(tmp_path, **LONG | changes)
    subprocess.run(wandb("sweep", str(path)), check=True, capture_output=True)
    (trial,) = read_sweep(path).trials
    return tmp_path / "store" / trial.trial_id


@pytest.mark.slow
def test_one_agent_goes_on_with_a_trial_that_was_preempted_under_it(server, tmp_path):
    folder = long_trial(tmp_path)
    process = agent("sweep1")
    until(lambda: (folder / "metrics.csv").exists())
    pid = store.holder_of(folder)["pid"]
    os.kill(pid, signal.SIGTERM)  # the trial alone: the agent lives, and asks for more
    said = process.communicate(timeout=300)[0]
    (run,) = server.runs_of("sweep1")
    assert (run["state"], run["commands"], run["ends"]) == ("finished", ["run", "resume"], 2), said
    assert store.read_record(folder).status == "finished"
    epochs = [int(line.split(",")[0]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert epochs == list(range(40))
    seen = [row["epoch"] for row in run["history"] if "epoch" in row and "val/loss" in row]
    assert sorted(set(seen)) == list(range(40)), "an epoch is missing from the run's history"
    from_api = alike(load_records(f"wandb:{ENTITY}/lab/sweep1"))
    pd.testing.assert_frame_equal(from_api, alike(load_records(tmp_path / "sweep.yaml")))


TOLD_AGAIN = """
import contextlib, os, signal, time
import se_lab.sweep.wandb

original = se_lab.sweep.wandb.catch_signals

@contextlib.contextmanager
def catch_signals(stop):
    try:
        with original(stop) as told:
            yield told
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

if "WANDB_SWEEP_ID" in os.environ:
    se_lab.sweep.wandb.catch_signals = catch_signals
"""


@pytest.mark.slow
def test_a_trial_that_is_told_to_stop_from_two_sides_is_still_handed_out_again(server, tmp_path):
    (tmp_path / "told_again.py").write_text(TOLD_AGAIN)  # the second signal comes once the first has been heard
    command = [*LONG["command"][:-1], "--plugins=told_again", "${args}"]
    folder = long_trial(tmp_path, command=command)
    process = agent("sweep1", "--count", "1")
    until(lambda: (folder / "metrics.csv").exists())
    os.kill(store.holder_of(folder)["pid"], signal.SIGTERM)
    said = process.communicate(timeout=600)[0]
    (run,) = server.runs_of("sweep1")
    assert (run["state"], run["exitcode"]) == ("preempted", 75), said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_through_wandb_that_is_told_to_stop_says_how_to_go_on(server, tmp_path, number):
    path = write(tmp_path, **LONG)
    (trial,) = read_sweep(path).trials
    folder = tmp_path / "store" / trial.trial_id
    command = [sys.executable, "-W", "ignore", "-m", "se_lab.cli", "sweep", str(path), "--wandb", "--agents=2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(lambda: (folder / "metrics.csv").exists())
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out.splitlines()[-1]) == (75, f"{path}: 1 interrupted"), err
    (run,) = server.runs_of("sweep1")
    assert run["state"] == "preempted" and store.holder_of(folder) is None and (folder / "last.ckpt").exists()
    (told,) = [line.partition(":  ")[2] for line in err.splitlines() if "wandb agent -f" in line]
    if number == signal.SIGTERM:
        done = subprocess.run(told, shell=True, capture_output=True, text=True, timeout=300)
        assert (run["state"], run["commands"]) == ("finished", ["run", "resume"]), done.stdout + done.stderr
        assert store.read_record(folder).status == "finished"


@pytest.mark.slow
def test_a_trial_that_wandb_stops_is_not_handed_out_again(server, tmp_path):
    folder = long_trial(tmp_path)
    process = agent("sweep1")
    until(lambda: (folder / "metrics.csv").exists())
    (run,) = server.runs_of("sweep1")
    run["stopped"] = True  # what early_terminate and the button in the browser do
    said = process.communicate(timeout=300)[0]
    assert run["commands"] == ["run"] and run["state"] == "failed", said
    assert load_records(f"wandb:{ENTITY}/lab/sweep1")["status"].tolist() == ["stopped"]
    assert load_records(tmp_path / "sweep.yaml")["status"].tolist() == ["interrupted"]


@pytest.mark.slow
def test_a_failing_trial_is_a_failed_run_that_tells_why(server, tmp_path):
    command = ["${env}", "se-lab", "train", *QUICK, "--optim.schedule=constant", "${args}"]
    path = write(tmp_path, command=command, parameters={"optim.lr": {"values": [1e25]}})
    subprocess.run(wandb("sweep", str(path)), check=True, capture_output=True)
    said = agent("sweep1", "--count", "1").communicate(timeout=600)[0]
    assert [run["state"] for run in server.runs_of("sweep1")] == ["failed"], said
    (row,) = load_records(f"wandb:{ENTITY}/lab/sweep1").to_dict("records")
    assert row["status"] == "failed" and "the loss on the test images is nan or infinite" in row["error"]


def until(true, seconds=240):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


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
