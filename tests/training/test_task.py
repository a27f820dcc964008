"""The task and the data with a plain Trainer of Lightning's, and the same training by `run`, to the bit."""

from __future__ import annotations

import csv
import multiprocessing
import os
import socket
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.tuner import Tuner
from sklearn.metrics import log_loss, top_k_accuracy_score

from se_lab import create_data
from se_lab.spec import OptimSpec, TrainSpec
from se_lab.store import trial_folder
from se_lab.training.metrics import Scores
from se_lab.training.run import run
from se_lab.training.task import ClassificationTask

VAL = ("val/loss", "val/top1_error", "val/top5_error")


@pytest.fixture
def fit(few, tmp_path):
    """Return a function that trains a spec with a plain Trainer, and returns the Trainer and the task."""

    def make(spec=None, ckpt_path=None, task=None, **options):
        spec = spec or few()
        options = {"max_epochs": spec.train.epochs, "enable_progress_bar": False, "logger": False} | options
        options = {"enable_checkpointing": False, "default_root_dir": tmp_path, "accelerator": "cpu"} | options
        trainer = L.Trainer(devices=1, **options)
        task = ClassificationTask(spec, num_classes=6, in_chans=1) if task is None else task
        trainer.fit(task, datamodule=create_data(spec.data, spec.seed), ckpt_path=ckpt_path)
        return trainer, task

    return make


def weights(task):
    return {key: value.clone() for key, value in task.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_fit_validates_and_logs_an_epochs_metrics(fit):
    trainer, task = fit()
    assert {*VAL, "train/loss", "train/top1_error"} <= trainer.callback_metrics.keys()
    data = create_data(task.spec.data, 0)
    images, labels = data.tensors("val")
    with torch.no_grad():
        scores = task.eval()(data.normalise(images)).double().softmax(1).numpy()
    seen = {key: float(trainer.callback_metrics[key]) for key in VAL}
    assert seen["val/loss"] == pytest.approx(log_loss(labels, scores, labels=range(6)), abs=1e-5)
    for k in (1, 5):
        error = 100 * (1 - top_k_accuracy_score(labels, scores, k=k, labels=range(6)))
        assert seen[f"val/top{k}_error"] == pytest.approx(error)


def test_early_stopping_and_checkpoints_look_at_the_validation_loss(fit, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", filename="{epoch}", save_top_k=1)
    trainer, task = fit(
        callbacks=[EarlyStopping("val/loss", divergence_threshold=-1.0), best], enable_checkpointing=True
    )
    assert trainer.current_epoch == 1  # any loss is above -1
    assert float(best.best_model_score) == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    again = ClassificationTask.load_from_checkpoint(best.best_model_path)
    assert again.spec == task.spec and equal(weights(again), weights(task))


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "plateau"])
def test_the_learning_rate_is_monitored(fit, few, tmp_path, schedule):
    spec = few(optim=OptimSpec(lr=0.05, schedule=schedule, patience=0, warmup_epochs=1))
    monitor = LearningRateMonitor()
    fit(spec, callbacks=[monitor], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    rates, *_ = monitor.lrs.values()  # of the weights that decay, and of the others
    expected = {
        "cosine": [0.05, 0.025],  # an epoch of warm-up at its end, and 0.05 (1 + cos(π / 2)) / 2
        "onecycle": [0.0125, 0.025, 0.0375, 0.05, 0.05 * 2 / 3, 0.05 / 3],  # three steps up, three down
        "plateau": [0.05] * 3,
    }[schedule]
    assert rates[: len(expected)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "callback",
    [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1), ModelSummary(max_depth=2), RichProgressBar()],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_of_lightning_work(fit, callback, capsys):
    trainer, _ = fit(callbacks=[callback], enable_progress_bar=True, enable_model_summary=True)
    assert trainer.state.finished


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger, WandbLogger])
def test_loggers_of_lightning_get_the_metrics(fit, tmp_path, kind, wandb_offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # which WandbLogger(offline=True) sets too, and leaves set
    offline = {"offline": True} if kind is WandbLogger else {}
    logger = kind(save_dir=str(tmp_path), **offline)
    fit(logger=logger, log_every_n_steps=1)
    if kind is CSVLogger:
        with Path(logger.log_dir, "metrics.csv").open() as file:
            assert {*VAL, "train/loss"} <= set(next(csv.reader(file)))
    elif kind is TensorBoardLogger:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(logger.log_dir)
        events.Reload()
        assert {*VAL, "train/loss"} <= set(events.Tags()["scalars"])
    else:
        assert set(VAL) <= set(logger.experiment.summary.keys())
        logger.experiment.finish()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"overfit_batches": 1}, 2),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, 4),
        ({"limit_train_batches": 2, "limit_val_batches": 0}, 4),
        ({"profiler": "simple"}, 6),
        ({"detect_anomaly": True}, 6),
        ({"precision": "bf16-mixed"}, 6),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_flags_of_the_trainer_work(fit, options, steps):
    trainer, _ = fit(**options)
    assert trainer.state.finished and trainer.global_step == steps


