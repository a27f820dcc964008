"""se_lab.store.marker: a folder of other people's is no store, and nothing in it is touched."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from se_lab import store
from se_lab.cli import main
from se_lab.store import RunRecord, write_record
from se_lab.store.tidy import delete, find_leftovers

LONG_AGO = time.time() - 90000
ID = "0123456789ab"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of somebody's: a folder claims in a package, a record.json, weights, old hidden files, a .git."""
    root = tmp_path / "project"
    for name, text in {
        "app/claims/000001": "{}",
        "app/last.ckpt": "weights",
        "app/.git/config": "[core]",
        "results/record.json": json.dumps({"trial_id": "results", "status": "finished"}),
        "results/previous.ckpt": "weights",
        ".cache": "old",
        "README.md": "mine",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return root


def test_gc_refuses_a_folder_of_others_and_names_what_it_saw(project, capsys):
    before = files(project)
    assert main(["gc", str(project), "--delete"]) == 2
    said = capsys.readouterr().err
    assert "README.md" in said and ".se-lab-store" in said
    assert files(project) == before


def test_a_sweep_is_not_begun_in_a_folder_of_others(project, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        'program: se-lab\ncommand: ["${env}", se-lab, train, --recipe=digits, "${args}"]\n'
        "method: grid\nparameters: {seed: {values: [0]}}\n"
    )
    before = files(project)
    assert main(["sweep", str(sweep), "--store", str(project), "--wandb=false"]) == 2
    assert "it must be a new or empty folder, or a store" in capsys.readouterr().err
    assert files(project) == before


def test_beside_trials_gc_touches_only_what_se_lab_wrote(project):
    root = project / "runs"
    store.mark_store(root)
    (root / "notes.ckpt").write_text("others keep files in a store, too")
    write_record(root / ID, RunRecord(ID, "finished", {}, {}))
    for name in ("last.ckpt", "previous.ckpt", "mine.ckpt", ".notes", f".{'a' * 32}"):
        (root / ID / name).write_text(name)
        os.utime(root / ID / name, (LONG_AGO, LONG_AGO))
    outside = project / "app"
    (root / ID / "excitations").symlink_to(outside, target_is_directory=True)
    (root / "123456789abc").symlink_to(outside, target_is_directory=True)
    before = files(project)
    delete(root, keep=["none"], named=set())
    gone = {name for name in before if name not in files(project)}
    assert gone == {f"runs/{ID}/{name}" for name in ("last.ckpt", "previous.ckpt", f".{'a' * 32}")}


@pytest.mark.parametrize("text", ["", "[]", '{"trial_id": "another"}', '{"host": "h"}'])
def test_a_folder_named_like_a_trial_without_a_record_or_claim_of_ours_is_none(tmp_path, text):
    (tmp_path / ID / "claims").mkdir(parents=True)
    (tmp_path / ID / "record.json").write_text(text)
    (tmp_path / ID / "last.ckpt").write_text("weights")
    assert not store.is_trial(tmp_path / ID)
    assert find_leftovers(tmp_path, keep=["none"], named=set()) == []


def test_claiming_a_trial_makes_its_store_one(tmp_path):
    with store.claim(tmp_path / "runs" / ID):
        pass
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    assert find_leftovers(tmp_path / "runs") == []  # its marker lets others keep files there
    assert store.is_trial(tmp_path / "runs" / ID)


def test_gc_leaves_what_others_put_among_claims_and_searches(tmp_path, project):
    root = tmp_path / "runs"
    store.mark_store(root)
    others = "fedcba987654"
    for trial in (ID, others):
        for _ in range(3):
            with store.claim(root / trial):
                pass
    write_record(root / ID, RunRecord(ID, "finished", {}, {}))
    (root / ID / "claims" / "000000").mkdir()
    (root / ID / "claims" / "000000" / "thesis.tex").write_text("mine")
    (root / others / "claims" / "notes.txt").write_text("mine")
    (project / "app" / f".{'a' * 32}").write_text("mine")
    (root / ".searches").symlink_to(project, target_is_directory=True)
    for path in (*root.rglob("*"), *project.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO))
    before = files(tmp_path)
    delete(root, keep=["none"], named=set())
    after = files(tmp_path)
    gone = {name for name in before if name not in after}
    claims = {
        f"runs/{trial}/claims/00000{n}{end}" for trial in (ID, others) for n in (1, 2) for end in ("", ".released")
    }
    assert gone == claims


def test_a_folder_or_a_link_among_claims_is_no_claim(tmp_path, capsys):
    with store.claim(tmp_path / "elsewhere" / ID) as held:
        (tmp_path / "runs" / ID / "claims" / "000009").mkdir(parents=True)
        (tmp_path / "runs" / ID / "claims" / "000010").symlink_to(held.path)
        assert store.holder_of(tmp_path / "runs" / ID) is None
        with store.claim(tmp_path / "runs" / ID) as claim:
            assert claim.path.name == "000011"  # above what stands in the way
            claim.check()
    assert main(["verify", str(tmp_path / "runs")]) == 1
    assert "000009: it is not a claim" in capsys.readouterr().out
