"""The loggers of a trial."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from se_lab.spec import ExecSpec, label, run_spec
from se_lab.store import RunRecord


@contextlib.contextmanager
def wandb_logger(record: RunRecord, folder: Path, execution: ExecSpec) -> Iterator[Any]:
    """Yield Lightning's WandbLogger: offline unless W&B's own variables say otherwise.

    An agent's run, and one that the caller has open, is logged to and left open.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    agent = "WANDB_SWEEP_ID" in os.environ  # an agent brings the run's id, and it is online unless told otherwise
    mode = os.environ.get("WANDB_MODE", "online" if agent else "offline")
    ours = wandb.run is None and not agent
    flat = {key: value for key, value in record.spec.items() if value is not None}
    logger = WandbLogger(
        project=os.environ.get("WANDB_PROJECT", execution.project),
        id=None if agent else record.trial_id,
        name=None if agent else label(run_spec(flat)),
        save_dir=folder,
        log_model=False,
        settings=wandb.Settings(mode=mode, silent=True, console="off"),  # type: ignore[arg-type]
    )
    run = logger.experiment
    # keys that the agent set are locked to the sweep: what it brought stays as it is
    run.config.update({k: v for k, v in (flat | {"trial_id": record.trial_id}).items() if k not in run.config})
    try:
        yield logger
    except BaseException:
        if ours:
            run.finish(exit_code=1)
        raise
    if ours:
        run.finish()
