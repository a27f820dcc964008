"""Sweeps on a real Slurm: each trial once, whatever happens to its job."""

import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from se_lab import store
from se_lab.cli import main
from se_lab.spec import ExecSpec
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from se_lab.sweep.schedule import execute
from se_lab.sweep.status import standings
from tests.sweep.agents import SLOW, alike
from tests.sweep.wandb_server import ENTITY

pytestmark = pytest.mark.usefixtures("slurm")

LONGER = ["--train.epochs=40", "--data.batch_size=16", SLOW]


def submit(path, folder, *more):
    return main(["sweep", str(path), f"--store={folder}", "--wandb=false", "--executor=slurm", *more])


def says(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def status(path, folder):
    return {s.trial.trial_id: s for s in standings(read_sweep(path), folder)}


def until(true, seconds=900):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, says("squeue", "--long")
        time.sleep(0.2)
    return found


def results(path, folder):
    """Return everything of a sweep's records that repeats, by trial."""
    table = load_records(path, folder)
    assert (table["status"] == "finished").all(), table[["trial_id", "status", "error"]]
    return table[[column for column in table if column not in ("folder", "seconds", "step_ms")]].to_json(
        orient="records"
    )


def run_here(path, folder):
    """Run the sweep without Slurm, in a process that no other test has used, and return its results."""
    command = [sys.executable, "-m", "se_lab.cli", "sweep", path, f"--store={folder}", "--wandb=false"]
    subprocess.run(command, check=True)
    return results(path, folder)


def claims(folder, trial_id):
    return sorted(path.name for path in (folder / trial_id / "claims").glob("0*[0-9]"))


@pytest.mark.slow
def test_a_sweep_on_slurm_is_the_sweep_here_and_is_submitted_once(sweep_file, tmp_path, capsys):
    path, folder = sweep_file(seed=range(4)), tmp_path / "store"
    trials = read_sweep(path).trials
    execute(trials[:1], ExecSpec(store=str(folder), logger="none"), 1, lambda _: None)
    stamp = (folder / trials[0].trial_id / "record.json").stat().st_mtime_ns
    assert submit(path, folder, "--slurm.trials_per_task=2", "--slurm.mem=200M", "--slurm.extra={comment: mine}") == 0
    assert "tiny: 1 finished, 3 queued" in capsys.readouterr().out
    stood = [s for s in status(path, folder).values() if s.status == "queued"]
    assert Counter(s.worker.split()[0] for s in stood) == {stood[0].worker.split()[0]: 2, stood[2].worker.split()[0]: 1}
    assert set(says("squeue", "-hr", "-o", "%k %m").splitlines()) == {"mine 200M"}
    assert submit(path, folder, "--wait") == 0
    assert capsys.readouterr().out == "nothing to submit\ntiny: 4 finished\n"
    assert results(path, folder) == run_here(path, tmp_path / "here")
    assert (folder / trials[0].trial_id / "record.json").stat().st_mtime_ns == stamp, "a finished trial was run again"
    assert [claims(folder, trial.trial_id) for trial in trials] == [["000001"]] * 4


def test_a_job_that_leaves_the_queue_without_a_result_is_lost_and_submitted_again(sweep_file, tmp_path, capsys):
    path, folder = sweep_file(seed=[0, 1, 2]), tmp_path / "store"
    held = "--slurm.extra={hold: true}"
    assert submit(path, folder, held) == 0
    jobs = [s.worker.split()[0] for s in status(path, folder).values()]
    assert [s.status for s in status(path, folder).values()] == ["queued"] * 3
    says("scancel", jobs[1])
    until(lambda: [s.status for s in status(path, folder).values()] == ["queued", "interrupted", "queued"])
    capsys.readouterr()
    assert submit(path, folder, held) == 0
    assert "tiny: 3 queued" in capsys.readouterr().out
    again = [s.worker.split()[0] for s in status(path, folder).values()]
    assert [again[0], again[2]] == [jobs[0], jobs[2]] and again[1] not in jobs
    says("scancel", "--name=se-lab-tiny")
    until(lambda: not says("squeue", "-h"))
    assert [s.status for s in status(path, folder).values()] == ["interrupted"] * 3


def test_what_sbatch_refuses_is_said_plainly(sweep_file, tmp_path, capsys):
    path = sweep_file(seed=[0])
    assert submit(path, tmp_path / "store", "--slurm.partition=nowhere") == 2
    assert "invalid partition" in capsys.readouterr().err
    assert submit(path, tmp_path / "store", "--slurm.time=soon") == 2
    assert "Invalid --time" in capsys.readouterr().err
    assert [s.status for s in status(path, tmp_path / "store").values()] == ["not started"]


@pytest.mark.slow
def test_a_drained_node_and_a_killed_job_leave_the_table_as_it_is(sweep_file, tmp_path, capsys):
    variants = [{"insertion": "none"}, {"reduction": 4}, {"reduction": 8}]
    path, folder = sweep_file("--train.epochs=4", SLOW, model__se=variants, seed=range(4)), tmp_path / "store"
    trials = [trial.trial_id for trial in read_sweep(path).trials]
    assert submit(path, folder) == 0
    running = until(lambda: [t for t in trials if store.holder_of(folder / t)])
    says("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    try:
        job, _ = status(path, folder)[running[0]].worker.split()
        says("scancel", "--signal=KILL", job)
        killed = running[0]
        until(lambda: status(path, folder)[killed].status == "interrupted")
        capsys.readouterr()
        assert submit(path, folder) == 0
        assert capsys.readouterr().out.startswith("submitted to Slurm: ")
        again = status(path, folder)[killed].worker.split()[0]
        assert again != job and again.count("_") == 0, "one trial was lost, one is submitted"
        assert submit(path, folder, "--wait") == 0
    finally:
        says("scontrol", "update", "NodeName=n1", "State=RESUME")
    assert capsys.readouterr().out.endswith("nothing to submit\ntiny: 12 finished\n")
    assert {trial: len(claims(folder, trial)) for trial in trials} == dict.fromkeys(trials, 1) | {killed: 2}
    assert results(path, folder) == run_here(path, tmp_path / "here")


def rows(folder, trial_id):
    """Return the epochs that a trial has behind it."""
    file = folder / trial_id / "metrics.csv"
    return [int(row["epoch"]) for row in csv.DictReader(file.open())] if file.exists() else []


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on_where_it_stopped(sweep_file, tmp_path):
    path, folder = sweep_file(*LONGER, seed=[0]), tmp_path / "store"
    ((trial, _),) = [(trial.trial_id, trial) for trial in read_sweep(path).trials]
    assert submit(path, folder) == 0
    job = status(path, folder)[trial].worker.split()[0]
    until(lambda: len(rows(folder, trial)) > 2)
    says("scancel", "--full", "--signal=TERM", job)
    until(lambda: "Restarts=1 " in says("scontrol", "show", "job", job))
    until(lambda: status(path, folder)[trial].status == "queued")
    had = len(rows(folder, trial))
    assert 2 < had < 40
    seen = set()
    until(lambda: seen.add(len(rows(folder, trial))) or status(path, folder)[trial].status == "finished")
    assert min(seen) >= had, "the trial began anew"
    assert rows(folder, trial) == list(range(40)) and claims(folder, trial) == ["000001", "000002"]
    assert results(path, folder) == run_here(path, tmp_path / "here")


@pytest.mark.slow
def test_a_job_of_higher_priority_takes_the_place_of_a_trial_which_goes_on_after_it(sweep_file, tmp_path):
    path, folder = sweep_file(*LONGER, seed=[0]), tmp_path / "store"
    (trial,) = [trial.trial_id for trial in read_sweep(path).trials]
    assert submit(path, folder) == 0
    job = status(path, folder)[trial].worker.split()[0]
    until(lambda: len(rows(folder, trial)) > 2)
    whole = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 10"]
    urgent = says("sbatch", "--parsable", *whole).strip()
    until(lambda: "Restarts=1 " in says("scontrol", "show", "job", job))
    had = len(rows(folder, trial))
    assert 2 < had < 40 and not (folder / trial / "record.json").exists() and (folder / trial / "last.ckpt").exists()
    until(lambda: says("squeue", "-h", "-o", "%T", f"--jobs={urgent}").strip() != "PENDING")
    assert status(path, folder)[trial].status == "queued", "the trial did not make room"
    seen = set()

    def over():
        seen.add(len(rows(folder, trial)))
        shown = says("scontrol", "show", "job", job)
        assert "Restarts=1 " in shown, "it was put into the queue twice"
        return status(path, folder)[trial].status == "finished"

    until(over)
    assert min(seen) >= had, "the trial began anew"
    assert rows(folder, trial) == list(range(40)) and claims(folder, trial) == ["000001", "000002"]
    assert results(path, folder) == run_here(path, tmp_path / "here")


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_is_requeued(sweep_file, tmp_path):
    path, folder = sweep_file("--train.epochs=100000", seed=[0]), tmp_path / "store"
    (trial,) = [trial.trial_id for trial in read_sweep(path).trials]
    assert submit(path, folder, "--slurm.time=2", "--slurm.grace=30") == 0
    job = status(path, folder)[trial].worker.split()[0]
    # on a busy machine the first run may end before the first epoch has
    until(lambda: rows(folder, trial) and "Restarts=0 " not in says("scontrol", "show", "job", job))
    had = len(rows(folder, trial))
    until(lambda: len(rows(folder, trial)) > had)
    assert rows(folder, trial) == list(range(len(rows(folder, trial))))
    says("scancel", job)
    until(lambda: not says("squeue", "-h"))


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled_and_is_gone_on_with_when_asked(sweep_file, tmp_path):
    path, folder = sweep_file(*LONGER, seed=[0]), tmp_path / "store"
    (trial,) = [trial.trial_id for trial in read_sweep(path).trials]
    assert submit(path, folder) == 0
    until(lambda: len(rows(folder, trial)) > 2)
    says("scancel", status(path, folder)[trial].worker.split()[0])
    until(lambda: status(path, folder)[trial].status == "interrupted")
    assert not says("squeue", "-h")
    had = len(rows(folder, trial))
    assert submit(path, folder) == 0
    seen = set()
    until(lambda: seen.add(len(rows(folder, trial))) or status(path, folder)[trial].status == "finished")
    assert min(seen) >= had and rows(folder, trial) == list(range(40))


def task_of(trial):
    """Return the task of an array that runs a trial now; None if none does."""
    if (holder := store.holder_of(trial)) is None:
        return None
    known = Path(f"/proc/{holder['pid']}/environ").read_text(encoding="utf-8").split("\0")
    (task,) = (entry.partition("=")[2] for entry in known if entry.startswith("SLURM_ARRAY_TASK_ID="))
    return int(task)


@pytest.mark.slow
def test_agents_on_slurm_share_a_sweep_of_wandb(server, sweep_file, tmp_path, capsys):
    path, folder = sweep_file(*LONGER, "--project=lab", seed=[0, 1, 2]), tmp_path / "store"
    trials = [trial.trial_id for trial in read_sweep(path).trials]
    agents = ["sweep", str(path), f"--store={folder}", "--wandb", "--executor=slurm"]
    assert main(agents) == 0
    assert [s.status for s in status(path, folder).values()] == ["queued"] * 3
    assert main(agents) == 0 and len(server.sweeps) == 1
    assert "nothing to submit" in capsys.readouterr().out
    until(lambda: [t for t in trials if task_of(folder / t) == 2 and len(rows(folder, t)) > 2])
    array = says("squeue", "-h", "-o", "%F").split()[0]
    says("scancel", "--full", "--signal=TERM", f"{array}_2")  # the task whose own number is that of the whole array
    assert main([*agents, "--wait"]) == 0
    assert capsys.readouterr().out.endswith("tiny: 3 finished\n")
    runs = server.runs_of("sweep1")
    assert [run["state"] for run in runs] == ["finished"] * 3
    assert sorted(run["config"]["trial_id"]["value"] for run in runs) == sorted(trials)
    assert sorted(tuple(run["commands"]) for run in runs) == [("run",), ("run",), ("run", "resume")]
    assert [len(claims(folder, trial)) for trial in trials].count(2) == 1
    there, here = alike(load_records(f"wandb:{ENTITY}/lab/sweep1")), alike(load_records(path, folder))
    pd.testing.assert_frame_equal(there, here, check_dtype=False)  # W&B writes 0.0 as 0


@pytest.mark.slow
def test_a_trial_over_two_nodes_comes_to_what_one_process_does(sweep_file, tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes have names that only this Slurm knows
    flags = ["--train.sync_bn=true", "--train.precision=fp64"]  # in double, no rounding grows into a difference
    path, folder = sweep_file(*flags, train__nodes=[1, 2], seed=[0]), tmp_path / "store"
    assert submit(path, folder) == 0
    jobs = [s.worker.split()[0] for s in status(path, folder).values()]
    assert ["NumNodes=2" in says("scontrol", "show", "job", job) for job in jobs] == [False, True]
    assert submit(path, folder, "--wait") == 0
    one, two = load_records(path, folder).to_dict("records")
    assert (one["train.nodes"], two["train.nodes"]) == (1, 2)
    for key in ("train/loss", "test/loss", "test/top1_error", "test/top5_error"):
        assert two[key] == pytest.approx(one[key], rel=1e-9), key


@pytest.mark.slow
def test_trials_that_look_at_one_another_are_shared_by_all_tasks(sweep_file, tmp_path, capsys):
    pytest.importorskip("optuna")
    path, folder = sweep_file("--data.val_fraction=0.2", seed=[0]), tmp_path / "store"
    spec = yaml.safe_load(path.read_text()) | {"method": "bayes", "run_cap": 4, "metric": {"name": "val/loss"}}
    spec["parameters"] = {"optim.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0}}
    path.write_text(yaml.safe_dump(spec))
    assert submit(path, folder, "--slurm.trials_per_task=2") == 0
    assert len(says("squeue", "-hr", "-o", "%i").split()) == 2
    assert submit(path, folder, "--slurm.trials_per_task=2", "--wait") == 0
    assert capsys.readouterr().out.endswith("nothing to submit\ntiny: 4 finished\n")
    trials = [path.parent.name for path in folder.glob("*/record.json")]
    assert [claims(folder, trial) for trial in trials] == [["000001"]] * 4
