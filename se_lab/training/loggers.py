"""The loggers of a trial. A logger's error never fails the trial: it is recorded, and training continues."""

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
"""Logger methods that Lightning calls in training."""


@contextlib.contextmanager
def open_loggers(
    record: RunRecord, folder: Path, execution: ExecSpec, further: Sequence[Logger] = ()
) -> Iterator[list[Logger]]:
    """Yield the loggers of a trial: the one that `execution` names, if it starts, and further ones.

    Errors are printed, and stored in the record's host under the logger's name.
    """
    with contextlib.ExitStack() as stack:
        loggers = []
        if execution.logger == "wandb":
            loggers = stack.enter_context(_wandb_logger(record, folder, execution))
        elif execution.logger != "none":
            kind = {"tensorboard": TensorBoardLogger, "csv": CSVLogger}[execution.logger]
            # TensorBoard reads several files of one folder as one run; a CSV file would be overwritten
            version = {"version": ""} if kind is TensorBoardLogger else {}
            local_logger = kind(folder, name=execution.logger, **version)
            local_logger.log_hyperparams({key: value for key, value in record.spec.items() if value is not None})
            loggers = [_guard(local_logger, _Losses(record, execution.logger))]
        yield [*loggers, *(_guard(logger, _Losses(record, type(logger).__name__)) for logger in further)]


class _Losses:
    """Errors of a logger: the first is stored in the record and printed."""

    def __init__(self, record: RunRecord, name: str) -> None:
        self.record, self.name = record, name

    def __bool__(self) -> bool:
        return self.name in self.record.host

    def note(self, what: str, error: Exception) -> None:
        if not self:
            self.record.host[self.name] = f"{what}: {type(error).__name__}: {error}"
            message = f"trial {self.record.trial_id} continues without {NAMES.get(self.name, self.name)}"
            print(f"{message}; {self.record.host[self.name]}", file=sys.stderr)


def _guard(logger: Logger, losses: _Losses) -> Logger:
    """Return a logger whose calls do nothing once one has failed."""

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
    """Yield Lightning's WandbLogger: offline unless W&B's own variables say otherwise; none if W&B does not start.

    An agent's run, and one that the caller has opened, is used and left open. If W&B's service has died, a new one is
    started.
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
    """Forget W&B's service and its run, which are gone, so that the next run of this process starts another."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
    wandb.run = None
    os.environ.pop("WANDB_SERVICE", None)  # the sweep's


def _open_wandb(record: RunRecord, folder: Path, execution: ExecSpec) -> Any:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    agent = "WANDB_SWEEP_ID" in os.environ  # an agent brings the run's id
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
    # keys that the agent set are locked to the sweep, and keep their values
    config = fields | {"trial_id": record.trial_id, "provenance": record.provenance}
    run.config.update({key: value for key, value in config.items() if key not in run.config})
    return logger
