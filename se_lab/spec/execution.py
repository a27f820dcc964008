"""Where and how a trial runs: settings that are recorded beside its spec, and do not affect its id."""

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
    """Where and how a trial runs: recorded, not part of the trial id, since it changes no number.

    Examples:
        >>> ExecSpec(store="runs", device="cpu", logger="none").threads
        1
    """

    store: str = field(default_factory=lambda: os.environ.get("SE_LAB_STORE") or "runs")
    """The folder of trials; by default the variable SE_LAB_STORE, else runs."""
    device: Annotated[str, ("auto", "cpu", "cuda", "mps")] = "auto"
    """auto, cpu, cuda, or mps."""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """CPU threads of a trial. Sums of floats depend on it, so a store is best filled with one value throughout."""
    data_root: str = field(default_factory=lambda: os.environ.get("SE_LAB_DATA") or ".")
    """The folder that relative data paths start from; by default the variable SE_LAB_DATA, else the current one."""
    download: bool = False
    """Fetch one of torchvision's data sets into data_root where it is missing."""
    data_workers: Annotated[int, Meta(ge=0, le=1024)] = 2
    """Loader processes for data sets read from files."""
    logger: Annotated[str, LOGGERS] = "wandb"
    """Where metrics are logged: wandb (offline, unless WANDB_MODE or WANDB_SWEEP_ID says otherwise), tensorboard or csv
    (in the trial's folder), or none."""
    loggers: Pieces = ()
    """Further loggers of Lightning's or of your own, written as callbacks are."""
    callbacks: Pieces = ()
    """Callbacks of Lightning's, of a plugin or of a module: names such as LearningRateMonitor or my_module.Watch, or,
    with arguments, [{class_path: my_module.Watch, init_args: {every: 5}}]."""
    log_every: Annotated[int | None, Meta(ge=0)] = None
    """Steps between logged values of the loss and the learning rate within an epoch; 0 logs none; by default 100 in
    epochs of at least 1,000 steps, and none in shorter ones."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Flags of L.Trainer that change no number: profiler, detect_anomaly, enable_progress_bar, enable_model_summary,
    and, with --dry_run only, limit_train_batches, limit_val_batches, limit_test_batches."""
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
    """Modules to import first, separated by commas, such as one that adds a squeeze operator."""
    checkpoint_minutes: Annotated[float, Meta(gt=0)] = 10.0
    """Minutes between checkpoints within an epoch; each epoch ends with one anyway."""
    recipe: str = ""
    """The recipe of SE-Lab's that was read first; the record says what differs from it."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        check_fields(self)
        for name, value in self.trainer.items():
            check_trainer_flag(name, value)
        if not self.store:
            raise SpecError("store is ''; it must be a folder, such as runs")
        for name in ("store", "data_root"):
            object.__setattr__(self, name, str(expand_path(getattr(self, name))))
