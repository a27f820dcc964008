"""A rehearsal builds and measures a trial, and leaves no trace."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from se_lab.cli import main
from se_lab.spec import DataSpec, ModelSpec, SESpec, SpecError, TrainSpec
from se_lab.store import trial_folder
from se_lab.training.metrics import MeanLoss
from se_lab.training.rehearse import rehearse
from se_lab.training.run import run
from se_lab.training.task import ClassificationTask


def test_a_rehearsal_tells_what_the_run_then_takes(quick, here, tmp_path, monkeypatch):
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    spec = quick(data=DataSpec(batch_size=64), train=TrainSpec(epochs=2, accumulate=2, ema=0.9))
    rehearsal = rehearse(spec, here)
    assert not Path(here.store).exists() and not list(temporary.iterdir())
    assert rehearsal.steps == 2 * (809 // 64)  # of 1,797 images half are for testing, and 90 for validation
    assert rehearsal.images_per_s == pytest.approx(64_000 / rehearsal.step_ms)
    assert rehearsal.host_bytes > 1e8 and rehearsal.seconds > 0
    run(spec, here)
    folder = trial_folder(here.store, spec.trial_id)
    used = sum(path.stat().st_size for path in folder.glob("*.*"))
    assert rehearsal.disk_bytes == pytest.approx(used, rel=0.15)


@pytest.mark.slow
def test_two_devices_rehearse_as_two(quick, here):
    spec = quick(data=DataSpec(batch_size=64), train=TrainSpec(epochs=2, devices=2, accumulate=2))
    rehearsal = rehearse(spec, here)
    assert not Path(here.store).exists()
    assert rehearsal.steps == 2 * (809 // 64)
    assert rehearsal.images_per_s == pytest.approx(64_000 / rehearsal.step_ms)
    run(spec, here)
    checkpoint = trial_folder(here.store, spec.trial_id) / "last.ckpt"
    assert rehearsal.checkpoint_bytes == pytest.approx(checkpoint.stat().st_size, rel=0.05)


def test_a_rehearsal_finds_what_would_make_the_trial_fail(quick, here, monkeypatch):
    monkeypatch.setattr(ClassificationTask, "on_load_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rehearse(quick(), here)
    assert not Path(here.store).exists()


def test_the_command_prints_it(capsys, tmp_path):
    status = main(["train", "--dry_run", "--recipe=digits", f"--store={tmp_path / 'store'}", "--wandb=false"])
    said = capsys.readouterr().out
    assert status == 0 and not (tmp_path / "store").exists()
    assert all(word in said for word in ("images/s", "GiB per process", "the whole run", "MiB, of"))


def test_a_unit_that_sees_too_small_a_map_is_refused_before_anything_is_written(quick, here):
    spec = quick(model=ModelSpec("resnet18", SESpec(unit="simam")))  # digits of 8 × 8 pixels are 1 × 1 in layer 2
    for start in (run, rehearse):
        with pytest.raises(SpecError, match=r"simam needs maps of at least 2 pixels, but layer2\.0\.se has 1 × 1"):
            start(spec, here)
    assert not Path(here.store).exists()


def test_a_rehearsal_whose_validation_loss_is_nan_ends(quick, here, monkeypatch):
    monkeypatch.setattr(MeanLoss, "compute", lambda _: torch.tensor(float("nan")))
    assert rehearse(quick(), here).steps > 0
