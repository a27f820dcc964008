"""se-lab verify: what is damaged, missing or another trial's is named, file by file."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from se_lab import store
from se_lab.cli import main
from se_lab.store.verify import verify
from tests.store.conftest import spec


@pytest.fixture(scope="module")
def whole(ran: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a file of every kind."""
    folder = Path(shutil.copytree(ran, tmp_path_factory.mktemp("whole") / "store"))
    store.write_sealed(folder / ".searches/0123456789ab/000001.json", {"place": {"optim.lr": 0.5}, "spec": {"seed": 1}})
    store.write_sealed(folder / ".slurm/17.json", {"name": "jobs", "trials_per_job": 1, "groups": []})
    store.write_sealed(folder / ".confirmed/0123456789ab.json", {"sweep": "s", "chosen": [], "trials": []})
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def said(folder: Path) -> list[str]:
    return [f"{path.relative_to(folder)}: {problem}" for path, problem in verify(folder).problems]


def test_a_store_as_trials_left_it_is_whole(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    assert f"{folder}: 2 trials, " in capsys.readouterr().out
    assert verify(folder).files >= 2 * (1 + 2 + 2 + 1) + 3


def test_no_flipped_bit_is_a_wrong_number_in_silence(folder):
    trial = folder / spec(0).trial_id
    shutil.rmtree(folder / spec(1, "best").trial_id)
    files = sorted({*folder.rglob("*.json"), *(path for path in trial.rglob("*") if path.is_file())})
    files = [path for path in files if path.stat().st_size]
    assert {"record.json", "metrics.csv", "predictions.npz", "last.ckpt", "best.ckpt"} <= {path.name for path in files}
    before = store.read_records(folder)
    draw = random.Random(0)
    silent = []
    # together only files that say nothing of one another: a damaged record compares no file of its trial
    claims = {path for path in files if "claims" in path.parts}
    sealed = {path for path in files if path.suffix == ".json"} - claims
    for _ in range(300 // len(files)):
        for some in (sealed, claims, {*files} - sealed - claims):
            contents = {path: path.read_bytes() for path in sorted(some)}
            for path, content in contents.items():
                bit = draw.randrange(8 * len(content))
                damaged = bytearray(content)
                damaged[bit // 8] ^= 1 << bit % 8
                path.write_bytes(damaged)
            said_of = {path for path, _ in verify(folder).problems}
            for path in said_of & some:
                path.write_bytes(contents[path])
            if some - said_of:
                silent += some - said_of
                pd.testing.assert_frame_equal(store.read_records(folder), before)
            for path, content in contents.items():
                path.write_bytes(content)
    assert all("claims" in path.parts for path in silent), silent
    assert not verify(folder).problems


def test_what_is_missing_or_another_trials_is_named(folder):
    one, other = folder / spec(0).trial_id, folder / spec(1, "best").trial_id
    (one / "predictions.npz").unlink()
    (one / "best.ckpt").unlink()  # as gc does
    shutil.copy(other / "last.ckpt", one / "last.ckpt")
    (other / "metrics.csv").write_text("epoch,val/loss\n0,1.5\n")
    found = said(folder)
    assert f"{one.name}/predictions.npz: it is missing" in found
    assert any(line.startswith(f"{one.name}/last.ckpt: its digest differs") for line in found)
    assert any(line.startswith(f"{other.name}/metrics.csv: its digest differs") for line in found)
    assert f"{one.name}/last.ckpt: it is a checkpoint of trial {other.name}" in found
    assert len(found) == 4
    shutil.copy(other / "record.json", one / "record.json")
    assert f"{one.name}/record.json: it is the record of trial {other.name}" in said(folder)


def test_files_of_a_trial_without_a_record_must_be_readable(folder):
    trial = folder / spec(0).trial_id
    (trial / "record.json").unlink()
    assert not said(folder)
    (trial / "metrics.csv").write_text("epoch,val/loss\n0,1.5\n2\n")
    content = bytearray((trial / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (trial / "last.ckpt").write_bytes(content)
    (trial / "best.ckpt").write_bytes(b"PK")
    (trial / "predictions.npz").write_bytes((trial / "predictions.npz").read_bytes()[:-40])
    damaged = [line.partition(":")[0] for line in said(folder)]
    names = ("metrics.csv", "predictions.npz", "last.ckpt", "best.ckpt")
    assert sorted(set(damaged)) == sorted(f"{trial.name}/{name}" for name in names)


def test_other_peoples_folders_are_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert main(["verify", str(tmp_path)]) == 2
    assert "thesis.tex" in capsys.readouterr().err


def test_checkpoints_are_read_without_pytorch(folder):
    code = "import sys; from se_lab.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, "verify", str(folder)]).returncode == 0


def test_images_are_read_and_compared(folder, capsys):
    assert main(["verify", str(folder), "--data"]) == 0
    assert "digits: all images match the records (2 trials" in capsys.readouterr().out
    for trial in (spec(0), spec(1, "best")):
        record = store.read_record(folder / trial.trial_id)
        record.data["digest"] = "0" * 16
        store.write_record(folder / trial.trial_id, record)
    assert main(["verify", str(folder), "--data"]) == 1
    assert f"but {'0' * 16} in the records" in capsys.readouterr().out
