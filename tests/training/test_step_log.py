"""The loss and the learning rate within an epoch."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from se_lab import create_data
from se_lab.spec import TrainSpec
from se_lab.store import trial_folder
from se_lab.training.run import run
from se_lab.training.step_log import StepLog
from se_lab.training.task import ClassificationTask


def rows_of(store, record, key="train/loss_step"):
    with (trial_folder(store, record.trial_id) / "csv" / "version_0" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_n_steps_the_mean_loss_and_the_rate_are_logged_and_the_numbers_stay(few, here, tmp_path, accumulate):
    spec = few(train=TrainSpec(epochs=2, accumulate=accumulate))
    plain = run(spec, dataclasses.replace(here, store=str(tmp_path / "plain"), logger="csv"))
    assert rows_of(tmp_path / "plain", plain) == []  # an epoch of three steps is a short one
    logged = run(spec, dataclasses.replace(here, logger="csv", log_every=2))
    assert logged.metrics == plain.metrics
    rows = rows_of(here.store, logged)
    assert [(int(row["step"]), int(row["epoch"])) for row in rows] == [(2, 0), (4, 1), (6, 1)]
    assert [float(row["lr_step"]) for row in rows] == pytest.approx([0.05, 0.025, 0.025])  # 0.05 (1 + cos(π / 2)) / 2


def test_the_loss_is_that_of_the_steps(few, here):
    spec = few()
    record = run(spec, dataclasses.replace(here, logger="csv", log_every=1))
    first = float(rows_of(here.store, record)[0]["train/loss_step"])
    data, task = create_data(spec.data, spec.seed), ClassificationTask(spec, 6, 1)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    images, labels, *_ = data.on_after_batch_transfer(next(iter(loader)), 0)
    with torch.no_grad():
        assert first == pytest.approx(float(F.cross_entropy(task(images), labels)), abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_over_an_epochs_three_steps_the_mean_is_the_epochs_loss(few, here, accumulate):
    spec = few(train=TrainSpec(epochs=2, accumulate=accumulate))
    record = run(spec, dataclasses.replace(here, logger="csv", log_every=3))
    steps = [float(row["train/loss_step"]) for row in rows_of(here.store, record)]
    assert steps == pytest.approx([float(row["train/loss"]) for row in rows_of(here.store, record, "train/loss")])


def test_by_default_long_epochs_are_logged():
    class Trainer:
        accumulate_grad_batches, loggers = 2, [object()]

    for batches, asked, every in ((1998, None, 0), (2000, None, 100), (2000, 0, 0), (6, 5, 5)):
        log, Trainer.num_training_batches = StepLog(asked), batches
        log.on_train_start(Trainer, None)
        assert log.every == every
    Trainer.loggers = []
    log.on_train_start(Trainer, None)
    assert log.every == 0
