"""The flags of L.Trainer: which of them a trial takes, and why it does not take the others."""

from __future__ import annotations

from se_lab.spec.checks import SpecError, check_choice, nearest

LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
"""Flags of L.Trainer that are for a rehearsal: they would change the numbers of a trial."""

PROFILERS = ("simple", "advanced", "pytorch")

TRAINER_FLAGS = ("profiler", "detect_anomaly", "enable_progress_bar", "enable_model_summary", *LIMITS)
"""Flags of L.Trainer that an ExecSpec takes."""

SET_ELSEWHERE = {
    "accelerator": "it is device",
    "strategy": "it follows from train.devices and train.nodes",
    "devices": "it is train.devices",
    "num_nodes": "it is train.nodes",
    "precision": "it changes numbers: it is train.precision",
    "logger": "it is logger",
    "callbacks": "it is callbacks",
    "fast_dev_run": "it changes numbers: se-lab train --dry_run rehearses a trial",
    "max_epochs": "it changes numbers: it is train.epochs",
    "min_epochs": "it changes numbers: a trial trains for train.epochs",
    "max_steps": "it changes numbers: a trial trains for train.epochs",
    "min_steps": "it changes numbers: a trial trains for train.epochs",
    "max_time": "it changes numbers: stop a trial by SIGTERM, and the same command resumes it",
    "limit_predict_batches": "training predicts nothing",
    "overfit_batches": "it changes numbers: for a rehearsal, limit_train_batches with --dry_run",
    "val_check_interval": "it changes numbers: a trial is validated after each epoch",
    "check_val_every_n_epoch": "it changes numbers: a trial is validated after each epoch",
    "num_sanity_val_steps": "se-lab train --dry_run rehearses the validation",
    "log_every_n_steps": "it is log_every",
    "enable_checkpointing": "a trial's checkpoints are what it resumes from",
    "accumulate_grad_batches": "it changes numbers: it is train.accumulate",
    "gradient_clip_val": "it changes numbers: it is train.clip_norm",
    "gradient_clip_algorithm": "it changes numbers: train.clip_norm clips the norm",
    "deterministic": "it changes numbers: trials are deterministic",
    "benchmark": "it changes numbers: cuDNN would choose its kernels by their times",
    "inference_mode": "a trial is evaluated in inference mode",
    "use_distributed_sampler": "it changes numbers: SE-Lab deals the images out to ranks",
    "barebones": "it leaves out the checkpoints and metrics that a trial consists of",
    "plugins": "it follows from train.precision and train.devices; modules to import are plugins",
    "sync_batchnorm": "it changes numbers: it is train.sync_bn",
    "reload_dataloaders_every_n_epochs": "it changes numbers: the order of the images is keyed to seed and epoch",
    "default_root_dir": "it is store",
    "enable_autolog_hparams": "a record holds the spec, and a logger gets it",
    "model_registry": "a trial is kept in the store",
}
"""Flags of L.Trainer that an ExecSpec does not take, and why."""


def check_trainer_flag(name: str, value: object) -> None:
    """Raise SpecError for a flag of L.Trainer that no trial accepts, with the reason, or for an invalid value."""
    key = f"trainer.{name}"
    if name in SET_ELSEWHERE:
        raise SpecError(f"{key} is not for a trial: {SET_ELSEWHERE[name]}")
    if name not in TRAINER_FLAGS:
        similar = nearest(name, (*TRAINER_FLAGS, *SET_ELSEWHERE))
        raise SpecError(f"L.Trainer has no flag {name!r}; a trial takes {', '.join(TRAINER_FLAGS)}{similar}")
    if name in LIMITS:
        if type(value) is not int or value < 1:
            raise SpecError(f"{key} is {value!r}; it must be a number of batches, at least 1")
    elif name == "profiler":
        check_choice(key, value, PROFILERS)
    elif not isinstance(value, bool):
        raise SpecError(f"{key} is {value!r}; it must be true or false")
