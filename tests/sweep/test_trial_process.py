"""A trial of a sweep trains on the images that were there when the sweep began."""

import io
import itertools
import multiprocessing
import shutil

from PIL import Image

from se_lab import store
from se_lab.data import present_digest
from se_lab.spec import DataSpec, ModelSpec
from se_lab.sweep.schedule import Rules, Schedule
from se_lab.sweep.trial_process import Work, _run


def test_a_trial_trains_on_the_images_that_were_there_when_the_sweep_began(quick, here, tmp_path, monkeypatch):
    monkeypatch.setattr("se_lab.data.folders._inherited", {})
    for split, label, number in itertools.product(("train", "val"), "ab", range(8)):
        folder = tmp_path / "set" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 50 + number).convert("RGB").save(folder / f"{number}.png")
    data = DataSpec(f"folder:{tmp_path / 'set'}", batch_size=8, image_size=16)
    trial = quick(model=ModelSpec("cifar_resnet20", kwargs={"units": 1}), data=data, epochs=1)
    schedule = Schedule([trial], here, 1, lambda event: None, Rules())
    first, before = schedule._listing(data), present_digest(data)
    shutil.copy(tmp_path / "set/train/a/0.png", tmp_path / "set/train/a/late.png")
    assert present_digest(data) != before
    assert schedule._listing(data) is first
    _, writer = multiprocessing.Pipe()
    assert _run(Work(trial, here, listing=first), writer, io.StringIO()).status == "finished"
    record = store.read_record(store.trial_folder(here.store, trial.trial_id))
    assert record.data["digest"] == before
