"""Log the loss and the learning rate within long epochs."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

LONG_EPOCH, DEFAULT_EVERY = 1000, 100
"""The minimum number of steps in an epoch for logging by default, and the default interval in steps."""


class StepLog(L.Callback):
    """Logs the learning rate, lr_step, and the mean loss of recent steps in nats, train/loss_step.

    Losses stay on their device until a value is logged, so that other steps do not wait for them.
    """

    def __init__(self, every: int | None) -> None:
        """Log each `every` steps; 0 logs none; None logs each 100 steps in long epochs."""
        self._setting, self.every, self._rate = every, every or 0, 0.0
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Set the interval in steps."""
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        default = DEFAULT_EVERY if steps >= LONG_EPOCH else 0
        self.every = (default if self._setting is None else self._setting) if trainer.loggers else 0

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Record the learning rate of the step before a schedule changes it."""
        if self.every and batch_idx % trainer.accumulate_grad_batches == 0:
            self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the loss, and log the mean loss after each interval."""
        if not self.every:
            return
        parts = trainer.accumulate_grad_batches
        self._losses.append(outputs["loss"])  # Lightning has divided it by the number of micro-batches
        if (batch_idx + 1) % parts or trainer.global_step % self.every:
            return
        losses, self._losses = self._losses, []
        values = {"train/loss_step": float(torch.stack(losses).mean()) * parts, "lr_step": self._rate}
        for logger in trainer.loggers:
            logger.log_metrics(values | {"epoch": trainer.current_epoch}, step=trainer.global_step)
