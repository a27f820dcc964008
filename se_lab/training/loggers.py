"""The loggers of a trial; an error of a logger is recorded, and training continues."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from se_lab.spec import ExecSpec, run_name, run_spec
from se_lab.store import RunRecord
from se_lab.training.preflight import wandb_mode

NAMES = {"wandb": "W&B", "tensorboard": "TensorBoard"}
CALLS = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")
"""Logger methods that Lightning calls during training."""


@contextlib.contextmanager
def open_loggers(
    record: RunRecord, folder: Path, execution: ExecSpec, further: Sequence[Logger] = ()
) -> Iterator[list[Logger]]:
    """Yield a trial's loggers: that of `execution.logger`, if it starts, and `further` ones.

    Errors are printed, and stored in the record's `host` under the name of the logger.
    """
    with contextlib.ExitStack() as stack:
        loggers = []
        if execution.logger == "wandb":
            loggers = stack.enter_context(_wandb_logger(record, folder, execution))
        elif execution.logger != "none":
            kind = {"tensorboard": TensorBoardLogger, "csv": CSVLogger}[execution.logger]
            # TensorBoard reads all files of a folder as one run; CSV files need a new folder for each run
            version = {"version": ""} if kind is TensorBoardLogger else {}
            local_logger = kind(folder, name=execution.logger, **version)
            local_logger.log_hyperparams({key: value for key, value in record.spec.items() if value is not None})
            loggers = [_guard(local_logger, _Losses(record, execution.logger))]
        yield [*loggers, *(_guard(logger, _Losses(record, type(logger).__name__)) for logger in further)]


class _Losses:
    """The state of a logger: its first error is printed and stored in the record."""

    def __init__(self, record: RunRecord, name: str) -> None:
        self.record, self.name = record, name

    def __bool__(self) -> bool:
        return self.name in self.record.host

    def note(self, consequence: str, error: Exception) -> None:
        if not self:
            self.record.host[self.name] = f"{consequence}: {type(error).__name__}: {error}"
            message = f"trial {self.record.trial_id} continues without {NAMES.get(self.name, self.name)}"
            print(f"{message}; {self.record.host[self.name]}", file=sys.stderr)


def _guard(logger: Logger, losses: _Losses) -> Logger:
    """Return a logger that does nothing after its first error."""

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_note(*arguments: Any, **options: Any) -> None:
            if not losses:
                try:
                    call(*arguments, **options)
                except Exception as error:
                    losses.note("the rest was not logged", error)

        return call_or_note

    for name in CALLS:
        setattr(logger, name, guarded(getattr(logger, name)))
    return logger


@contextlib.contextmanager
def _wandb_logger(record: RunRecord, folder: Path, execution: ExecSpec) -> Iterator[list[Logger]]:
    """Yield a list with Lightning's WandbLogger, or an empty list if W&B does not start.

    It is offline unless W&B's variables say otherwise. A run of an agent or of the caller is used and left open. If
    W&B's service has died, a new one is started.
    """
    import wandb

    starts_run = wandb.run is None  # the caller has no run open
    owns_run = starts_run and "WANDB_SWEEP_ID" not in os.environ
    losses = _Losses(record, "wandb")
    try:
        logger = _open_wandb(record, folder, execution)
    except Exception:  # W&B's client can raise anything when its service dies
        if starts_run:
            _abandon_service()
        try:
            logger = _open_wandb(record, folder, execution)
        except Exception as error:
            losses.note("nothing was logged", error)
            yield []
            return
    failed = True
    try:
        yield [_guard(logger, losses)]
        failed = False
    finally:
        if owns_run and not losses:
            try:
                logger.experiment.finish(exit_code=int(failed))
            except Exception as error:
                losses.note("the end of the run was not logged", error)
        elif losses and starts_run:
            _abandon_service()


def _abandon_service() -> None:
    """Disconnect from W&B's service, which has died, so that the next run starts another."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
    wandb.run = None
    os.environ.pop("WANDB_SERVICE", None)  # set by the sweep


def _open_wandb(record: RunRecord, folder: Path, execution: ExecSpec) -> Any:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    agent = "WANDB_SWEEP_ID" in os.environ  # an agent sets the run's id
    fields = {key: value for key, value in record.spec.items() if value is not None}
    logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT", execution.project),
        id=None if agent else record.trial_id,
        name=None if agent else run_name(run_spec(fields)),
        entity=execution.entity or None,
        group=execution.group or None,
        tags=list(execution.tags) or None,
        notes=execution.notes or None,
        job_type=execution.job_type or None,
        save_dir=folder,
        log_model=False,
        settings=wandb.Settings(mode=wandb_mode(), silent=True, console="off"),  # type: ignore[arg-type]
    )
    run = logger.experiment
    # keys set by the agent are locked, and keep their values
    config = fields | {"trial_id": record.trial_id, "provenance": record.provenance}
    run.config.update({key: value for key, value in config.items() if key not in run.config})
    return logger
