"""The loss and the learning rate within an epoch, for epochs that take hours."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

LONG_EPOCH, USUAL = 1000, 100
"""Steps per epoch from which steps are logged by default, and the default number of steps between two values."""


class StepLog(L.Callback):
    """Logs train/loss_step, in nats, the mean of this rank's steps since the last value, and lr_step.

    The losses stay on their device until a value is logged: no other step waits for them.
    """

    def __init__(self, every: int | None) -> None:
        """Log each `every` steps; None: each 100 in epochs of at least 1,000 steps; 0: never."""
        self._asked, self.every, self._rate = every, every or 0, 0.0
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Choose how many steps lie between two values."""
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        default = USUAL if steps >= LONG_EPOCH else 0
        self.every = (default if self._asked is None else self._asked) if trainer.loggers else 0

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Record the step's learning rate before a schedule sets the next one."""
        if self.every and batch_idx % trainer.accumulate_grad_batches == 0:
            self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and log the mean when that is due."""
        if not self.every:
            return
        parts = trainer.accumulate_grad_batches
        self._losses.append(outputs["loss"])  # Lightning has divided it by the micro-batches per step
        if (batch_idx + 1) % parts or trainer.global_step % self.every:
            return
        losses, self._losses = self._losses, []
        values = {"train/loss_step": float(torch.stack(losses).mean()) * parts, "lr_step": self._rate}
        for logger in trainer.loggers:
            logger.log_metrics(values | {"epoch": trainer.current_epoch}, step=trainer.global_step)
