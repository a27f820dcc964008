"""Image classification as a LightningModule: loss, errors in %, optimizer and schedule."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import numpy as np
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from se_lab.data import Batch
from se_lab.model import create_model
from se_lab.spec import OptimSpec, RunSpec, check_choice, seed_of

TIMM_OPTIMIZERS = {"sgd": "momentum", "nesterov": "sgd"}
"""timm calls SGD with Nesterov momentum sgd; here sgd is the paper's, with plain momentum."""


def check_optimizer(optim: OptimSpec) -> None:
    """Raise SpecError for an optimizer that timm does not have, naming the nearest."""
    name = TIMM_OPTIMIZERS.get(optim.name, optim.name).removeprefix("lookahead_")
    check_choice("optim.name", name, ("nesterov", *map(str, list_optimizers())))


class ClassificationTask(L.LightningModule):
    """One trial's net and how it learns.

    Everything a resumed run needs is in its checkpoint: the plateau schedule, and the sums of an epoch that was
    interrupted. Schedules are set from the epoch, not counted, so that a restart cannot miss or repeat a step.
    """

    def __init__(self, spec: RunSpec, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.spec = spec
        self.model = create_model(spec.model, num_classes, in_chans, seed=spec.seed)
        self.layout = torch.channels_last if spec.train.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        self.train_sums = MetricCollection(_metrics(num_classes, top5=False))
        self.val_sums = MetricCollection(_metrics(num_classes))
        self.test_sums = MetricCollection(_metrics(num_classes))
        self.history: list[dict[str, float]] = []
        """One row an epoch: epoch, lr, train/…, val/…, images_per_s."""
        self.predictions: dict[str, list[np.ndarray[Any, Any]]] = {"image": [], "label": [], "top5": []}
        self._epoch_of_sums = -1
        self._epoch_started = 0.0
        self._images_seen = 0
        self._plateau_state: dict[str, Any] | None = None
        self._bad_batch = torch.tensor(-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, C, H, W) -> (N, classes)."""
        logits: Tensor = self.model(images.contiguous(memory_format=self.layout))
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make timm's optimizer; the schedule stays with this module."""
        optim = self.spec.optim
        name = TIMM_OPTIMIZERS.get(optim.name, optim.name)
        optimizer = create_optimizer_v2(self.model, name, optim.lr, optim.weight_decay, optim.momentum)
        self.schedule = _schedule(optimizer, optim, self.spec.train.epochs)
        if self._plateau_state is not None and isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.load_state_dict(self._plateau_state)
        return optimizer

    def on_train_start(self) -> None:
        """Count the steps of the whole run, for schedules that go step by step."""
        batches = int(self.trainer.num_training_batches)
        self._steps = batches * self.spec.train.epochs
        self._warmup_steps = batches * self.spec.optim.warmup_epochs

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key the dropout stream to (seed, step), and begin an epoch's schedule and sums with its first batch."""
        torch.manual_seed(seed_of(self.spec.seed, "dropout", self.global_step))
        if self._epoch_of_sums != self.current_epoch:
            self._epoch_of_sums = self.current_epoch
            self.train_sums.reset()
            self._epoch_started, self._images_seen = time.perf_counter(), 0
            if isinstance(self.schedule, Scheduler):
                self.schedule.step(self.current_epoch)
        if self.spec.optim.schedule == "onecycle":
            rate = self.spec.optim.lr * onecycle(self.global_step, self._steps, self._warmup_steps)
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss, in nats."""
        images, labels, _ = batch
        logits = self(images)
        smoothing = self.spec.train.label_smoothing
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        loss = losses.mean()
        _add(self.train_sums, losses.detach(), logits.detach(), labels)
        self._images_seen += len(images)
        self._watch(loss.detach(), batch_idx)
        return loss

    def _watch(self, loss: Tensor, batch_idx: int) -> None:
        """Raise FloatingPointError soon after a loss that is no number; asking a GPU each step would make it wait."""
        self._bad_batch = self._bad_batch.to(loss.device)
        first = ~torch.isfinite(loss) & (self._bad_batch < 0)
        self._bad_batch = torch.where(first, batch_idx, self._bad_batch)
        if (loss.is_cpu or batch_idx % 50 == 49 or self.trainer.is_last_batch) and (bad := int(self._bad_batch)) >= 0:
            lr = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            raise FloatingPointError(
                f"the training loss is nan or infinite in batch {bad} of epoch {self.current_epoch}, lr {lr:g}"
            )

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row, and let the plateau schedule look at the validation loss."""
        row = {
            "epoch": self.current_epoch,
            "lr": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
            **_read(self.train_sums, "train"),
            **{key: float(value) for key, value in self.trainer.callback_metrics.items() if key.startswith("val/")},
        }
        speed = self._images_seen / max(time.perf_counter() - self._epoch_started, 1e-9)
        self.history = [past for past in self.history if past["epoch"] < row["epoch"]]
        self.history.append({**row, "images_per_s": round(speed, 1)})
        self.log_dict({key: value for key, value in self.history[-1].items() if not key.startswith(("val/", "epoch"))})
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(row["val/loss"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation sums."""
        self._evaluate(batch, self.val_sums)

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss and errors."""
        self.log_dict(_read(self.val_sums, "val"))
        self.val_sums.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test sums, and keep what was predicted for each image."""
        logits = self._evaluate(batch, self.test_sums)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        for name, values in zip(self.predictions, (batch[2], batch[1], best), strict=True):
            self.predictions[name].append(values.cpu().numpy())

    def on_test_epoch_end(self) -> None:
        """Log the test loss and errors."""
        self.log_dict(_read(self.test_sums, "test"))
        self.test_sums.reset()

    def _evaluate(self, batch: Batch, sums: MetricCollection) -> Tensor:
        images, labels, _ = batch
        logits: Tensor = self(images)
        _add(sums, F.cross_entropy(logits, labels, reduction="none"), logits, labels)
        return logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs beside weights and optimizer."""
        plateau = self.schedule.state_dict() if isinstance(self.schedule, ReduceLROnPlateau) else None
        checkpoint["se_lab"] = {
            "history": self.history,
            "plateau": plateau,
            "sums": {name: dict(metric.metric_state) for name, metric in self.train_sums.items()},
            "epoch_of_sums": self._epoch_of_sums,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        state = checkpoint["se_lab"]
        self.history, self._plateau_state = state["history"], state["plateau"]
        self._epoch_of_sums = state["epoch_of_sums"]
        self._epoch_started = time.perf_counter()
        for name, metric in self.train_sums.items():
            for key, value in state["sums"][name].items():
                setattr(metric, key, value)
            metric._update_count = 1  # torchmetrics warns of a metric that was read before any update


def onecycle(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at a step: up linearly over `warmup` steps, down linearly to 0 at the end."""
    return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))


def _schedule(optimizer: torch.optim.Optimizer, optim: OptimSpec, epochs: int) -> Scheduler | ReduceLROnPlateau | None:
    """Return timm's schedule; for plateau PyTorch's, since timm's is deprecated and keeps no state to resume from."""
    if optim.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, mode="min", factor=optim.decay_rate, patience=optim.patience)
    if optim.schedule == "onecycle":
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=optim.schedule,
        num_epochs=epochs,
        decay_epochs=optim.decay_epochs,
        decay_milestones=[epoch + 1 for epoch in optim.milestones],  # timm drops one epoch before the one it is told
        decay_rate=optim.decay_rate,
        warmup_epochs=optim.warmup_epochs,
        warmup_lr=optim.lr / max(optim.warmup_epochs, 1),
    )
    assert isinstance(schedule, Scheduler)
    return schedule


def _metrics(num_classes: int, top5: bool = True) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "loss": MeanMetric(nan_strategy="disable"),  # the other strategies hide a NaN, and this one ignores weights
        "top1_error": MulticlassAccuracy(num_classes, top_k=1, average="micro", validate_args=False),
    }
    if top5 and num_classes > 5:  # with five classes it is 0 whatever the net says
        metrics["top5_error"] = MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False)
    return metrics


def _add(sums: MetricCollection, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
    for name, metric in sums.items():
        if name == "loss":
            metric.update(losses)
        else:
            metric.update(logits, labels)


def _read(sums: MetricCollection, split: str) -> dict[str, float]:
    """Return loss in nats and errors in %."""
    values = {name: float(metric.compute()) for name, metric in sums.items()}
    return {f"{split}/{name}": 100 * (1 - v) if name.endswith("_error") else v for name, v in values.items()}
