"""Trials of the real `wandb agent` that are told to stop, against an emulated server (wandb_server.py)."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from se_lab import store
from se_lab.cli import main
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from tests.sweep.agents import QUICK, SLOW, agent, alike, until, wandb, write
from tests.sweep.wandb_server import ENTITY


@pytest.mark.slow
@pytest.mark.usefixtures("pace")
def test_a_stopped_trial_is_handed_out_again_and_a_busy_one_is_waited_for(server, tmp_path):
    parameters = {"train.epochs": {"value": 60}, "data.batch_size": {"value": 32}}
    command = ["${env}", "se-lab", "train", "--recipe=digits", SLOW, "${args}"]
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


@pytest.mark.slow
def test_ctrl_c_at_an_agent_saves_its_trial_and_another_agent_goes_on(server, tmp_path):
    folder = long_trial(tmp_path)
    process = agent("sweep1")
    until(lambda: (folder / "metrics.csv").exists())
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the agent and to its trial
    said = process.communicate(timeout=600)[0]
    (run,) = server.runs_of("sweep1")
    assert (run["state"], run["exitcode"]) == ("preempted", 75), said
    assert store.holder_of(folder) is None and (folder / "last.ckpt").exists()
    said = agent("sweep1").communicate(timeout=600)[0]
    assert (run["state"], run["commands"], run["ends"]) == ("finished", ["run", "resume"], 2), said
    assert store.read_record(folder).status == "finished"


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


TOLD_EARLY = """
import os, pathlib, signal

if "WANDB_RUN_ID" in os.environ and not pathlib.Path("told").exists():
    pathlib.Path("told").touch()
    os.kill(os.getpid(), NUMBER)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_trial_that_is_told_to_stop_while_its_command_starts_is_handed_out_again(server, tmp_path, number):
    (tmp_path / "told_early.py").write_text(TOLD_EARLY.replace("NUMBER", str(int(number))))
    command = ["${env}", "se-lab", "train", *QUICK, "--plugins=told_early", "${args}"]
    folder = long_trial(tmp_path, command=command, parameters={"seed": {"value": 0}})
    said = agent("sweep1").communicate(timeout=600)[0]
    (run,) = server.runs_of("sweep1")
    assert (run["state"], run["commands"], run["ends"]) == ("finished", ["run", "resume"], 2), said
    assert store.read_record(folder).status == "finished"


TOLD_WITH_A_LOCK = """
import logging, os, pathlib, signal
from se_lab.training import trial

original = trial.open_data

def open_data(*arguments):
    if "WANDB_RUN_ID" in os.environ and not pathlib.Path("told").exists():
        pathlib.Path("told").touch()
        logging._lock.acquire()  # as in logging itself, just before its `try`
        os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments)

trial.open_data = open_data
"""


@pytest.mark.slow
def test_a_trial_that_is_told_to_stop_while_it_holds_a_lock_is_handed_out_again(server, tmp_path):
    (tmp_path / "told_with_a_lock.py").write_text(TOLD_WITH_A_LOCK)
    command = ["${env}", "se-lab", "train", *QUICK, "--plugins=told_with_a_lock", "${args}"]
    folder = long_trial(tmp_path, command=command, parameters={"seed": {"value": 0}})
    said = agent("sweep1").communicate(timeout=300)[0]
    (run,) = server.runs_of("sweep1")
    assert (run["state"], run["commands"], run["ends"]) == ("finished", ["run", "resume"], 2), said
    assert store.read_record(folder).status == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGTERM] * 2, [signal.SIGINT] * 2])
def test_a_trial_that_is_told_to_stop_while_wandb_starts_its_run_is_handed_out_again(
    server, tmp_path, monkeypatch, numbers
):
    command = ["${env}", "se-lab", "train", *QUICK, "${args}"]
    folder = long_trial(tmp_path, command=command, parameters={"seed": {"value": 0}})
    answer, told = server.upsert_bucket, []

    def tell_before_the_answer(given):
        if not told and (holder := store.holder_of(folder)):
            told.append(holder["pid"])
            for number in numbers:
                os.kill(holder["pid"], number)
                time.sleep(0.5)
        return answer(given)

    monkeypatch.setattr(server, "upsert_bucket", tell_before_the_answer)
    said = agent("sweep1").communicate(timeout=600)[0]
    (run,) = server.runs_of("sweep1")
    assert told and (run["state"], run["commands"], run["ends"]) == ("finished", ["run", "resume"], 2), said
    assert store.read_record(folder).status == "finished"


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
    # W&B's client asks every few seconds whether to stop; the trial does not end before that on any machine
    folder = long_trial(tmp_path, parameters=LONG["parameters"] | {"train.epochs": {"value": 1000}})
    process = agent("sweep1")
    until(lambda: (folder / "metrics.csv").exists())
    (run,) = server.runs_of("sweep1")
    run["stopped"] = True  # what early_terminate and the button in the browser do
    said = process.communicate(timeout=300)[0]
    assert run["commands"] == ["run"] and run["state"] == "failed", said
    assert load_records(f"wandb:{ENTITY}/lab/sweep1")["status"].tolist() == ["stopped"]
    assert load_records(tmp_path / "sweep.yaml")["status"].tolist() == ["interrupted"]
