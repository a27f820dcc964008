"""The index of a store: a second reading opens no record that has not changed, and never believes a stale row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from se_lab import store
from se_lab.spec import ModelSpec, RunSpec, SESpec, SpecError
from se_lab.store import index as record_index
from se_lab.store.index import FILE


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
    monkeypatch.setattr(store, "read_bytes", lambda path: Path(path).read_bytes() if "running" in path else 1 / 0)
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
    assert store.read_records(runs, {new: {}, "absent": {"seed": 1}})["status"].tolist() == ["finished", "not started"]
    assert list(store.read_records(runs)["test/top1_error"].dropna()) == [2.0, 4.0, 1.25]


def older(folder: Path) -> bytes:
    """Return the index as another version of SE-Lab would have written it."""
    content = (folder / FILE).read_bytes()
    return content.replace(rb"{\"version\":2", rb"{\"version\":1")


def of_other_length(folder: Path) -> bytes:
    return save({".stamps": np.zeros((1, 2), np.int64)}, {"header": '{"version": 2, "trials": [], "distinct": []}'})


@pytest.mark.parametrize(
    "torn",
    [
        lambda folder: b"",
        lambda folder: b"{",
        lambda folder: (folder / FILE).read_bytes()[:-9],
        lambda folder: save({"a": np.zeros(1)}),
        lambda folder: save({"a": np.zeros(1)}, {"header": "[]"}),
        older,
        of_other_length,
    ],
)
def test_a_broken_or_missing_index_costs_nothing_but_time(runs: Path, torn: Callable[[Path], bytes]) -> None:
    first = store.read_records(runs)
    spoilt = torn(runs)
    assert spoilt != (runs / FILE).read_bytes()
    (runs / FILE).write_bytes(spoilt)
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


ODD = [1, 1.0, True, None, "1", [2, 3], {}, [], 2**70, "a", -0.0, 0.1 + 0.2]
"""Values of which Python holds several for equal, or cannot hash."""


@pytest.mark.parametrize("values", [ODD, [1, None, 3], [1.5, 2.5], [True, False], [3, 3], [None], [[1], [1]]])
@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_every_value_comes_back_as_it_was_however_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[object], first: int, at_once: int
) -> None:
    monkeypatch.setattr(record_index, "_AT_ONCE", at_once)

    def write(numbers: range) -> None:
        for number in numbers:
            record = {"status": "finished", "spec": {"seed": number}, "metrics": {"odd": values[number]}}
            (tmp_path / f"t{number:02d}").mkdir()
            (tmp_path / f"t{number:02d}" / "record.json").write_text(json.dumps(record))

    write(range(min(first, len(values))))
    if first:
        store.read_records(tmp_path)
    write(range(min(first, len(values)), len(values)))
    for _ in range(2):  # from the records, and from the index
        table = store.read_records(tmp_path)
        expected = pd.DataFrame({"odd": values})  # pandas' own reading of such a column
        pd.testing.assert_frame_equal(table[["odd"]], expected)
        assert list(map(type, table["odd"])) == list(map(type, expected["odd"]))


def test_a_part_of_the_index_reads_as_a_store_of_that_part(tmp_path: Path) -> None:
    for store_folder, names in (("all", "abc"), ("part", "ac")):
        for name in names:
            record = {"status": "finished", "spec": {"seed": 1}, "metrics": {"odd": None if name == "b" else 2}}
            (tmp_path / store_folder / name).mkdir(parents=True)
            (tmp_path / store_folder / name / "record.json").write_text(json.dumps(record))
    store.read_records(tmp_path / "all")
    part = store.read_records(tmp_path / "all", {"c": {}, "a": {}})
    anew = store.read_records(tmp_path / "part", {"c": {}, "a": {}})
    assert list(part["trial_id"]) == ["c", "a"]
    pd.testing.assert_frame_equal(part.drop(columns="folder"), anew.drop(columns="folder"))


def test_a_record_without_a_status_or_a_spec_is_named(tmp_path: Path) -> None:
    (tmp_path / "abc").mkdir()
    for text in ('{"status": "finished"}', '{"spec": {}}', "[]", '{"status": "finished", "spec": {"seed": NaN}}'):
        (tmp_path / "abc" / "record.json").write_text(text)
        with pytest.raises(SpecError, match=r"abc/record\.json is no record"):
            store.read_records(tmp_path)


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_sites_do_not_matter_to_a_row_however_a_record_is_laid_out(tmp_path: Path, indent: int | None) -> None:
    site = {"name": '\n  "sites": [\n', "path": "\n  ],\n"}
    record = {"status": "finished", "spec": {"seed": 1}, "sites": [site, site], "metrics": {"test/loss": 0.5}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "record.json").write_text(json.dumps(record, indent=indent))
    assert store.read_records(tmp_path)["test/loss"].tolist() == [0.5]
