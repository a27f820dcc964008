"""Image classification as a LightningModule: the net, its training step, and its evaluation."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from se_lab.data import Batch
from se_lab.parallel.collectives import gathered, share_buffers
from se_lab.parallel.sync_bn import sync_on_cpu
from se_lab.spec import RunSpec, seed_of
from se_lab.training.metrics import Sums
from se_lab.training.optimize import create_optimizer, create_schedule, onecycle, warmed
from se_lab.units.model import create_model

Row = dict[str, float]
"""What is known of an epoch: epoch, lr, train/…, val/…, images_per_s."""


class ClassificationTask(L.LightningModule):
    """One trial's net and how it learns.

    Everything a resumed run needs is in its checkpoint: the plateau schedule, the sums of an epoch that was
    interrupted, and the row of one that was trained and not yet validated. Schedules are set from the epoch, not
    counted, so that a restart cannot miss or repeat a step. Nothing is logged on the way, and no GPU is waited for.
    """

    def __init__(self, spec: RunSpec, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.spec, self.num_classes = spec, num_classes
        sync_bn = spec.train.sync_bn and spec.train.ranks > 1
        self.model = create_model(spec.model, num_classes, in_chans, seed=spec.seed, sync_bn=sync_bn)
        self.layout = torch.channels_last if spec.train.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        if spec.train.precision == "fp64":  # before a checkpoint is loaded, which Lightning's plugin does not wait for
            self.model.double()
        self.ema = ModelEmaV3(self.model, decay=spec.train.ema).requires_grad_(False) if spec.train.ema else None
        self.history: list[Row] = []
        """A row an epoch."""
        self.open_row: Row | None = None
        """The row of an epoch whose training is over and whose validation is not."""
        self.predictions: dict[str, np.ndarray[Any, Any]] = {}
        """Of the last evaluation that kept them: image, label, top5."""
        self._sums = Sums(num_classes, top5=False)
        self._all_sums: list[Tensor] = []
        self._epoch_of_sums = -1
        self._epoch_started = 0.0
        self._images_seen = 0
        self._plateau_state: dict[str, Any] | None = None
        self._bad_batch, self._bad_rate = torch.tensor(-1), torch.tensor(0.0)
        self._loaders: dict[str, Iterable[Batch]] = {}

    @property
    def tested(self) -> nn.Module:
        """The net that is validated and tested: the moving average's, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, C, H, W) -> (N, classes)."""
        return self._logits(self.model, images)

    def _logits(self, net: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = net(images.contiguous(memory_format=self.layout))
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make timm's optimizer; the schedule stays with this module."""
        optimizer = create_optimizer(self.model, self.spec.optim)
        self.schedule = create_schedule(optimizer, self.spec.optim, self.spec.train.epochs)
        if self._plateau_state is not None and isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.load_state_dict(self._plateau_state)
        return optimizer

    def setup(self, stage: str) -> None:
        """Make batch norms that ranks share ready for a CPU."""
        if self.trainer.strategy.root_device.type == "cpu":
            sync_on_cpu(self.model)

    def on_fit_start(self) -> None:
        """Compile the net, where that is asked for: last of all that changes it.

        In place, so that the keys of its state dict stay; and each shape for itself: left to PyTorch, what is compiled
        would depend on the shape that came first, and a trial resumed in its validation would end with other weights.
        """
        if self.spec.train.compile:
            self.model.compile(dynamic=False)
            self.tested.compile(dynamic=False)

    def on_train_start(self) -> None:
        """Count the steps of the whole run, for schedules that go step by step."""
        steps = int(self.trainer.num_training_batches) // self.spec.train.accumulate
        self._steps = steps * self.spec.train.epochs
        self._warmup_steps = steps * self.spec.optim.warmup_epochs

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key the dropout stream to (seed, step), and begin an epoch's schedule and sums with its first batch."""
        part = (batch_idx % self.spec.train.accumulate, self.global_rank)
        key = () if part == (0, 0) else part
        torch.manual_seed(seed_of(self.spec.seed, "dropout", self.global_step, *key))
        if self._epoch_of_sums != self.current_epoch:
            self._epoch_of_sums = self.current_epoch
            self._sums.reset(self.device)
            self._epoch_started, self._images_seen = time.perf_counter(), 0
            if isinstance(self.schedule, Scheduler):
                self.schedule.step(self.current_epoch)
            elif self.schedule is not None and self.current_epoch <= (warmup := self.spec.optim.warmup_epochs):
                self._set_rate(self.spec.optim.lr * warmed(self.current_epoch, warmup))
        if self.spec.optim.schedule == "onecycle":
            self._set_rate(self.spec.optim.lr * onecycle(self.global_step, self._steps, self._warmup_steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss, in nats."""
        images, labels, _ = batch
        logits = self(images)
        smoothing = self.spec.train.label_smoothing
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        loss = losses.mean()
        dominant = labels.argmax(1) if labels.ndim == 2 else labels  # mixup and cutmix give shares of classes
        self._sums.add(losses.detach(), logits.detach().argmax(1, keepdim=True), dominant)
        self._images_seen += len(images)
        self._watch(loss.detach(), batch_idx)
        return loss

    def _watch(self, loss: Tensor, batch_idx: int) -> None:
        """Note the first loss that is no number, and raise FloatingPointError soon after it.

        Asking a GPU or the other ranks each step would make this one wait.
        """
        self._bad_batch, self._bad_rate = self._bad_batch.to(loss.device), self._bad_rate.to(loss.device)
        first = ~torch.isfinite(loss) & (self._bad_batch < 0)
        self._bad_batch = torch.where(first, batch_idx // self.spec.train.accumulate, self._bad_batch)
        self._bad_rate = torch.where(first, self._rate, self._bad_rate)
        if (loss.is_cpu and self.spec.train.ranks == 1) or batch_idx % 50 == 49:
            self._check_losses()

    def _check_losses(self) -> None:
        if found := [bad for bad in gathered((int(self._bad_batch), float(self._bad_rate))) if bad[0] >= 0]:
            batch, rate = min(found)
            raise FloatingPointError(
                f"the training loss is nan or infinite in batch {batch} of epoch {self.current_epoch}, lr {rate:g}"
            )

    def check_finite(self) -> None:
        """Raise FloatingPointError if a loss of any rank or a weight is no number; for all ranks, between two steps.

        A checkpoint is preceded by this: what is saved can be gone on from.
        """
        self._check_losses()
        if not torch.stack([torch.isfinite(weight).all() for weight in self.model.parameters()]).all():
            batch = self.trainer.fit_loop.batch_idx // self.spec.train.accumulate
            raise FloatingPointError(
                f"weights are nan or infinite after batch {batch} of epoch {self.current_epoch}, lr {self._rate:g}"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and let the moving average follow."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)

    def close_training(self) -> None:
        """Open the row of an epoch whose batches are done."""
        seconds = max(time.perf_counter() - self._epoch_started, 1e-9)
        self.open_row = {
            "epoch": self.current_epoch,
            "lr": self._rate,
            **self._sums.read("train"),
            "images_per_s": round(self._images_seen * self.spec.train.ranks / seconds, 1),
        }

    def close_epoch(self, validation: Row) -> Row:
        """Complete the epoch's row, let the plateau schedule look at its validation loss, and return it."""
        assert self.open_row is not None
        row = {key: value for key, value in self.open_row.items() if key != "images_per_s"}
        row |= {**validation, "images_per_s": self.open_row["images_per_s"]}
        self.history = [past for past in self.history if past["epoch"] < row["epoch"]] + [row]
        self.open_row = None
        if isinstance(self.schedule, ReduceLROnPlateau) and row["epoch"] >= self.spec.optim.warmup_epochs:
            self.schedule.step(row["val/loss"])
        return row

    @torch.no_grad()
    def evaluate(
        self, split: str, after_batch: Callable[[], None] = lambda: None, most: int | None = None, keep: bool = False
    ) -> Row:
        """Return loss in nats and errors in % over a split, all ranks together.

        Args:
            split: val or test.
            after_batch: Called after each batch; may raise to stop.
            most: Batches to take; all by default.
            keep: Keep what is predicted for each image in `predictions`.
        """
        trainer, net = self.trainer, self.tested
        device = trainer.strategy.root_device
        self.to(device)  # Lightning leaves a net on the CPU when training is over
        share_buffers(net)
        sums, parts = Sums(self.num_classes), []
        sums.reset(device)
        net.eval()
        try:
            with trainer.precision_plugin.val_step_context():
                for batch in itertools.islice(self._batches(split), most):
                    images, labels, numbers = [part.to(device, non_blocking=True) for part in batch]
                    logits = self._logits(net, trainer.precision_plugin.convert_input(images))
                    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
                    sums.add(F.cross_entropy(logits, labels, reduction="none"), best, labels)
                    if keep:
                        parts.append([part.cpu().numpy() for part in (numbers, labels, best)])
                    after_batch()
        finally:
            self.model.train()
        if keep:
            all_parts = itertools.chain.from_iterable(gathered(parts))
            image, label, top5 = (np.concatenate(arrays) for arrays in zip(*all_parts, strict=True))
            order = np.argsort(image)
            self.predictions = {"image": image[order], "label": label[order], "top5": top5[order]}
        return sums.read(split)

    def _batches(self, split: str) -> Iterable[Batch]:
        if split not in self._loaders:
            self._loaders[split] = self.trainer.datamodule.batches(split)  # type: ignore[attr-defined]
        return self._loaders[split]

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    @property
    def _rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs beside weights and optimizer; `gather_sums` has asked the other ranks."""
        plateau = self.schedule.state_dict() if isinstance(self.schedule, ReduceLROnPlateau) else None
        checkpoint["se_lab"] = {
            "history": self.history,
            "open_row": self.open_row,
            "plateau": plateau,
            "sums": self._all_sums,
            "epoch_of_sums": self._epoch_of_sums,
        }

    def gather_sums(self) -> None:
        """Let rank 0 have every rank's sums, for the checkpoint that it is about to write."""
        self._all_sums = gathered(self._sums.totals.cpu())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        state = checkpoint["se_lab"]
        self.history, self.open_row, self._plateau_state = state["history"], state["open_row"], state["plateau"]
        self._epoch_of_sums = state["epoch_of_sums"]
        self._epoch_started = time.perf_counter()
        self._sums.totals = state["sums"][self.global_rank].to(self.trainer.strategy.root_device)
