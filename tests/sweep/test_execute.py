"""Sweeps on this machine: each trial once, whatever happens to the workers."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from se_lab.spec import ExecSpec, ModelSpec, RunSpec, SESpec, SpecError
from se_lab.sweep.execute import check_trials, execute
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from se_lab.task import ClassificationTask

SWEEP = {
    "program": "se-lab",
    "method": "grid",
    "command": ["${env}", "se-lab", "train", "--recipe=digits", "--train.epochs=4", "--data.batch_size=256", "${args}"],
    "parameters": {"model.se": {"values": [{"insertion": "none"}, {"reduction": 4}]}, "seed": {"values": [0, 1]}},
}


@pytest.fixture
def spec_file(tmp_path):
    """Return a sweep of four trials of about a second."""
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what the sweep comes to when nothing happens to it."""
    store = tmp_path_factory.mktemp("undisturbed")
    spec_file = store / "sweep.yaml"
    spec_file.write_text(yaml.safe_dump(SWEEP))
    execute(read_sweep(spec_file).trials, ExecSpec(store=str(store), wandb=False), 2, lambda _: None)
    return results(spec_file, store)


def command(spec_file, store, *more):
    return [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "se_lab.cli",
        "sweep",
        str(spec_file),
        "--store",
        str(store),
        "--wandb=false",
        *more,
    ]


def results(spec_file, store):
    """Return everything of a sweep's records that repeats, by trial."""
    table = load_records(spec_file, store)
    assert (table["status"] == "finished").all()
    keep = [c for c in table if c not in ("folder", "seconds", "step_ms")]
    return table[keep].to_json(orient="records")


def test_two_workers_do_what_one_does_and_nothing_is_done_twice(spec_file, tmp_path, here, undisturbed):
    trials = read_sweep(spec_file).trials
    events = []
    outcomes = execute(trials, here, 2, events.append)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    rows = [event for event in events if event.row]
    assert len(rows) == 16 and {event.trial.trial_id for event in rows} == {trial.trial_id for trial in trials}
    stamps = {t.trial_id: (Path(here.store) / t.trial_id / "record.json").stat().st_mtime_ns for t in trials}
    assert [outcome.status for outcome in execute(trials, here, 2, events.append)] == ["skipped"] * 4
    assert stamps == {t.trial_id: (Path(here.store) / t.trial_id / "record.json").stat().st_mtime_ns for t in trials}
    subprocess.run(command(spec_file, tmp_path / "alone"), check=True, capture_output=True)
    assert results(spec_file, tmp_path / "alone") == undisturbed


def test_a_failing_trial_is_recorded_and_the_others_go_on(spec_file, here, monkeypatch):
    trials = read_sweep(spec_file).trials
    original = ClassificationTask.training_step

    def fails_for_one(self, *args):
        if self.spec == trials[1]:
            raise MemoryError("out of memory, for example")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", fails_for_one)
        outcomes = execute(trials, here, 1, lambda _: None)
    assert [outcome.status for outcome in outcomes] == ["finished", "failed", "finished", "finished"]
    table = load_records(spec_file, here.store)
    assert table["error"].dropna().to_dict() == {1: "MemoryError: out of memory, for example"}
    assert [outcome.status for outcome in execute(trials, here, 1, lambda _: None)] == [
        "skipped",
        "finished",
        "skipped",
        "skipped",
    ]


def test_a_killed_worker_is_lost_and_its_trial_goes_on_later(spec_file, here):
    trials = read_sweep(spec_file).trials[:2]
    epochs = []

    def kill_in_the_second_epoch(event):
        epochs.append(event.row.get("epoch"))
        if event.trial == trials[0] and event.row.get("epoch") == 1:
            holder = json.loads(next((Path(here.store) / trials[0].trial_id / "claims").glob("00*1")).read_text())
            os.kill(holder["pid"], signal.SIGKILL)

    assert [o.status for o in execute(trials, here, 1, kill_in_the_second_epoch)] == ["lost", "finished"]
    epochs.clear()
    assert [o.status for o in execute(trials, here, 1, lambda e: epochs.append(e.row.get("epoch")))] == [
        "finished",
        "skipped",
    ]
    assert 0 not in epochs, "the trial began anew instead of going on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_everything_resumable(spec_file, tmp_path, number, undisturbed):
    store = tmp_path / "store"
    process = subprocess.Popen(
        command(spec_file, store, "--workers", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(store.glob("*/metrics.csv")):
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "goes on where it stopped" in err and "interrupted" in out
    subprocess.run(command(spec_file, store), check=True, capture_output=True)
    assert results(spec_file, store) == undisturbed


def test_killed_five_times_it_comes_to_the_table_of_an_undisturbed_run(spec_file, tmp_path, undisturbed):
    store = tmp_path / "store"
    torn, stop = [], threading.Event()

    def read_all_the_time():
        while not stop.wait(0.002):
            for path in store.glob("*/record.json"):
                try:
                    json.loads(path.read_text())
                except ValueError as error:
                    torn.append((path, error))

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    finished_at: dict[str, int] = {}
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            command(spec_file, store, "--workers", "2"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        begun = time.monotonic()
        while process.poll() is None and len(list(store.glob("*/claims/0*"))) == 0 and time.monotonic() - begun < 60:
            time.sleep(0.05)
        time.sleep(moments.uniform(4.0, 8.0))
        if moments.random() < 0.5:
            os.kill(process.pid, signal.SIGKILL)  # the sweep alone: its workers must notice and stop
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in store.glob("*/record.json"):
            stamp = path.stat().st_mtime_ns
            assert finished_at.setdefault(path.parent.name, stamp) == stamp, "a finished trial was run again"
    subprocess.run(command(spec_file, store, "--workers", "2"), check=True, capture_output=True)
    stop.set()
    reader.join()
    assert not torn
    assert results(spec_file, store) == undisturbed
    assert not [path for path in store.glob("*/.*") if path.is_file()], "something half-written was left behind"


def test_trials_are_checked_before_any_is_run():
    good = RunSpec(model=ModelSpec("resnet18", SESpec(reduction=4)))
    check_trials([good])
    with pytest.raises(SpecError, match="did you mean 'resnet18'"):
        check_trials([good, RunSpec(model=ModelSpec("resnt18"))])
    with pytest.raises(SpecError, match=r"stage 6.*has 2, 3, 4, 5"):
        check_trials([good, RunSpec(model=ModelSpec("resnet18", SESpec(stages=(6,))))])
    with pytest.raises(SpecError, match="seresnet50 has channel attention of its own"):
        check_trials([good, RunSpec(model=ModelSpec("seresnet50"))])


def test_a_width_that_repeats_across_a_sweep_is_said_aloud():
    trials = [RunSpec(model=ModelSpec("cifar_resnet20", SESpec(reduction=r))) for r in (8, 16, 32)]
    # channels 16, 32 and 64, three units each: r=16 gives 1, 2, 4 and r=32 gives 1, 1, 2
    assert check_trials(trials) == ["cifar_resnet20: r=16 and r=32 give the same hidden width in 33% of the units"]
