"""The loggers of a trial. A tracker never fails a trial: what it cannot log is recorded, and the trial trains on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from se_lab.spec import ExecSpec, label, run_spec
from se_lab.store import RunRecord
from se_lab.training.preflight import wandb_mode

CALLS = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")
"""What Lightning calls of a logger while it trains."""


@contextlib.contextmanager
def wandb_logger(record: RunRecord, folder: Path, execution: ExecSpec) -> Iterator[Any]:
    """Yield Lightning's WandbLogger: offline unless W&B's own variables say otherwise; False if W&B does not start.

    An agent's run, and one that the caller has open, is logged to and left open. If W&B's service is gone, another one
    is started. What fails after that is printed, and noted in the record's host under wandb.
    """
    import wandb

    alone = wandb.run is None  # the caller has no run open
    ours = alone and "WANDB_SWEEP_ID" not in os.environ
    lost: list[str] = []

    def lose(what: str, error: Exception) -> None:
        if not lost:
            lost.append(f"{what}: {type(error).__name__}: {error}")
            record.host["wandb"] = lost[0]
            print(f"trial {record.trial_id} goes on without W&B; {lost[0]}", file=sys.stderr)

    try:
        logger = _open_wandb(record, folder, execution)
    except Exception:  # W&B's client raises whatever its service's death makes of it
        if alone:
            _abandon_service()
        try:
            logger = _open_wandb(record, folder, execution)
        except Exception as error:
            lose("nothing was logged", error)
            yield False
            return
    for name in CALLS:
        setattr(logger, name, _guarded(getattr(logger, name), lost, lose))
    failed = True
    try:
        yield logger
        failed = False
    finally:
        if ours and not lost:
            try:
                logger.experiment.finish(exit_code=int(failed))
            except Exception as error:
                lose("the end of the run was not logged", error)
        elif lost and alone:
            _abandon_service()


def _abandon_service() -> None:
    """Forget W&B's service and its run, which are gone, so that the next run of this process starts another."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
    wandb.run = None
    os.environ.pop("WANDB_SERVICE", None)  # the sweep's


def _guarded(call: Callable[..., Any], lost: list[str], lose: Callable[[str, Exception], None]) -> Callable[..., Any]:
    """Return a call of a logger that does nothing once one has failed."""

    def guarded(*arguments: Any, **options: Any) -> None:
        if not lost:
            try:
                call(*arguments, **options)
            except Exception as error:
                lose("the rest was not logged", error)

    return guarded


def _open_wandb(record: RunRecord, folder: Path, execution: ExecSpec) -> Any:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    agent = "WANDB_SWEEP_ID" in os.environ  # an agent brings the run's id
    flat = {key: value for key, value in record.spec.items() if value is not None}
    logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT", execution.project),
        id=None if agent else record.trial_id,
        name=None if agent else label(run_spec(flat)),
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
    # keys that the agent set are locked to the sweep: what it brought stays as it is
    run.config.update({k: v for k, v in (flat | {"trial_id": record.trial_id}).items() if k not in run.config})
    return logger
