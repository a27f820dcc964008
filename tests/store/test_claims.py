"""Claims: one holder a trial, whatever happens to it."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from se_lab import store
from se_lab.store import ClaimLostError, TrialBusyError


@pytest.fixture
def trial(tmp_path) -> Path:
    """Return the folder of a trial in a store of its own."""
    folder = tmp_path / "store" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder.parent / ".se-lab-store").touch()
    return folder


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


@pytest.mark.parametrize("pid", [10**20, -1])
def test_a_process_number_that_cannot_be_is_no_worker_for_long(trial, pid):
    with store.claim(trial) as held:
        held.path.write_text(json.dumps(json.loads(held.path.read_text()) | {"pid": pid}))
        os.utime(held.path, (0, 0))
        assert store.holder_of(trial) is None


def test_the_millionth_claim_is_higher_than_the_one_before(trial):
    (trial / "claims").mkdir(parents=True)
    (trial / "claims/999999").write_text("{}")
    os.utime(trial / "claims/999999", (0, 0))
    with store.claim(trial) as held:
        held.check()


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


def test_where_a_live_process_cannot_be_seen_its_heartbeat_decides(trial, monkeypatch):
    """As with /proc mounted with hidepid=2, where another user's process has no entry and kill() is not permitted."""
    with store.claim(trial) as held:
        read_text = Path.read_text

        def hidden(path, *given, **named):
            if str(path) == f"/proc/{os.getpid()}/stat":
                raise FileNotFoundError(path)
            return read_text(path, *given, **named)

        def refused(pid, number):
            raise PermissionError

        monkeypatch.setattr(Path, "read_text", hidden)
        monkeypatch.setattr(os, "kill", refused)
        assert store.holder_of(trial)["pid"] == os.getpid()
        long_ago = time.time() - store.LEASE_SECONDS - 1
        os.utime(held.path, (long_ago, long_ago))
        assert store.holder_of(trial) is None
        os.utime(held.path)