def test_overfitting_repeats_its_batches_and_limits_begin_each_epoch_anew(fit, few):
    seen = {}

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            seen.setdefault(trainer.current_epoch, []).extend(batch[2].tolist())

        def on_validation_batch_end(self, trainer, task, outputs, batch, *_):
            seen.setdefault("val", []).extend(batch[2].tolist())

    fit(callbacks=[Watch()], overfit_batches=1)
    assert seen[0] == seen[1] and len(seen[0]) == 4
    seen.clear()
    fit(callbacks=[Watch()], limit_train_batches=2, limit_val_batches=1)
    data = create_data(few().data, 0)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        expected = [batch[2].tolist() for batch in loader][:2]
        assert seen[epoch] == expected[0] + expected[1]
    assert seen["val"] == 3 * [0, 1, 2, 3]  # before training, and after each epoch


def test_gradients_are_accumulated_into_one_step(fit, few):
    spec = few(data={"batch_size": 6})
    trainer, _ = fit(spec, accumulate_grad_batches=2)  # micro-batches of three
    assert trainer.global_step == 4


def test_validate_test_and_predict_agree(fit):
    trainer, task = fit()
    data = create_data(task.spec.data, 0)
    (val,) = trainer.validate(task, datamodule=data, verbose=False)
    (test,) = trainer.test(task, datamodule=data, verbose=False)
    assert val.keys() == set(VAL) and test.keys() == {key.replace("val", "test") for key in VAL}
    probabilities = torch.cat(trainer.predict(task, datamodule=data))
    _, labels = data.tensors("test")
    assert test["test/top1_error"] == pytest.approx(100 * float((probabilities.argmax(1) != labels).double().mean()))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6))


def test_training_resumes_from_lightnings_own_checkpoints(fit, few, tmp_path):
    spec = few(train=TrainSpec(epochs=2, ema=0.9), optim=OptimSpec(schedule="onecycle"))
    _, whole = fit(spec)
    saved = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1, save_on_train_epoch_end=False)
    fit(spec, enable_checkpointing=True, callbacks=[saved])
    paths = sorted((tmp_path / "saved").iterdir())
    assert len(paths) == 3
    for path in paths[:2]:  # within each epoch
        assert equal(weights(fit(spec, ckpt_path=path)[1]), weights(whole))


def test_lr_find_and_scale_batch_size_set_what_they_find(few, tmp_path):
    spec = few()
    task, data = ClassificationTask(spec, 6, 1), create_data(spec.data, 0)
    options = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False}
    tuner = Tuner(L.Trainer(max_epochs=9, default_root_dir=tmp_path, **options))
    found = tuner.lr_find(task, datamodule=data, num_training=20, early_stop_threshold=None)
    assert found.results["lr"][-1] > 100 * found.results["lr"][0]
    assert task.spec.optim.lr == task.lr == found.suggestion() != spec.optim.lr
    assert task.hparams["spec"]["optim.lr"] == task.lr
    tuner.scale_batch_size(task, datamodule=data, init_val=2, max_trials=2, steps_per_trial=1)
    assert data.spec.batch_size == data.batch_size > 2


