"""Records: written whole, read as they were written, and refused where they are damaged or another trial's."""

import json

import pytest

from se_lab import store
from se_lab.spec import RunSpec, SpecError
from se_lab.store import RunRecord


def record(trial_id="abc", **fields):
    return RunRecord(trial_id, "finished", RunSpec().flat(), {}, **fields)


def test_record_comes_back_as_it_was_written_with_nan_as_null(tmp_path):
    written = record(
        metrics={"test/top1_error": 1.25, "val/loss": float("nan")}, sites=[{"name": "SE_2_1", "path": "a"}]
    )
    store.write_record(tmp_path, written)
    read = store.read_record(tmp_path)
    assert read.metrics == {"test/top1_error": 1.25, "val/loss": None}
    assert read.sites == written.sites
    json.loads((tmp_path / "record.json").read_text(), parse_constant=pytest.fail)


def test_fields_of_a_later_version_are_kept_when_a_record_is_written_again(tmp_path):
    store.write_record(tmp_path, record())
    later = store.read_sealed(tmp_path / "record.json") | {"schema": 7, "carbon": {"grams": 3}}
    store.write_sealed(tmp_path / "record.json", later)
    read = store.read_record(tmp_path)
    read.error = "changed"
    store.write_record(tmp_path, read)
    again = json.loads((tmp_path / "record.json").read_text())
    assert (again["carbon"], again["schema"], again["error"]) == ({"grams": 3}, 7, "changed")


def test_a_record_names_the_digests_of_the_files_beside_it(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"abc")
    store.write_record(tmp_path, record())
    # FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert store.read_record(tmp_path).files == {"metrics.csv": digest}


@pytest.mark.parametrize("name", ["metrics.csv", "predictions.npz"])
def test_a_result_is_read_as_its_trial_wrote_it_or_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"abc")
    assert store.read_result(tmp_path, name) == b"abc"  # no record yet
    store.write_record(tmp_path, record())
    assert store.read_result(tmp_path, name) == b"abc"
    (tmp_path / name).write_bytes(b"abd")
    with pytest.raises(SpecError, match=rf"{name} was damaged or changed after its trial ended"):
        store.read_result(tmp_path, name)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        store.read_result(tmp_path, name)


def test_the_results_of_a_failed_trial_that_runs_again_are_not_compared(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"abc")
    store.write_record(tmp_path, RunRecord("abc", "failed", RunSpec().flat(), {}))
    (tmp_path / "metrics.csv").write_bytes(b"abcd")
    assert store.read_result(tmp_path, "metrics.csv") == b"abcd"


def test_a_record_that_is_not_utf_8_does_not_keep_results_from_being_read(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"abc")
    (tmp_path / "record.json").write_bytes(b'{"status": "finished", "files": {"metrics\xe5.csv": "0"}}')
    assert store.read_result(tmp_path, "metrics.csv") == b"abc"


def test_another_trials_record_is_refused(tmp_path):
    store.write_record(tmp_path / "0123456789ab", record("0123456789ab"))
    (tmp_path / "0123456789ab").rename(tmp_path / "ba9876543210")
    with pytest.raises(SpecError, match="it is the record of trial 0123456789ab"):
        store.read_record(tmp_path / "ba9876543210")
    with pytest.raises(SpecError, match="it is the record of trial 0123456789ab"):
        store.read_records(tmp_path)


def test_an_edited_record_is_refused(tmp_path):
    store.write_record(tmp_path, record(metrics={"test/top1_error": 1.25}))
    path = tmp_path / "record.json"
    path.write_text(path.read_text().replace("1.25", "1.24"))
    with pytest.raises(SpecError, match="its checksum does not match its content"):
        store.read_record(tmp_path)
