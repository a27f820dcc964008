"""A sweep says it where finished trials, which it will not run again, were trained on other images than are there."""

import dataclasses

import numpy as np
from PIL import Image

from se_lab import store
from se_lab.data import present_digest
from se_lab.spec import DataSpec
from se_lab.sweep.schedule import check_trials


def write_images(folder, height):
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            path = folder / split / name / "1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (height, 8, 3), np.uint8)
            Image.fromarray(noise).save(path)


def test_other_images_than_those_of_finished_trials_are_named(quick, here, tmp_path):
    write_images(tmp_path / "set", 8)
    data = DataSpec(name=f"folder:{tmp_path / 'set'}", image_size=8, batch_size=2, val_fraction=0)
    trials = [quick(data=data, seed=seed) for seed in range(3)]
    digest = present_digest(data)
    for trial in trials[:2]:
        known = {"digest": digest, "images": {"train": 2, "val": 0, "test": 2}}
        record = store.RunRecord(trial.trial_id, "finished", trial.flat(), {}, data=known)
        store.write_record(store.trial_folder(here.store, trial.trial_id), record)
    assert check_trials(trials, execution=here) == []
    write_images(tmp_path / "set", 24)
    (line,) = check_trials(trials, execution=here)
    assert digest[:12] in line and line.endswith(f"trials {trials[0].trial_id}, {trials[1].trial_id}")
    assert check_trials(trials, execution=dataclasses.replace(here, store=str(tmp_path / "empty"))) == []
