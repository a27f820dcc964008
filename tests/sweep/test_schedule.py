"""Sweeps on this machine: each trial once, whatever happens to the workers."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from se_lab import store
from se_lab.cli import main
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.sweep.grammar import read_sweep
from se_lab.sweep.records import load_records
from se_lab.sweep.schedule import Outcome, Rules, common_reason, execute
from se_lab.sweep.trial_process import TrialProcess

TINY = ["--recipe=digits", "--data.batch_size=256", "--model.kwargs={units: 1}"]
SWEEP = {
    "program": "se-lab",
    "method": "grid",
    "command": ["${env}", "se-lab", "train", *TINY, "--train.epochs=4", "${args}"],
    "parameters": {"model.se": {"values": [{"insertion": "none"}, {"reduction": 4}]}, "seed": {"values": [0, 1]}},
}


@pytest.fixture
def spec_file(tmp_path):
    """Return a sweep of four trials of about a second."""
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    return path


@pytest.fixture
def disturbed(monkeypatch, tmp_path):
    """Return a maker of the ExecSpec of trials whose training steps raise an error, and of their counter."""
    marks = tmp_path / "marks"
    marks.mkdir()

    def make(error, trials=None, times=None):
        wanted = {"error": error, "marks": str(marks)} | ({"times": times} if times else {})
        if trials is not None:
            wanted["trials"] = [trial.trial_id for trial in trials]
        monkeypatch.setenv("DISTURB", json.dumps(wanted))
        here = ExecSpec(store=str(tmp_path / "store"), logger="none", plugins="tests.sweep.disturb")
        return here, lambda trial: len((marks / trial.trial_id).read_text())

    return make


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """Return the same sweep with trials that take a little longer."""
    path = tmp_path_factory.mktemp("long") / "sweep.yaml"
    command = ["${env}", "se-lab", "train", *TINY, "--train.epochs=8", "${args}"]
    path.write_text(yaml.safe_dump(SWEEP | {"command": command}))
    return path


@pytest.fixture(scope="module")
def undisturbed(long_file, tmp_path_factory):
    """Return what the long sweep comes to, one trial after the other, when nothing happens to it."""
    store = tmp_path_factory.mktemp("undisturbed")
    execute(read_sweep(long_file).trials, ExecSpec(store=str(store), logger="none"), 1, lambda _: None)
    return results(long_file, store)


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


def test_two_workers_run_each_trial_once_and_finished_trials_are_skipped(spec_file, here):
    trials = read_sweep(spec_file).trials
    events = []
    outcomes = execute(trials, here, 2, events.append)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    rows = [event for event in events if "epoch" in event.row]
    assert len(rows) == 16 and {event.trial.trial_id for event in rows} == {trial.trial_id for trial in trials}
    stamps = {t.trial_id: (Path(here.store) / t.trial_id / "record.json").stat().st_mtime_ns for t in trials}
    assert [outcome.status for outcome in execute(trials, here, 2, events.append)] == ["skipped"] * 4
    assert stamps == {t.trial_id: (Path(here.store) / t.trial_id / "record.json").stat().st_mtime_ns for t in trials}


def test_a_failing_trial_is_recorded_and_the_others_go_on(spec_file, disturbed):
    trials, view = read_sweep(spec_file).trials[:3], lambda _: None
    here, _ = disturbed('MemoryError("out of memory, for example")', trials[1:2], times=1)
    outcomes = execute(trials, here, 1, view)
    assert [outcome.status for outcome in outcomes] == ["finished", "failed", "finished"]
    table = load_records(spec_file, here.store)
    assert table["error"].dropna().to_dict() == {1: "MemoryError: out of memory, for example"}
    assert [outcome.status for outcome in execute(trials, here, 1, view)] == ["skipped", "finished", "skipped"]


def test_a_killed_worker_is_lost_and_its_trial_goes_on_later(spec_file, here):
    trials = read_sweep(spec_file).trials[:2]
    epochs = []

    def kill_in_the_second_epoch(event):
        epochs.append(event.row.get("epoch"))
        if event.trial == trials[0] and event.row.get("epoch") == 1:
            holder = json.loads(next((Path(here.store) / trials[0].trial_id / "claims").glob("00*1")).read_text())
            os.kill(holder["pid"], signal.SIGKILL)

    outcomes = execute(trials, here, 1, kill_in_the_second_epoch, Rules(retries=0))
    assert [(o.status, o.kind) for o in outcomes] == [("failed", "lost process"), ("finished", None)]
    record = store.read_record(Path(here.store) / trials[0].trial_id)
    assert (record.status, record.error_kind) == ("failed", "lost process") and "SIGKILL" in record.error
    epochs.clear()
    assert [o.status for o in execute(trials, here, 1, lambda e: epochs.append(e.row.get("epoch")))] == [
        "finished",
        "skipped",
    ]
    assert 0 not in epochs, "the trial began anew instead of going on"


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(spec_file, disturbed, monkeypatch):
    monkeypatch.setattr("se_lab.sweep.schedule.NETWORK_SECONDS", 0.1)
    one, other = read_sweep(spec_file).trials[:2]
    events = []
    here, _ = disturbed('ConnectionResetError("the file server hung up")', [one], times=1)
    outcomes = execute([one], here, 1, lambda event: events.append(event.status))
    assert [o.status for o in outcomes] == ["finished"] and "retry: network" in events
    here, tries = disturbed('FloatingPointError("the training loss is nan")')
    outcomes = execute([other], here, 1, lambda event: None, Rules(retries=3))
    assert [(o.status, o.kind) for o in outcomes] == [("failed", "NaN loss")] and tries(other) == 1
    assert store.read_record(Path(here.store) / other.trial_id).error_kind == "NaN loss"


def test_why_a_trial_failed_is_known_however_late_it_is_asked(spec_file, disturbed, monkeypatch):
    (trial,) = read_sweep(spec_file).trials[:1]
    here, tries = disturbed('FloatingPointError("the training loss is nan")')

    def after_its_end(self):
        self._process.join()
        return True

    monkeypatch.setattr(TrialProcess, "is_over", after_its_end)
    monkeypatch.setattr("se_lab.sweep.schedule.wait", lambda handles, timeout: [])  # it has said nothing yet
    outcomes = execute([trial], here, 1, lambda event: None)
    assert [(o.status, o.kind) for o in outcomes] == [("failed", "NaN loss")] and tries(trial) == 1
    assert "FloatingPointError" in store.read_record(Path(here.store) / trial.trial_id).error


def test_an_earlier_failure_is_tried_anew_on_a_file_server_whose_clock_is_ahead(spec_file, here):
    (trial,) = read_sweep(spec_file).trials[:1]
    folder = Path(here.store) / trial.trial_id
    failed = store.RunRecord(trial.trial_id, "failed", trial.flat(), {}, error="KeyError: 'mended'", error_kind="error")
    store.write_record(folder, failed)
    soon = time.time() + 600
    os.utime(folder / "record.json", (soon, soon))
    assert [o.status for o in execute([trial], here, 1, lambda event: None)] == ["finished"]


def test_what_goes_wrong_in_the_sweep_itself_lets_its_trials_save_their_state(spec_file, here):
    (trial,) = read_sweep(spec_file).trials[:1]
    trial = dataclasses.replace(trial, train=dataclasses.replace(trial.train, epochs=5000))
    folder = Path(here.store) / trial.trial_id

    def view(event):
        if event.row:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        execute([trial], here, 1, view)
    end = time.monotonic() + 60
    while store.holder_of(folder) is not None:
        assert time.monotonic() < end, "the trial goes on with nobody to see it"
        time.sleep(0.05)
    assert (folder / "last.ckpt").exists() and not (folder / "record.json").exists()


def test_a_lost_process_goes_on_from_its_checkpoint_and_is_given_up_after_its_retries(spec_file, disturbed):
    (trial,) = read_sweep(spec_file).trials[:1]
    here, tries = disturbed("os.kill(os.getpid(), signal.SIGKILL)")
    outcomes = execute([trial], here, 1, lambda event: None, Rules(retries=2))
    assert [(o.status, o.kind) for o in outcomes] == [("failed", "lost process")] and tries(trial) == 3


def _hold(folder, held, let_go):
    with store.claim(folder):
        held.set()
        let_go.wait(120)


def test_out_of_memory_beside_another_trial_is_tried_again_alone(spec_file, disturbed, monkeypatch):
    monkeypatch.setattr("se_lab.sweep.schedule.POLL_SECONDS", 0.05)
    first, large, third = read_sweep(spec_file).trials[:3]
    here, tries = disturbed('MemoryError("out of memory")', [large], times=1)
    context = multiprocessing.get_context("fork")
    held, let_go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(Path(here.store) / third.trial_id, held, let_go))
    other.start()
    held.wait()
    running, begun, waits = set(), [], set()

    def watch(event):
        name = event.trial.trial_id
        if event.status.startswith("waiting"):
            return waits.add((name, event.status))
        if event.status == "running" and name not in running:
            begun.append((name, frozenset(running)))
        (running.add if event.status == "running" else running.discard)(name)
        if event.trial == large and event.row:  # in its second try: what another process had is free from now on
            let_go.set()
            other.join()

    assert [o.status for o in execute([first, large, third], here, 2, watch)] == ["finished", "finished", "finished"]
    assert tries(large) == 1
    assert waits == {(third.trial_id, f"waiting: process {other.pid} on {socket.gethostname()}")}
    assert begun == [
        (first.trial_id, frozenset()),
        (large.trial_id, {first.trial_id}),
        (large.trial_id, frozenset()),  # not before the first was over
        (third.trial_id, frozenset()),  # and not beside it
    ]


def test_a_store_that_cannot_be_written_is_told_before_any_trial_begins(spec_file):
    trials = read_sweep(spec_file).trials
    with pytest.raises(SpecError, match="is not writable"):
        execute(trials, ExecSpec(store="/proc/none", logger="none"), 1, lambda event: pytest.fail("it began"))


@pytest.mark.parametrize(("store", "said"), [("file", "is a file"), ("file/under", "is a file"), ("", "such as runs")])
def test_a_store_that_can_be_no_folder_is_told(spec_file, tmp_path, monkeypatch, capsys, store, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for more in ([], ["--dry_run"]):
        assert main(["sweep", str(spec_file), f"--store={store}", "--wandb=false", *more]) == 2
        assert f"store is {store!r}" in (told := capsys.readouterr().err) and said in told


def test_a_worker_that_cannot_open_its_log_says_so(spec_file, here):
    (trial,) = read_sweep(spec_file).trials[:1]
    (Path(here.store) / trial.trial_id / "log.txt").mkdir(parents=True)
    (outcome,) = execute([trial], here, 1, lambda event: None)
    assert (outcome.status, outcome.kind) == ("failed", "error") and "IsADirectoryError" in outcome.error
    assert "IsADirectoryError" in store.read_record(Path(here.store) / trial.trial_id).error


def test_a_sweep_whose_trials_fail_for_one_reason_stops_and_says_it_once(tmp_path, disturbed, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | {"parameters": {"seed": {"values": list(range(9))}}}))
    bad = [trial for trial in read_sweep(path).trials if trial.seed != 1]
    here, _ = disturbed('OSError(28, "No space left on device")', bad)
    assert main(["sweep", str(path), f"--store={here.store}", "--wandb=false", f"--plugins={here.plugins}"]) == 1
    told = capsys.readouterr()
    assert "5 failed, 1 finished, 3 not started" in told.out
    lines, verdict = told.err.split("the sweep was stopped: 5 of its trials failed for one reason")
    assert verdict.count("No space left") == 1 and lines.count("No space left") == 5  # a line a trial as it ends


def test_a_few_failures_or_failures_of_many_kinds_stop_nothing():
    trial = RunSpec()

    def some(status, count, kind=None, error=None):
        return [Outcome(trial, status, kind, error)] * count

    assert common_reason(some("failed", 4, "disk full", "x")) is None
    assert common_reason(some("failed", 5, "disk full", "x") + some("finished", 5)) is None
    assert common_reason(some("failed", 5, "disk full", "x") + some("finished", 4)) == ("x", 5)
    assert common_reason(some("failed", 5, "disk full", "x") + some("skipped", 50)) == ("x", 5)
    kinds = ["disk full", "NaN loss", "network", "out of memory", "data loader"]
    assert common_reason([o for kind in kinds for o in some("failed", 2, kind, "x")]) is None
    # an error without a kind is one reason by its type, whatever it says
    many = [Outcome(trial, "failed", "error", f"KeyError: {number}") for number in range(5)]
    assert common_reason(many) == ("KeyError: 0", 5)


def test_a_trial_that_failed_meanwhile_in_another_process_is_not_tried_here(spec_file, disturbed):
    first, second = read_sweep(spec_file).trials[:2]
    here, tries = disturbed('FloatingPointError("the training loss is nan")', [second])

    def other_process(event):
        if event.trial == first and "epoch" in event.row:
            execute([second], here, 1, lambda event: None)

    outcomes = execute([first, second], here, 1, other_process)
    assert [(o.status, o.kind) for o in outcomes] == [("finished", None), ("failed", "NaN loss")]
    assert tries(second) == 4, "once for each epoch of the first, as a sweep begun anew, and never in this one"


def begin(spec_file, store, before=()):
    """Start the sweep with two workers as a process, and return it once one of its trials has begun."""
    known = set(store.glob("*/claims/0*"))
    process = subprocess.Popen(
        [*before, *command(spec_file, store, "--workers", "2")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not set(store.glob("*/claims/0*")) - known:
        time.sleep(0.02)
    return process


def rows(store):
    """Return the number of epochs that the trials of a store have recorded; each file has a header too."""
    return sum(file.read_text().count("\n") - 1 for file in store.glob("*/metrics.csv"))


def wait_for_epochs(process, store, count):
    """Wait until the trials have recorded so many epochs; fail if the sweep ends before."""
    while rows(store) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


SIGCHLD_IGNORED = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


# Ctrl-C, and a terminal that is closed, tell the workers as well; `kill` tells the sweep alone
INTERRUPT, KILL, CLOSE = (signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGHUP, os.killpg)


@pytest.mark.parametrize("signals", [[INTERRUPT], pytest.param([KILL, CLOSE], marks=pytest.mark.slow)])
def test_signals_leave_everything_resumable(long_file, tmp_path, undisturbed, signals):
    store = tmp_path / "store"
    for number, tell in signals:
        before = [sys.executable, "-c", SIGCHLD_IGNORED] if number == signal.SIGTERM else []
        count = rows(store)
        process = begin(long_file, store, before)
        wait_for_epochs(process, store, count + 1)
        tell(process.pid, number)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 75, (number, out, err)
        assert "the same command resumes" in err and "interrupted" in out
    execute(read_sweep(long_file).trials, ExecSpec(store=str(store), logger="none"), 2, lambda _: None)
    assert results(long_file, store) == undisturbed


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_table_of_an_undisturbed_run(long_file, tmp_path, undisturbed):
    store = tmp_path / "store"
    torn, stop = [], threading.Event()

    def read_all_the_time():
        while not stop.wait(0.01):
            for path in store.glob("*/record.json"):
                try:
                    json.loads(path.read_text())
                except ValueError as error:
                    torn.append((path, error))

    reader = threading.Thread(target=read_all_the_time, daemon=True)
    reader.start()
    finished_at: dict[str, int] = {}
    moments = random.Random(0)
    # the kill of the sweep alone is noticed by its workers, which stop
    for kill, epochs in ((os.kill, 2), (os.killpg, 0), (os.kill, 4)):
        before = rows(store)
        process = begin(long_file, store)
        wait_for_epochs(process, store, before + epochs)
        time.sleep(moments.uniform(0, 0.2))
        kill(process.pid, signal.SIGKILL)
        process.communicate()
        for path in store.glob("*/record.json"):
            stamp = path.stat().st_mtime_ns
            assert finished_at.setdefault(path.parent.name, stamp) == stamp, "a finished trial was run again"
    execute(read_sweep(long_file).trials, ExecSpec(store=str(store), logger="none"), 2, lambda _: None)
    stop.set()
    reader.join()
    assert not torn
    assert results(long_file, store) == undisturbed
    assert not [path for path in store.glob("*/.*") if path.is_file()], "something half-written was left behind"
