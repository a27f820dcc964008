"""The index of a store: a second reading opens no record that has not changed, and never believes a stale row."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from se_lab import store
from se_lab.record_index import FILE
from se_lab.spec import ModelSpec, RunSpec, SESpec


def keep(folder: Path, reduction: int, error: float) -> str:
    spec = RunSpec(model=ModelSpec(se=SESpec(reduction=reduction, stages=[2, 3])))
    record = store.RunRecord(spec.trial_id, "finished", spec.flat(), {}, metrics={"test/top1_error": error})
    store.write_record(folder / spec.trial_id, record)
    return spec.trial_id


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for reduction in (4, 16, 8):
        keep(tmp_path, reduction, float(reduction))
    (tmp_path / "running" / "claims").mkdir(parents=True)
    return tmp_path


def test_a_second_reading_is_the_first_and_opens_no_record(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.read_records(runs)
    monkeypatch.setattr(json, "loads", lambda text, parse=json.loads: parse(text) if b'"stamps"' in text else 1 / 0)
    pd.testing.assert_frame_equal(store.read_records(runs), first)
    assert list(first["status"]) == ["interrupted", "finished", "finished", "finished"]
    assert list(first["test/top1_error"][1:]) == [4.0, 8.0, 16.0]
    assert first.loc[1, "model.se.stages"] == [2, 3]


def test_a_record_that_was_written_again_counts_and_one_that_is_gone_does_not(runs: Path) -> None:
    store.read_records(runs)
    keep(runs, 8, 1.25)
    gone = keep(runs, 16, 16.0)
    (runs / gone / "record.json").unlink()
    assert list(store.read_records(runs)["test/top1_error"].dropna()) == [4.0, 1.25]
    new = keep(runs, 2, 2.0)
    assert list(store.read_records(runs)["test/top1_error"].dropna()) == [2.0, 4.0, 1.25]
    assert store.read_records(runs, {new: {}, "absent": {"seed": 1}})["status"].tolist() == ["finished", "missing"]
    assert list(store.read_records(runs)["test/top1_error"].dropna()) == [2.0, 4.0, 1.25]


@pytest.mark.parametrize(
    "torn", [b"", b"{", b"[]", b'{"version": 0}', b'{"version":1,"trials":["a"],"stamps":[],"columns":{}}']
)
def test_a_broken_or_missing_index_costs_nothing_but_time(runs: Path, torn: bytes) -> None:
    first = store.read_records(runs)
    (runs / FILE).write_bytes(torn)
    pd.testing.assert_frame_equal(store.read_records(runs), first)
    (runs / FILE).unlink()
    pd.testing.assert_frame_equal(store.read_records(runs), first)


def test_a_store_that_cannot_be_written_is_read(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fsync", refuse)
    assert len(store.read_records(runs)) == 4
    assert not (runs / FILE).exists()


def test_the_index_is_not_written_anew_for_a_few_of_many(tmp_path: Path) -> None:
    for reduction in range(1, 42):
        keep(tmp_path, reduction, 1.0)
    store.read_records(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    keep(tmp_path, 50, 2.0)
    assert store.read_records(tmp_path)["test/top1_error"].max() == 2.0
    assert (tmp_path / FILE).read_bytes() == before
