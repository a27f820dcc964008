"""The table of a store's records."""

import json
from pathlib import Path

import pandas as pd
import pytest

from se_lab import store
from se_lab.spec import ModelSpec, RunSpec, SESpec, SpecError
from se_lab.store import RunRecord


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
    with pytest.raises(FileNotFoundError, match="contains no trials"):
        store.read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder of trials"):
        store.read_records(tmp_path / "nowhere")


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc/record.json").write_text('{"trial_id": "abc')
    with pytest.raises(SpecError, match=r"abc/record\.json is not a valid record"):
        store.read_records(tmp_path)


@pytest.mark.parametrize(
    "values",
    [[1, 1.0, True, None, "1", [2, 3], {}, [], 2**70, "a", 0.1 + 0.2], [1, None, 3], [1.5, 2.5], [True, False], [None]],
)
def test_every_value_comes_as_pandas_reads_such_a_column(tmp_path: Path, values: list[object]) -> None:
    for number, value in enumerate(values):
        record = {"status": "finished", "spec": {"seed": number}, "metrics": {"odd": value}}
        (tmp_path / f"t{number:02d}").mkdir()
        (tmp_path / f"t{number:02d}" / "record.json").write_text(json.dumps(record))
    expected = pd.DataFrame({"odd": values})
    table = store.read_records(tmp_path)
    pd.testing.assert_frame_equal(table[["odd"]], expected)
    assert list(map(type, table["odd"])) == list(map(type, expected["odd"]))


def test_a_record_without_a_status_or_a_spec_is_named(tmp_path: Path) -> None:
    (tmp_path / "abc").mkdir()
    for text in ('{"status": "finished"}', '{"spec": {}}', "[]", '{"status": "finished", "spec": {"seed": NaN}}'):
        (tmp_path / "abc" / "record.json").write_text(text)
        with pytest.raises(SpecError, match=r"abc/record\.json is not a valid record"):
            store.read_records(tmp_path)


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_sites_do_not_matter_to_a_row_however_a_record_is_laid_out(tmp_path: Path, indent: int | None) -> None:
    site = {"name": '\n  "sites": [\n', "path": "\n  ],\n"}
    record = {"status": "finished", "spec": {"seed": 1}, "sites": [site, site], "metrics": {"test/loss": 0.5}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "record.json").write_text(json.dumps(record, indent=indent))
    assert store.read_records(tmp_path)["test/loss"].tolist() == [0.5]
