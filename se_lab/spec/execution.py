"""Settings of where and how a trial runs: recorded, but not part of its id."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from se_lab.spec.checks import Pieces, SpecError, check_fields
from se_lab.spec.reading import expand_path
from se_lab.spec.trainer_flags import check_trainer_flag

LOGGERS = ("wandb", "tensorboard", "csv", "none")


@dataclass(frozen=True)
class ExecSpec:
    """Where and how a trial runs; recorded, but not part of its id.

    Examples:
        >>> ExecSpec(store="runs", device="cpu", logger="none").threads
        1
    """

    store: str = field(default_factory=lambda: os.environ.get("SE_LAB_STORE") or "runs")
    """The folder of trials; by default the environment variable SE_LAB_STORE, else runs."""
    device: Annotated[str, ("auto", "cpu", "cuda", "mps")] = "auto"
    """The device: cpu, cuda, mps, or auto (a GPU if there is one)."""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """CPU threads of a trial. Rounding errors depend on it, so use one value for all trials of a study."""
    data_root: str = field(default_factory=lambda: os.environ.get("SE_LAB_DATA") or ".")
    """The root of relative data paths; by default the environment variable SE_LAB_DATA, else the current folder."""
    download: bool = False
    """Download a torchvision data set into data_root if it is missing."""
    data_workers: Annotated[int, Meta(ge=0, le=1024)] = 2
    """Loader processes for data sets read from files."""
    logger: Annotated[str, LOGGERS] = "wandb"
    """Where metrics are logged: wandb (offline, unless WANDB_MODE or WANDB_SWEEP_ID says otherwise), tensorboard or csv
    (in the trial's folder), or none."""
    loggers: Pieces = ()
    """Additional loggers, from Lightning or your own, in the format of callbacks."""
    callbacks: Pieces = ()
    """Callbacks from Lightning, a plugin or a module: names such as LearningRateMonitor or my_module.Watch, or, with
    arguments, [{class_path: my_module.Watch, init_args: {every: 5}}]."""
    log_every: Annotated[int | None, Meta(ge=0)] = None
    """Steps between logged values of the loss and the learning rate within an epoch; 0 logs none. The default is 100
    for epochs of at least 1,000 steps, and 0 for shorter ones."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Flags of L.Trainer that do not affect results: profiler, detect_anomaly, enable_progress_bar,
    enable_model_summary, and, only with --dry_run, limit_train_batches, limit_val_batches, limit_test_batches."""
    project: str = "se-lab"
    """The W&B project."""
    entity: str = ""
    """The W&B user or team; by default your own."""
    group: str = ""
    """The group of the W&B runs; by default the name of the sweep."""
    tags: tuple[str, ...] = ()
    """Tags of the W&B runs."""
    notes: str = ""
    """Notes on the W&B runs."""
    job_type: str = ""
    """The job type of the W&B runs."""
    plugins: str = ""
    """Modules to import at the start, separated by commas, such as one that adds a squeeze operator."""
    checkpoint_minutes: Annotated[float, Meta(gt=0)] = 10.0
    """Minutes between checkpoints within an epoch; a checkpoint is always saved after each epoch."""
    recipe: str = ""
    """The recipe that the trial starts from; its record lists the differences."""

    def __post_init__(self) -> None:
        """Raise SpecError for invalid values."""
        check_fields(self)
        for name, value in self.trainer.items():
            check_trainer_flag(name, value)
        if not self.store:
            raise SpecError("store is ''; it must be a folder, such as runs")
        for name in ("store", "data_root"):
            object.__setattr__(self, name, str(expand_path(getattr(self, name))))
