"""A callback that gives a trial the length that a test needs, on a fast machine too."""

import os
import time

import lightning as L


class FirstRunSlow(L.Callback):
    """Wait a second after each epoch in a Slurm job that begins a trial; a job that resumes it does not wait.

    Slurm looks at its queue every two seconds: a trial of the tests could end before it is preempted.
    """

    def __init__(self) -> None:
        self.seconds = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = int("SLURM_JOB_ID" in os.environ and trainer.current_epoch == 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(self.seconds)