def test_the_command_line_of_lightning_knows_task_and_data(few, tmp_path, capsys):
    flags = ["--model.num_classes=6", "--model.in_chans=1", "--data.spec.name=few", "--data.seed=0"]
    flags += ["--model.spec.model.backbone=cifar_resnet20", "--model.spec.model.kwargs={units: 1}"]
    flags += ["--data.spec.batch_size=4", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    flags += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        LightningCLI(ClassificationTask, create_data, args=["fit", *flags, "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["num_classes"] == 6 and config["model"]["spec"]["model"]["backbone"] == "cifar_resnet20"
    assert config["data"]["spec"]["batch_size"] == 4
    cli = LightningCLI(ClassificationTask, create_data, args=["fit", *flags])
    assert cli.trainer.state.finished and set(VAL) <= cli.trainer.callback_metrics.keys()


@pytest.mark.slow
def test_a_compiled_task_trains_to_the_plain_numbers(fit, few):
    _, plain = fit(fast_dev_run=True)
    compiled = torch.compile(ClassificationTask(few(), 6, 1), backend="eager")
    trainer, _ = fit(task=compiled, fast_dev_run=True)
    assert trainer.state.finished and equal(weights(compiled._orig_mod), weights(plain))


def train_as_a_rank(rank, port, folder, spec, answers):
    """Fit and test as one of two processes, as torchrun starts them."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, map(str, (rank, rank, 0, 2, 2, "127.0.0.1", port)), strict=True))
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 1, "enable_progress_bar": False}
    trainer = L.Trainer(**options, logger=False, enable_checkpointing=False, default_root_dir=folder)
    task, data = ClassificationTask(spec, 6, 1), create_data(spec.data, 0)
    trainer.fit(task, datamodule=data)
    epoch = {key: float(value) for key, value in trainer.callback_metrics.items()}
    (tested,) = trainer.test(task, datamodule=data, verbose=False)
    trainer.save_checkpoint(folder / "saved.ckpt")
    images = sum(map(len, trainer.predict(task, datamodule=data)))
    answers.put((rank, trainer.global_step, images, epoch | tested))


def test_two_processes_share_the_batches_under_ddp(few, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked, spec = multiprocessing.get_context("fork"), few(train=TrainSpec(epochs=1))
    answers = forked.Queue()
    ranks = [forked.Process(target=train_as_a_rank, args=(n, port, tmp_path, spec, answers)) for n in range(2)]
    for rank in ranks:
        rank.start()
    (_, *first), (_, *second) = sorted(answers.get(timeout=120) for _ in ranks)
    assert first == second and first[:2] == [3, 3]  # steps, and test images of each
    assert {*VAL, "train/loss", "test/loss"} <= first[2].keys()
    assert [rank.join(60) or rank.exitcode for rank in ranks] == [0, 0]
    again = ClassificationTask.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert len(torch.load(tmp_path / "saved.ckpt", weights_only=True)["train_sums"]) == 2
    assert again.hparams.in_chans == 1


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": TrainSpec(epochs=2, ema=0.8, clip_norm=0.5, label_smoothing=0.1)},
        {"optim": OptimSpec(lr=0.05, schedule="onecycle", warmup_epochs=1)},
        {"optim": OptimSpec(lr=0.05, schedule="plateau", patience=0)},
        {"data": {"mixup": 0.4, "repeats": 2}, "train": TrainSpec(epochs=2, accumulate=2)},
        {"train": TrainSpec(epochs=2, precision="fp64")},
    ],
    ids=["cosine", "ema", "onecycle", "plateau", "mixup", "fp64"],
)
def test_run_is_the_training_of_a_plain_trainer_to_the_bit(fit, few, here, sections):
    spec = few(**sections)
    record = run(spec, here)
    options = {"gradient_clip_val": spec.train.clip_norm or None, "accumulate_grad_batches": spec.train.accumulate}
    precision = {"fp64": "64-true"}.get(spec.train.precision, "32-true")
    trainer, task = fit(spec, precision=precision, **options)
    epochs = {key: float(value) for key, value in trainer.callback_metrics.items()}
    (tested,) = trainer.test(task, datamodule=create_data(spec.data, spec.seed), verbose=False)
    assert record.metrics == epochs | tested
    kept = torch.load(trial_folder(here.store, spec.trial_id) / "last.ckpt", weights_only=True)["state_dict"]
    assert equal(kept, weights(task))


def test_a_trials_checkpoint_gives_the_task_back(few, here):
    spec = few(train=TrainSpec(epochs=2, select="best", ema=0.9))
    run(spec, here)
    for name in ("last.ckpt", "best.ckpt"):
        path = trial_folder(here.store, spec.trial_id) / name
        task = ClassificationTask.load_from_checkpoint(path)
        assert task.spec == spec and (task.hparams.num_classes, task.hparams.in_chans) == (6, 1)
        assert equal(weights(task), torch.load(path, weights_only=True)["state_dict"])


def test_sums_in_single_precision_stay_single_over_a_reset_and_a_move():
    scores = Scores(6)
    scores.loss.single()
    for _ in range(2):
        scores.update(torch.tensor([1.0, 3.0]), torch.tensor([[0], [1]]), torch.tensor([0, 0]))
        assert float(scores.loss.compute()) == 2
        scores.reset()
    assert {scores.loss.total.dtype, scores.loss._defaults["total"].dtype} == {torch.float32}  # what mps takes
