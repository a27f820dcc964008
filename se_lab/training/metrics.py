"""Loss in nats and errors in %, as torchmetrics: sums over images that add up over batches and over ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


class MeanLoss(Metric):
    """The mean loss of an image, in nats, summed in double precision: half the work of torchmetrics' MeanMetric."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def single(self) -> None:
        """Sum in single precision: for mps, which has no doubles."""
        self.total = self.total.float()
        self._defaults["total"] = torch.zeros((), dtype=torch.float32)  # restored by reset, and moved with the metric

    def update(self, losses: Tensor) -> None:
        """Add the losses of a batch, (N,)."""
        self.total = self.total + losses.sum(dtype=self.total.dtype)
        self.images = self.images + len(losses)

    def compute(self) -> Tensor:
        """Return the mean, a double; NaN of no image."""
        return self.total / self.images


class TopError(MulticlassAccuracy):
    """The error in %: images whose label is not among the guesses."""

    higher_is_better = False
    tp: Tensor
    fn: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="micro", validate_args=False)

    def update(self, guesses: Tensor, labels: Tensor) -> None:
        """Add a batch: the k classes guessed for each image, (N, k), and the labels, (N,)."""
        guess = guesses[:, 0]
        if guesses.shape[1] > 1:
            guess = torch.where((guesses == labels[:, None]).any(1), labels, guess)
        super().update(guess, labels)

    def compute(self) -> Tensor:
        """Return the error, a double; NaN of no image."""
        return (100 * self.fn.cpu().double() / (self.tp + self.fn).cpu()).squeeze()  # mps has no doubles


class Scores(nn.Module):
    """The metrics of a split: loss, top1_error and, with more than five classes, top5_error."""

    loss: MeanLoss
    top1_error: TopError

    def __init__(self, num_classes: int, *, top5: bool = True) -> None:
        """Leave out the top-5 error with five classes or fewer: it would always be 0."""
        super().__init__()
        self.loss, self.top1_error = MeanLoss(), TopError(num_classes)
        self.top5_error = TopError(num_classes) if top5 and num_classes > 5 else None

    def update(self, losses: Tensor, guesses: Tensor, labels: Tensor) -> None:
        """Add a batch: its losses, (N,), the likeliest classes, best first, (N, 1) or (N, 5), and labels, (N,)."""
        if not len(labels):  # no image of the batch was readable, and torchmetrics needs at least one
            return
        self.loss.update(losses)
        self.top1_error.update(guesses[:, :1], labels)
        if self.top5_error is not None:
            self.top5_error.update(guesses, labels)

    def metrics(self, split: str) -> dict[str, Metric]:
        """Return the metrics under the keys that they are logged by, such as val/top1_error."""
        return {f"{split}/{name}": metric for name, metric in self.named_children() if isinstance(metric, Metric)}

    def compute(self, split: str) -> dict[str, float]:
        """Return split/loss in nats, split/top1_error and split/top5_error in %, of all ranks' images."""
        return {key: float(metric.compute()) for key, metric in self.metrics(split).items()}

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in self.metrics("").values():
            metric.reset()

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """Return this rank's sums so far, on the CPU, to load them later."""
        return {
            key: {name: value.cpu() for name, value in metric.metric_state.items() if isinstance(value, Tensor)}
            for key, metric in self.metrics("").items()
        }

    def load_sums(self, sums: dict[str, dict[str, Tensor]]) -> None:
        """Restore sums that `sums` returned."""
        device = self.loss.total.device
        zero = torch.zeros(1, dtype=torch.long, device=device)
        self.update(zero, zero[:, None], zero)  # torchmetrics warns of a metric without an update; its sums go now
        for key, metric in self.metrics("").items():
            for name, value in sums[key].items():
                setattr(metric, name, value.to(device))
