"""Create Lightning's Trainer for a trial."""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from se_lab.parallel.collectives import Rank, rank_options
from se_lab.spec import ExecSpec, RunSpec
from se_lab.training.checkpoints import TrialCheckpointIO
from se_lab.training.folder import TrialFolder

PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp64": "64-true",
}


PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def create_trainer(spec: RunSpec, execution: ExecSpec, rank: Rank, folder: TrialFolder, **options: Any) -> L.Trainer:
    """Return Lightning's Trainer for a trial; `options` are additional arguments of L.Trainer."""
    devices = rank_options(rank, spec.train)
    plugins = [*devices.pop("plugins"), TrialCheckpointIO(folder)]
    settings = dict(execution.trainer)
    if profiler := settings.get("profiler"):  # to a file, since SE-Lab silences Lightning's log
        settings["profiler"] = PROFILERS[profiler](dirpath=folder.path, filename="profile")
    trainer = L.Trainer(
        default_root_dir=folder.path,
        accelerator=execution.device,
        accumulate_grad_batches=spec.train.accumulate,
        precision=PRECISION[spec.train.precision],
        gradient_clip_val=spec.train.clip_norm or None,
        num_sanity_val_steps=0,
        deterministic="warn",
        log_every_n_steps=1,
        **{
            "max_epochs": spec.train.epochs,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **devices,
            **settings,
            **options,
        },
        plugins=plugins,
    )
    # filling takes a pass over each new tensor, and no code here reads uninitialised memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _disable_signal_handlers(trainer)
    return trainer


def _disable_signal_handlers(trainer: L.Trainer) -> None:
    """Disable Lightning's signal handlers, which se_lab.training.stopping replaces.

    Lightning's handler broadcasts to ranks that do not listen, which blocks all ranks; and with several ranks its loop
    broadcasts stop requests before each step, for which every GPU waits.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def quiet_lightning() -> None:
    """Silence Lightning's start messages, and warnings that do not concern users of SE-Lab."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*use `self.log\\(.*sync_dist=True.*",  # rate and speed are logged for rank 0 only
        ".*`srun` command is available.*",
        ".*`broadcast_buffers` is deprecated.*",  # the oldest supported PyTorch lacks its replacement
    ):
        warnings.filterwarnings("ignore", module="lightning.*", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.pytorch.utilities._pytree")
