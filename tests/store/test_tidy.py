"""se_lab.store.tidy: what can go goes, what is wanted stays, and a trial at work is not touched."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml

from se_lab import store
from se_lab.cli import main
from se_lab.spec import ExecSpec, RunSpec, SpecError
from se_lab.store.tidy import delete, find_leftovers
from se_lab.training.run import run
from tests.store.conftest import spec

LONG_AGO = time.time() - 90000  # a day and an hour


@pytest.fixture
def folder(ran, tmp_path):
    """Return a copy of it."""
    return Path(shutil.copytree(ran, tmp_path / "store"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file but claims and the index, which reading makes."""
    files = (path for path in folder.rglob("*") if path.is_file() and "claims" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def checkpoints(folder: Path, trial: RunSpec) -> set[str]:
    return {path.name for path in (folder / trial.trial_id).glob("*.ckpt")}


def test_to_look_changes_nothing_and_tells_every_byte(folder):
    before = contents(folder)
    found = find_leftovers(folder)
    assert contents(folder) == before
    assert {one.path.name for one in found} == {"previous.ckpt"} and len(found) == 2
    assert sum(one.bytes for one in found) == sum(one.path.stat().st_size for one in found)


@pytest.mark.parametrize(
    ("keep", "of_last", "of_best"),
    [
        (["last", "best"], {"last.ckpt", "best.ckpt"}, {"last.ckpt", "best.ckpt"}),
        (["last"], {"last.ckpt"}, {"last.ckpt"}),
        (["best"], {"best.ckpt"}, {"best.ckpt"}),
        (["tested"], {"last.ckpt"}, {"best.ckpt"}),
        (["none"], set(), set()),
    ],
)
def test_finished_trials_keep_the_checkpoints_that_are_asked_for(folder, keep, of_last, of_best):
    before = contents(folder)
    delete(folder, keep=keep)
    assert checkpoints(folder, spec(0)) == of_last
    assert checkpoints(folder, spec(1, "best")) == of_best
    after = contents(folder)
    assert {name for name in before if not name.endswith(".ckpt")} == {n for n in after if not n.endswith(".ckpt")}
    assert all(before[name] == value for name, value in after.items())
    assert not find_leftovers(folder, keep=keep)


def test_a_finished_trial_without_its_last_checkpoint_keeps_the_one_before(folder):
    (folder / spec().trial_id / "last.ckpt").unlink()
    delete(folder)
    assert checkpoints(folder, spec()) == {"previous.ckpt", "best.ckpt"}


def test_an_unfinished_trial_keeps_what_it_goes_on_from(folder):
    trial = folder / spec().trial_id
    record = store.read_record(trial)
    record.status = "failed"
    store.write_record(trial, record)
    (folder / spec(1, "best").trial_id / "record.json").unlink()
    before = contents(folder)
    delete(folder, keep=["none"])
    assert contents(folder) == before


def test_trials_that_no_spec_names_keep_their_results_alone(folder, tmp_path):
    killed = folder / "0123456789ab"
    with store.claim(killed):
        pass
    (killed / "last.ckpt").write_bytes(b"x" * 100)
    excitations = folder / spec(0).trial_id / "excitations"
    excitations.mkdir()
    (excitations / "explorer.html").write_text("page")
    (excitations / "mine.txt").write_text("a note of the user's")
    gone, busy = delete(folder, named={spec(1, "best").trial_id})
    assert {path.name for path in (folder / spec(0).trial_id).iterdir()} == {
        "record.json", "metrics.csv", "predictions.npz", "claims", "excitations",
    }  # fmt: skip
    assert [path.name for path in excitations.iterdir()] == ["mine.txt"]
    assert checkpoints(folder, spec(1, "best")) == {"last.ckpt", "best.ckpt"}
    assert not killed.exists()  # it had no result
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(
        [spec(0).trial_id, spec(1, "best").trial_id]
    )
    assert not busy and sum(one.bytes for one in gone if one.trial_id == killed.name) == 100
    assert set(store.read_records(folder)["status"]) == {"finished"}


def test_searches_and_submissions_stay(folder):
    proposal, submission = folder / ".searches" / "0123456789ab" / "000001.json", folder / ".slurm" / "17.json"
    log = folder / ".slurm" / "17_0_log.out"
    kept = [proposal, submission, log]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for path in [*kept, *(path.parent for path in kept)]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    before = {path: path.read_bytes() for path in kept}
    delete(folder, keep=["none"], named=set())
    assert {path: path.read_bytes() for path in kept} == before


def test_what_dead_workers_left_aside_goes_when_it_is_old(folder):
    trial = folder / spec().trial_id
    search = folder / ".searches" / "0123456789ab"
    search.mkdir(parents=True)
    old = [trial / f".last.ckpt.{'e' * 32}", trial / "claims" / f".{'0' * 32}", folder / f".search.json.{'a' * 32}"]
    old.append(search / f".{'c' * 32}")  # of a process that was killed as it put a proposal in place
    fresh = [trial / f".last.ckpt.{'f' * 32}", folder / f".search.json.{'b' * 32}", search / f".{'d' * 32}"]
    for path in old + fresh:
        path.write_bytes(b"half")
    for path in old:
        os.utime(path, (LONG_AGO, LONG_AGO))
    delete(folder)
    assert not any(path.exists() for path in old) and all(path.exists() for path in fresh)


def test_old_claims_go_but_the_number_of_the_next_stays_free(folder):
    trial = folder / spec().trial_id
    for _ in range(4):
        with store.claim(trial):
            pass
    numbers = sorted(path.name for path in (trial / "claims").iterdir() if path.name.isdigit())
    assert numbers[-1] == "000005"
    for path in (trial / "claims").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    delete(folder)
    left = sorted(path.name for path in (trial / "claims").iterdir())
    assert left == ["000005", "000005.released", "000006", "000006.released"]  # the sixth is gc's own
    with store.claim(trial) as claim:
        assert claim.path.name == "000007"
    delete(folder)
    assert {"000006", "000007"} <= {path.name for path in (trial / "claims").iterdir()}  # not old yet


def test_wandb_runs_go_when_wandb_has_them(folder):
    trials = [folder / spec(0).trial_id, folder / spec(1, "best").trial_id]
    for trial in trials:
        (trial / "wandb" / "offline-run-1-x").mkdir(parents=True)
        (trial / "wandb" / "offline-run-1-x" / "run-x.wandb").write_bytes(b"12345")
    (trials[0] / "wandb" / "offline-run-2-x").mkdir()
    (trials[0] / "wandb" / "offline-run-2-x" / "run-x.wandb.synced").touch()  # as `wandb sync` leaves it
    record = store.read_record(trials[1])
    mark = {"project": "/se-lab", "started": record.started, "status": record.status}
    (trials[1] / "synced.json").write_text(json.dumps(mark))  # as `se-lab sync` leaves it
    runs = [one for one in find_leftovers(folder) if one.kind == "synced W&B run"]
    assert {(one.trial_id, one.path.name, one.bytes) for one in runs} == {
        (trials[0].name, "offline-run-2-x", 0),
        (trials[1].name, "offline-run-1-x", 5),
    }
    # it has run again since, or the file is no mark of a run that was sent
    for other in (json.dumps(mark | {"started": "before"}), "{}", "[1]", "{"):
        (trials[1] / "synced.json").write_text(other)
        assert not [one for one in find_leftovers(folder) if one.trial_id == trials[1].name and "W&B" in one.kind]


def test_only_trials_that_rested_long_enough(folder):
    trial = folder / spec(0).trial_id
    for path in [*trial.iterdir(), trial]:
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert {one.trial_id for one in find_leftovers(folder, days=1)} == {trial.name}
    assert not find_leftovers(folder, days=2)


def _train(store_folder: str, begun) -> None:
    def progress(row):
        if "epoch" in row:  # the epoch before has its checkpoint
            begun.set()

    with contextlib.suppress(Exception):
        run(spec(7, epochs=500), ExecSpec(store=store_folder, logger="none"), progress=progress)


def test_a_running_trial_is_not_touched_and_goes_on(folder):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    worker = context.Process(target=_train, args=(str(folder), begun))
    worker.start()
    try:
        assert begun.wait(60)
        trial = folder / spec(7, epochs=500).trial_id
        assert not [one for one in find_leftovers(folder, keep=["none"], named=set()) if one.trial_id == trial.name]
        gone, _ = delete(folder, keep=["none"], named=set())
        assert gone and trial.name not in {one.trial_id for one in gone}
        assert store.holder_of(trial)["pid"] == worker.pid
        begun.clear()
        assert begun.wait(60), "the trial has stopped"
    finally:
        worker.kill()
        worker.join()
    assert trial.name in {one.trial_id for one in find_leftovers(folder, named=set())}


def test_a_trial_that_is_claimed_after_the_look_is_left_alone(folder, monkeypatch):
    trial = folder / spec().trial_id
    listed = find_leftovers(folder)
    with store.claim(trial):
        monkeypatch.setattr("se_lab.store.tidy.find_leftovers", lambda *_, **__: listed)
        gone, busy = delete(folder)
    assert busy == [trial.name] and (trial / "previous.ckpt").exists()
    assert {one.trial_id for one in gone} == {spec(1, "best").trial_id}


def test_the_command_says_and_with_delete_does(folder, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    command = ["se-lab", "train", "--model.backbone=cifar_resnet20", "--model.se.reduction=8", "${args}"]
    fixed = {"data.batch_size": {"value": 512}, "train.epochs": {"value": 2}, "seed": {"value": 0}}
    sweep.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": fixed}))
    before = contents(folder)
    size = sum(one.bytes for one in find_leftovers(folder, named={spec().trial_id}))
    assert main(["gc", str(folder), "--specs", str(sweep), "--paths"]) == 0
    printed = capsys.readouterr()
    assert f"({size} bytes)" in printed.out and "trials that no spec names" in printed.out
    assert str(folder / spec(1, "best").trial_id / "best.ckpt") in printed.out
    assert "nothing was deleted" in printed.err and contents(folder) == before
    assert main(["gc", str(folder), "--specs", str(sweep), "--delete"]) == 0
    assert f"deleted: {size / 1e6:.1f} MB ({size} bytes)" in capsys.readouterr().out
    assert main(["gc", str(folder), "--specs", str(sweep)]) == 0
    assert capsys.readouterr().out == "can be deleted: nothing\n"


def test_wrong_input_deletes_nothing(folder, tmp_path, capsys):
    with pytest.raises(SpecError, match="none cannot be combined"):
        delete(folder, keep=["none", "last"])
    with pytest.raises(SpecError, match="at least 0 days"):
        delete(folder, days=-1)
    for argv, said in [
        ([str(tmp_path / "nowhere")], "is not a folder of trials"),
        ([str(folder), "--keep=lst"], "did you mean 'last'"),
        ([str(folder), "--delte"], "did you mean '--delete'"),
        ([str(folder), "--specs", "nothing.yaml", "--delete"], "no such sweep spec"),
    ]:
        assert main(["gc", *argv]) == 2
        assert said in capsys.readouterr().err
    assert (folder / spec().trial_id / "previous.ckpt").exists()
