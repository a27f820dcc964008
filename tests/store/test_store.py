"""The store: whole records, one holder a trial, and reading many."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from se_lab import store
from se_lab.spec import ModelSpec, RunSpec, SESpec, SpecError
from se_lab.store import ClaimLostError, RunRecord, TrialBusyError


def record(trial_id="abc", **fields):
    return RunRecord(trial_id, "finished", RunSpec().flat(), {}, **fields)


@pytest.fixture
def trial(tmp_path) -> Path:
    """Return the folder of a trial in a store of its own."""
    folder = tmp_path / "store" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder.parent / ".se-lab-store").touch()
    return folder


def test_record_comes_back_as_it_was_written_with_nan_as_null(tmp_path):
    written = record(
        metrics={"test/top1_error": 1.25, "val/loss": float("nan")}, sites=[{"name": "SE_2_1", "path": "a"}]
    )
    store.write_record(tmp_path, written)
    read = store.read_record(tmp_path)
    assert read.metrics == {"test/top1_error": 1.25, "val/loss": None}
    assert read.sites == written.sites
    json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)


def test_a_write_that_dies_leaves_the_old_file_and_no_other(tmp_path):
    store.write_whole(tmp_path / "file", lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write_whole(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_held_trial_is_busy_and_a_released_one_is_free(trial):
    with store.claim(trial) as held:
        held.check()
        assert store.holder_of(trial)["pid"] == os.getpid()
        with pytest.raises(TrialBusyError, match=f"process {os.getpid()} on"), store.claim(trial):
            pytest.fail("two workers hold one trial")
    assert store.holder_of(trial) is None
    with store.claim(trial):
        pass


def _hold(folder, ready):
    with store.claim(folder):
        ready.set()
        time.sleep(60)


def test_a_killed_worker_loses_its_trial_at_once(trial):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_hold, args=(trial, ready))
    worker.start()
    assert ready.wait(10)
    with pytest.raises(TrialBusyError), store.claim(trial):
        pass
    worker.kill()
    worker.join()
    with store.claim(trial):
        pass


def test_another_hosts_claim_holds_while_its_heart_beats(trial):
    with store.claim(trial) as held:
        elsewhere = json.loads(held.path.read_text()) | {"machine": "elsewhere"}
        held.path.write_text(json.dumps(elsewhere))
        assert store.holder_of(trial) is not None
        long_ago = time.time() - store.LEASE_SECONDS - 1
        os.utime(held.path, (long_ago, long_ago))
        assert store.holder_of(trial) is None
        with store.claim(trial) as second:
            second.check()
            with pytest.raises(ClaimLostError):
                held.check()


@pytest.mark.parametrize("text", ["", "{", '{"host": "n1"}', "[]"])
def test_a_claim_of_which_a_crash_of_its_host_left_nothing_ends_with_its_lease(trial, text):
    torn = trial / "claims/000001"
    torn.parent.mkdir()
    torn.write_text(text)
    with pytest.raises(TrialBusyError, match="an unknown process"), store.claim(trial):
        pass
    long_ago = time.time() - store.LEASE_SECONDS - 1
    os.utime(torn, (long_ago, long_ago))
    assert store.holder_of(trial) is None
    with store.claim(trial) as held:
        assert held.path.name == "000002"


def test_a_claim_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "link"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *given, name=name, original=original: (done.append(name), original(*given))
        )
    assert store.create_once(tmp_path / "file", "whole")
    assert done == ["fsync", "link"]


def test_a_store_that_cannot_be_written_tells_who_is_at_work_in_it(trial, monkeypatch):
    with store.claim(trial) as held:
        held.path.write_text(json.dumps(json.loads(held.path.read_text()) | {"machine": "elsewhere"}))

        def refused(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(type(trial), "touch", refused)
        assert store.holder_of(trial) is not None
        long_ago = time.time() - store.LEASE_SECONDS - 1
        os.utime(held.path, (long_ago, long_ago))
        assert store.holder_of(trial) is None  # and what cannot be marked as released is no failure of the trial


def test_a_process_number_that_is_used_again_does_not_pass_for_the_worker(trial):
    with store.claim(trial) as held:
        reborn = json.loads(held.path.read_text()) | {"start": "1"}
        held.path.write_text(json.dumps(reborn))
        assert store.holder_of(trial) is None


def _create_all(folder, number, start, won):
    text = f"{number}" * 500_000
    start.wait()
    for name in range(40):
        if store.create_once(folder / f"{name:02d}", text):
            won.put((name, number))
        content = (folder / f"{name:02d}").read_text()
        if len(content) != 500_000 or len(set(content)) != 1:
            won.put((name, "torn"))


def test_of_many_that_create_a_file_one_does_and_nobody_reads_half_of_it(tmp_path):
    context = multiprocessing.get_context("fork")
    start, won = context.Barrier(4), context.Manager().Queue()
    workers = [context.Process(target=_create_all, args=(tmp_path, number, start, won)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    winners = [won.get() for _ in range(won.qsize())]
    assert sorted(name for name, _ in winners) == list(range(40))
    assert all((tmp_path / f"{name:02d}").read_text()[0] == str(number) for name, number in winners)
    assert not list(tmp_path.glob(".*"))


def test_a_link_that_nfs_reports_as_there_already_is_told_from_anothers(tmp_path, monkeypatch):
    link = os.link

    def repeated(source, target):
        link(source, target)
        raise FileExistsError(target)  # the answer to the first request was lost

    monkeypatch.setattr(os, "link", repeated)
    assert store.create_once(tmp_path / "file", "mine")
    assert not store.create_once(tmp_path / "file", "another's")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _race(folder, start, winners):
    start.wait()
    won = 0
    while won < 5:
        try:
            with store.claim(folder) as held:
                winners.put(held.path.name)
                won += 1
        except TrialBusyError:
            time.sleep(0.001)


def test_of_many_workers_one_gets_each_claim(trial):
    context = multiprocessing.get_context("fork")
    start, winners = context.Event(), context.Queue()
    workers = [context.Process(target=_race, args=(trial, start, winners)) for _ in range(8)]
    for worker in workers:
        worker.start()
    start.set()
    taken = []
    while any(worker.is_alive() for worker in workers) or not winners.empty():
        while not winners.empty():
            taken.append(winners.get())
        time.sleep(0.02)
    assert len(taken) == 40
    assert len(set(taken)) == 40, "a claim was given out twice"


def test_records_come_as_a_table_with_the_state_of_those_that_have_none(tmp_path):
    done = RunSpec(model=ModelSpec(se=SESpec(reduction=8)))
    finished = RunRecord(
        done.trial_id,
        "finished",
        done.flat(),
        {},
        complexity={"params": 10, "macs": 20},
        metrics={"test/top1_error": 2.5},
        timings={"step_ms": 3.0},
        provenance={"se-lab": "1"},
        data={"digest": "d"},
    )
    store.write_record(tmp_path / done.trial_id, finished)
    failed = RunRecord("failed1", "failed", done.flat(), {}, error="Traceback …\nValueError: too large\n")
    store.write_record(tmp_path / "failed1", failed)
    (tmp_path / "begun").mkdir()
    table = store.read_records(
        tmp_path, {done.trial_id: {}, "failed1": {}, "begun": {"seed": 4}, "absent": {"seed": 5}}
    )
    assert table["status"].tolist() == ["finished", "failed", "interrupted", "not started"]
    assert table.loc[0, ["model.se.reduction", "test/top1_error", "params", "step_ms", "data_digest"]].tolist() == [
        8,
        2.5,
        10,
        3.0,
        "d",
    ]
    assert table.loc[1, "error"] == "ValueError: too large"
    assert table.loc[3, "seed"] == 5


def test_a_stores_own_order_is_by_content_with_numbers_as_numbers(tmp_path):
    for reduction in (16, 2, 8):
        spec = RunSpec(model=ModelSpec(se=SESpec(reduction=reduction)))
        store.write_record(tmp_path / spec.trial_id, RunRecord(spec.trial_id, "finished", spec.flat(), {}))
    assert store.read_records(tmp_path)["model.se.reduction"].tolist() == [2, 8, 16]


def test_an_empty_or_absent_store_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trial"):
        store.read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of trials"):
        store.read_records(tmp_path / "nowhere")


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc/record.json").write_text('{"trial_id": "abc')
    with pytest.raises(SpecError, match=r"abc/record\.json is no record"):
        store.read_records(tmp_path)
