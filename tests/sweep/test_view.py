"""What a sweep shows while it runs."""

import dataclasses
import time
from types import SimpleNamespace

import pytest

from se_lab import store
from se_lab.sweep import view as view_module
from se_lab.sweep.schedule import Event
from se_lab.sweep.view import Pace, SweepView, duration, seconds_left


def test_the_time_left_follows_from_this_runs_own_trials_by_their_weight():
    assert seconds_left([], [1.0], 1) is None  # nothing is known
    finished = Pace(0.0, weight=2.0, initial=0.0, fraction=1.0, seconds=10.0)  # 5 s a unit of weight
    assert seconds_left([finished], [1.0, 3.0], 1) == pytest.approx(20.0)
    assert seconds_left([finished], [1.0, 3.0], 2) == pytest.approx(15.0)  # no faster than the longest
    half = Pace(0.0, weight=4.0, initial=0.0, fraction=0.5, seconds=10.0)  # also 5 s a unit
    assert seconds_left([half], [], 1) == pytest.approx(10.0)
    # one that another run had brought half way tells the speed by what this run added
    resumed = Pace(0.0, weight=4.0, initial=0.5, fraction=0.75, seconds=5.0)
    assert seconds_left([resumed], [], 1) == pytest.approx(5.0)
    assert seconds_left([finished], [], 1) == 0.0


def test_times_are_written_as_a_reader_counts_them():
    assert [duration(s) for s in (0.2, 90, 4000, 3 * 86400)] == ["1 s", "1 min 30 s", "1 h 7 min", "3 days"]


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that a test sets, for the view alone: what waits in this process needs the true one."""
    now = [0.0]
    monkeypatch.setattr(view_module, "time", SimpleNamespace(**vars(time) | {"monotonic": lambda: now[0]}))
    return now


def record(folder, trial, macs, error):
    there = store.trial_folder(folder, trial.trial_id)
    metrics = {"test/top1_error": error}
    store.write_record(
        there, store.RunRecord(trial.trial_id, "finished", trial.flat(), {}, metrics=metrics, complexity={"macs": macs})
    )


def test_a_sweep_counts_its_trials_and_says_a_line_each(quick, tmp_path, capsys, clock):
    small, large, done = quick(seed=0), quick(seed=1, epochs=6), quick(seed=2)
    record(tmp_path, done, 100, 9.0)
    with SweepView([small, large, done], 1, str(tmp_path)) as view:
        view(Event(done, "skipped"))
        assert view._summary() == "1/3 finished, 0 running"  # what other runs took says nothing
        view(Event(small, "running"))
        clock[0] = 5.0
        view(Event(small, "running", {"step": 1, "steps": 4}))
        clock[0] = 10.0
        view(Event(small, "running", {"step": 3, "steps": 4}))
        # half of its two epochs in 10 s: the rest of it 5 s, and six epochs 60 s
        assert view._summary() == "1/3 finished, 1 running, about 1 min 5 s left"
        view(Event(small, "running", {"epoch": 1, "val/top1_error": 8.125, "train/top1_error": 1.0}))
        assert view.progress.tasks[-1].fields["note"] == "validation error 8.12 %"
        clock[0] = 12.0
        record(tmp_path, small, 100, 7.5)
        view(Event(small, "finished"))
        view(Event(large, "waiting: process 7 on n1, without a heartbeat for 9 min"))
        view(Event(large, "waiting: process 7 on n1, without a heartbeat for 9 min"))
        failure = "Traceback …\nFloatingPointError: the loss is nan"
        there = store.trial_folder(tmp_path, large.trial_id)
        store.write_record(there, store.RunRecord(large.trial_id, "failed", large.flat(), {}, error=failure))
        view(Event(large, "failed"))
        assert view._summary() == "2/3 finished, 0 running, 1 failed"
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        f"[2/3] {small.trial_id} finished after 12 s, test error 7.50 %, cifar_resnet20 standard r=4, seed 0",
        f"[2/3] waiting for {large.trial_id}, held by process 7 on n1, without a heartbeat for 9 min",
        f"[3/3] {large.trial_id} failed, FloatingPointError: the loss is nan, cifar_resnet20 standard r=4, seed 1",
    ]


def test_time_left_weighs_trials_by_their_macs(quick, tmp_path, clock):
    small, large = quick(), quick(model=dataclasses.replace(quick().model, backbone="cifar_resnet56"))
    for trial, macs in ((small, 100), (large, 300)):
        record(tmp_path, trial, macs, 9.0)
    view = SweepView([small, large, dataclasses.replace(large, seed=1)], 1, str(tmp_path))
    view(Event(large, "skipped"))
    view(Event(small, "running"))
    clock[0] = 10.0
    view(Event(small, "finished"))
    assert view._summary() == "2/3 finished, 0 running, about 30 s left"


@pytest.mark.parametrize("width", [80, 120])
def test_percentages_and_errors_are_never_cut_in_a_terminal(quick, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    long = quick(model=dataclasses.replace(quick().model, backbone="torchvision:resnext101_32x8d"))
    view = SweepView([long], 1, str(tmp_path))
    view(Event(long, "running", {"step": 1, "steps": 3}))
    view(Event(long, "running", {"epoch": 0, "val/top1_error": 12.5}))
    console = view.progress.console
    with console.capture() as capture:
        console.print(view.progress.get_renderable())
    summary, line = capture.get().splitlines()
    assert summary.startswith("0/1 finished, 1 running") and "  0%" in summary and "about 1 s left" in summary
    assert line.startswith("  torchvision:resnext101_32x8d standard r=4,")
    assert line.rstrip().endswith(" 50% validation error 12.50 %") and len(line) <= width
