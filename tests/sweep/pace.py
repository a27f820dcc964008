"""A callback that gives a trial the length that a test needs, on a fast machine too."""

import os
import time

import lightning as L


class FirstRunSlow(L.Callback):
    """Wait a second after each epoch of a trial's first run, in Slurm jobs and under W&B's agents.

    Slurm looks at its queue every two seconds, and an agent takes seconds to start; without the wait, a trial of the
    tests could end first.
    """

    def __init__(self) -> None:
        self.seconds = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        has_scheduler = "SLURM_JOB_ID" in os.environ or "WANDB_SWEEP_ID" in os.environ
        self.seconds = int(has_scheduler and trainer.current_epoch == 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(self.seconds)
