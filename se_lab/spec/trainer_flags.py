"""The flags of L.Trainer that a trial accepts, and the reasons why it rejects the others."""

from __future__ import annotations

from se_lab.spec.checks import SpecError, check_choice, nearest

LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
"""Flags of L.Trainer for rehearsals only, since they affect results."""

PROFILERS = ("simple", "advanced", "pytorch")

TRAINER_FLAGS = ("profiler", "detect_anomaly", "enable_progress_bar", "enable_model_summary", *LIMITS)
"""Flags of L.Trainer that an ExecSpec accepts."""

SET_ELSEWHERE = {
    "accelerator": "set device instead",
    "strategy": "set train.devices and train.nodes instead",
    "devices": "set train.devices instead",
    "num_nodes": "set train.nodes instead",
    "precision": "it affects results: set train.precision instead",
    "logger": "set logger instead",
    "callbacks": "set callbacks instead",
    "fast_dev_run": "it affects results: use se-lab train --dry_run instead",
    "max_epochs": "it affects results: set train.epochs instead",
    "min_epochs": "it affects results: set train.epochs instead",
    "max_steps": "it affects results: set train.epochs instead",
    "min_steps": "it affects results: set train.epochs instead",
    "max_time": "it affects results: stop a trial with SIGTERM, and resume it with the same command",
    "limit_predict_batches": "training makes no predictions",
    "overfit_batches": "it affects results: use limit_train_batches with --dry_run instead",
    "val_check_interval": "it affects results: a trial is validated after each epoch",
    "check_val_every_n_epoch": "it affects results: a trial is validated after each epoch",
    "num_sanity_val_steps": "use se-lab train --dry_run to test the validation",
    "log_every_n_steps": "set log_every instead",
    "enable_checkpointing": "a trial needs checkpoints to resume",
    "accumulate_grad_batches": "it affects results: set train.accumulate instead",
    "gradient_clip_val": "it affects results: set train.clip_norm instead",
    "gradient_clip_algorithm": "it affects results: train.clip_norm clips the norm",
    "deterministic": "it affects results: trials are always deterministic",
    "benchmark": "it affects results: cuDNN would choose kernels by their times",
    "inference_mode": "a trial is always evaluated in inference mode",
    "use_distributed_sampler": "it affects results: SE-Lab distributes the images among ranks",
    "barebones": "it disables checkpoints and metrics, which a trial needs",
    "plugins": "set train.precision and train.devices instead; the plugins field is for modules to import",
    "sync_batchnorm": "it affects results: set train.sync_bn instead",
    "reload_dataloaders_every_n_epochs": "it affects results: the order of the images depends on seed and epoch",
    "default_root_dir": "set store instead",
    "enable_autolog_hparams": "the spec is always recorded and logged",
    "model_registry": "trials are kept in the store",
}
"""Flags of L.Trainer that an ExecSpec rejects, and why."""


def check_trainer_flag(name: str, value: object) -> None:
    """Raise SpecError, with the reason, for a flag of L.Trainer or a value that trials reject."""
    key = f"trainer.{name}"
    if name in SET_ELSEWHERE:
        raise SpecError(f"a trial does not accept {key}: {SET_ELSEWHERE[name]}")
    if name not in TRAINER_FLAGS:
        similar = nearest(name, (*TRAINER_FLAGS, *SET_ELSEWHERE))
        raise SpecError(f"L.Trainer has no flag {name!r}; a trial accepts {', '.join(TRAINER_FLAGS)}{similar}")
    if name in LIMITS:
        if type(value) is not int or value < 1:
            raise SpecError(f"{key} is {value!r}; it must be a number of batches, at least 1")
    elif name == "profiler":
        check_choice(key, value, PROFILERS)
    elif not isinstance(value, bool):
        raise SpecError(f"{key} is {value!r}; it must be true or false")
