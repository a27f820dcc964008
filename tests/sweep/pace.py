"""A callback that gives a trial the length that a test needs, on a fast machine too."""

import os
import time

import lightning as L


class FirstRunSlow(L.Callback):
    """Wait a second after each epoch in a Slurm job or an agent that begins a trial; one that resumes it does not wait.

    Slurm looks at its queue every two seconds, and an agent takes some to start: a trial of the tests could end before.
    """

    def __init__(self) -> None:
        self.seconds = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        elsewhere = "SLURM_JOB_ID" in os.environ or "WANDB_SWEEP_ID" in os.environ
        self.seconds = int(elsewhere and trainer.current_epoch == 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(self.seconds)
