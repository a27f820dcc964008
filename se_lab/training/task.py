"""Image classification as a LightningModule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from se_lab.parallel.collectives import gather_objects, share_buffers
from se_lab.parallel.sync_bn import sync_on_cpu
from se_lab.spec import RunSpec, run_spec, seed_of
from se_lab.training.metrics import Scores
from se_lab.training.optimize import OneCycle, create_optimizer, create_schedule, step_plateau
from se_lab.units.model import create_model

Batch = tuple[Tensor, ...] | list[Tensor]
"""Images (N, C, H, W), labels (N,) or class probabilities (N, classes), and optionally the images' numbers (N,)."""


class ClassificationTask(L.LightningModule):
    """The net of a trial and its training, as a LightningModule for `run` or any Trainer.

    It logs, at the end of each epoch, loss in nats and top1_error in % as train/…, val/… and test/…; for more than five
    classes, also val/top5_error and test/top5_error.

    Examples:
        >>> spec = RunSpec(ModelSpec("cifar_resnet20", SESpec(reduction=4)), DataSpec("digits"))
        >>> task = ClassificationTask(spec, num_classes=10, in_chans=1)
        >>> task(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> data = create_data(spec.data, spec.seed)  # L.Trainer().fit(task, datamodule=data) trains it
    """

    def __init__(self, spec: RunSpec, num_classes: int = 1000, in_chans: int = 3) -> None:
        """Build the net.

        Args:
            spec: The trial, or its flat form, which `load_from_checkpoint` passes.
            num_classes: Outputs of the classifier.
            in_chans: Channels of the images.

        Raises:
            SpecError: for a net that cannot be built.
        """
        super().__init__()
        if isinstance(spec, Mapping):
            spec = run_spec({key: value for key, value in spec.items() if value is not None})
        self.spec = spec
        self.save_hyperparameters({"spec": spec.flat(), "num_classes": num_classes, "in_chans": in_chans}, logger=False)
        sync_bn = spec.train.sync_bn and spec.train.ranks > 1
        self.model = create_model(spec.model, num_classes, in_chans, seed=spec.seed, sync_bn=sync_bn)
        self.layout = torch.channels_last if spec.train.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        if spec.train.precision == "fp64":  # Lightning's plugin would convert the net after loading a checkpoint
            self.model.double()
        self.ema = ModelEmaV3(self.model, decay=spec.train.ema).requires_grad_(False) if spec.train.ema else None
        self.train()  # including the average, since Lightning warns about modules in eval mode
        self.train_scores = Scores(num_classes, top5=False)
        self.val_scores, self.test_scores = Scores(num_classes), Scores(num_classes)

    @property
    def tested(self) -> nn.Module:
        """The net to validate and test: the moving average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The learning rate, which Lightning's Tuner can set."""
        return self.spec.optim.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.spec = dataclasses.replace(self.spec, optim=dataclasses.replace(self.spec.optim, lr=value))
        self.hparams["spec"] = self.spec.flat()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images, (N, C, H, W) -> (N, classes)."""
        return self._logits(self.model, images)

    def _logits(self, net: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = net(images.contiguous(memory_format=self.layout))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch in nats."""
        images, labels, *_ = batch
        logits = self(images)
        losses = F.cross_entropy(logits, labels, label_smoothing=self.spec.train.label_smoothing, reduction="none")
        targets = labels.argmax(1) if labels.ndim == 2 else labels  # mixup and cutmix give class probabilities
        self.train_scores.update(losses.detach(), logits.detach().argmax(1, keepdim=True), targets)
        return losses.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the test metrics; return its predictions.

        These are `top5`, the up to 5 most likely classes, best first, (N, 5), and `probability`, their probabilities.
        """
        logits, guesses = self._evaluate(batch, self.test_scores)
        return {"top5": guesses, "probability": logits.float().softmax(1).gather(1, guesses)}

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Return the probabilities of the classes, (N, classes)."""
        return self._logits(self.tested, batch if isinstance(batch, Tensor) else batch[0]).softmax(1)

    def _evaluate(self, batch: Batch, scores: Scores) -> tuple[Tensor, Tensor]:
        """Add a batch to metrics; return logits (N, classes) and the 5 most likely classes (N, 5)."""
        images, labels, *_ = batch
        logits = self._logits(self.tested, images)
        guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices
        scores.update(F.cross_entropy(logits, labels, reduction="none"), guesses, labels)
        return logits, guesses

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and the schedule of the spec."""
        optim = self.spec.optim
        optimizer = create_optimizer(self.model, optim)
        schedule = create_schedule(optimizer, optim, self.spec.train.epochs)
        interval = "step" if isinstance(schedule, OneCycle) else "epoch"
        return {  # type: ignore[return-value]
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": interval, "monitor": "val/loss"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next epoch or step."""
        if isinstance(scheduler, Scheduler):
            scheduler.step(self.current_epoch + 1)
        elif isinstance(scheduler, ReduceLROnPlateau):
            step_plateau(scheduler, self.spec.optim, self.current_epoch, float(metric))
        else:
            super().lr_scheduler_step(scheduler, metric)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take an optimizer step, and update the moving average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)

    def setup(self, stage: str) -> None:
        """Adapt synchronised batch norms to CPUs, and metrics to devices without doubles."""
        device = self.trainer.strategy.root_device.type
        if device == "cpu":
            sync_on_cpu(self.model)
        if device == "mps":
            for scores in (self.train_scores, self.val_scores, self.test_scores):
                scores.loss.single()

    def on_fit_start(self) -> None:
        """Compile the net if the spec says so, after all other changes to the net.

        It is compiled in place, to keep the state-dict keys, and for each shape separately: by PyTorch's default the
        results depend on the first shape, so that a trial resumed in its validation would end with other weights.
        """
        if self.spec.train.compile:
            self.model.compile(dynamic=False)
            self.tested.compile(dynamic=False)

    def on_train_start(self) -> None:
        """Set the number of steps of schedules that need it."""
        batches, parts = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        for config in self.trainer.lr_scheduler_configs if math.isfinite(batches) else ():
            if isinstance(config.scheduler, OneCycle):
                steps = int(batches) // parts
                config.scheduler.start(steps * self.spec.train.epochs, steps * self.spec.optim.warmup_epochs)
            elif isinstance(config.scheduler, ReduceLROnPlateau):
                # with the interval epoch, Lightning would step the schedule after saving the epoch's checkpoint
                config.interval, config.frequency = "step", int(batches)

    def on_train_epoch_start(self) -> None:
        """Reset the training metrics; a resumed epoch keeps them."""
        self.train_scores.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the seed and the step."""
        part = (batch_idx % self.trainer.accumulate_grad_batches, self.global_rank)
        key = () if part == (0, 0) else part
        torch.manual_seed(seed_of(self.spec.seed, "dropout", self.global_step, *key))

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch."""
        self.log_dict(self.train_scores.metrics("train"))

    def on_validation_epoch_start(self) -> None:
        """Reset the validation metrics, and share the buffers of rank 0."""
        self._begin(self.val_scores)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self.log_dict(self.val_scores.metrics("val"))

    def on_test_epoch_start(self) -> None:
        """Reset the test metrics, and share the buffers of rank 0."""
        self._begin(self.test_scores)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self.log_dict(self.test_scores.metrics("test"))

    def _begin(self, scores: Scores) -> None:
        scores.reset()
        share_buffers(self.tested)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of each rank's training metrics."""
        checkpoint["train_sums"] = gather_objects(self.train_scores.sums())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of this rank's training metrics."""
        if self.global_rank < len(sums := checkpoint.get("train_sums", [])):
            self.train_scores.load_sums(sums[self.global_rank])
