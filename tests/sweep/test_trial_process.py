"""A trial of a sweep trains on the images that were there when the sweep began, and leaves no process behind."""

import io
import itertools
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from se_lab import store
from se_lab.data import present_digest
from se_lab.spec import DataSpec, ModelSpec
from se_lab.sweep.schedule import Rules, Schedule, execute
from se_lab.sweep.trial_process import Work, _run


@pytest.fixture
def trial(quick, tmp_path):
    """Return a trial of one epoch on 16 images in folders."""
    for split, label, number in itertools.product(("train", "val"), "ab", range(8)):
        folder = tmp_path / "set" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 50 + number).convert("RGB").save(folder / f"{number}.png")
    data = DataSpec(f"folder:{tmp_path / 'set'}", batch_size=8, image_size=16)
    return quick(model=ModelSpec("cifar_resnet20", kwargs={"units": 1}), data=data, epochs=1)


def test_a_trial_trains_on_the_images_that_were_there_when_the_sweep_began(trial, here, tmp_path):
    data, said = trial.data, []
    schedule = Schedule([trial], here, 1, lambda event: said.append(event.status), Rules())
    first, before = schedule._listing(trial), present_digest(data)
    shutil.copy(tmp_path / "set/train/a/0.png", tmp_path / "set/train/a/late.png")
    assert present_digest(data) != before
    assert schedule._listing(trial) == first
    schedule._look_after[trial.data.name] = 0.0
    assert schedule._listing(trial) == first and not said
    _, writer = multiprocessing.Pipe()
    assert _run(Work(trial, here, listing=first), writer, io.StringIO()).status == "finished"
    record = store.read_record(store.trial_folder(here.store, trial.trial_id))
    assert record.data["digest"] == before


def test_an_image_that_changes_while_a_sweep_runs_changes_the_digest_of_later_trials_and_is_said(trial, here, tmp_path):
    said = []
    schedule = Schedule([trial], here, 1, lambda event: said.append(event.status), Rules())
    first = schedule._listing(trial)
    Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "set/train/a/0.png")
    schedule._look_after[trial.data.name] = 0.0  # the time is there for a look
    later = schedule._listing(trial)
    assert said == [f"changed: {trial.data.name}"]
    assert later.digest == present_digest(trial.data) != first.digest


def writers(folder):
    """Return the processes that have a file below a folder open: a trial's, and all that it starts, have its log."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()).startswith(f"{folder}/"):
                found.add(int(descriptor.parts[2]))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_the_processes_that_load_images_end_with_their_trial(trial, here):
    assert here.data_workers == 2
    (outcome,) = execute([trial], here, 1, lambda event: None)
    assert outcome.status == "finished", outcome.error
    end = time.monotonic() + 120
    while left := writers(Path(here.store).resolve()):
        assert time.monotonic() < end, f"{len(left)} processes of the trial outlive it"
        time.sleep(0.2)
