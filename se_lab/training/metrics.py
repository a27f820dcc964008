"""Loss in nats and errors in %, as torchmetrics that sum over images, batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


class MeanLoss(Metric):
    """The mean loss per image in nats, summed in double precision; cheaper than MeanMetric."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def single(self) -> None:
        """Sum in single precision, for mps, which does not support doubles."""
        self.total = self.total.float()
        self._defaults["total"] = torch.zeros((), dtype=torch.float32)  # the value after reset

    def update(self, losses: Tensor) -> None:
        """Add the losses of a batch, (N,)."""
        self.total = self.total + losses.sum(dtype=self.total.dtype)
        self.images = self.images + len(losses)

    def compute(self) -> Tensor:
        """Return the mean as a double; NaN without images."""
        return self.total / self.images


class TopError(MulticlassAccuracy):
    """The top-k error in %: the fraction of images whose label is not among the k guesses."""

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
        """Return the error as a double; NaN without images."""
        return (100 * self.fn.cpu().double() / (self.tp + self.fn).cpu()).squeeze()  # mps does not support doubles


class Scores(nn.Module):
    """The metrics of a split: loss, top1_error and, with more than five classes, top5_error."""

    loss: MeanLoss
    top1_error: TopError

    def __init__(self, num_classes: int, *, top5: bool = True) -> None:
        """Create the metrics, without top-5 error for up to five classes: it would always be 0."""
        super().__init__()
        self.loss, self.top1_error = MeanLoss(), TopError(num_classes)
        self.top5_error = TopError(num_classes) if top5 and num_classes > 5 else None

    def update(self, losses: Tensor, guesses: Tensor, labels: Tensor) -> None:
        """Add a batch: losses (N,), most likely classes (N, 1) or (N, 5), best first, labels (N,)."""
        if not len(labels):  # no image of the batch is readable; torchmetrics needs at least one
            return
        self.loss.update(losses)
        self.top1_error.update(guesses[:, :1], labels)
        if self.top5_error is not None:
            self.top5_error.update(guesses, labels)

    def metrics(self, split: str) -> dict[str, Metric]:
        """Return the metrics by their logged keys, such as val/top1_error."""
        return {f"{split}/{name}": metric for name, metric in self.named_children() if isinstance(metric, Metric)}

    def compute(self, split: str) -> dict[str, float]:
        """Return split/loss in nats, split/top1_error and split/top5_error in %, over all ranks."""
        return {key: float(metric.compute()) for key, metric in self.metrics(split).items()}

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in self.metrics("").values():
            metric.reset()

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """Return this rank's sums on the CPU, for `load_sums`."""
        return {
            key: {name: value.cpu() for name, value in metric.metric_state.items() if isinstance(value, Tensor)}
            for key, metric in self.metrics("").items()
        }

    def load_sums(self, sums: dict[str, dict[str, Tensor]]) -> None:
        """Restore the result of `sums`."""
        device = self.loss.total.device
        zero = torch.zeros(1, dtype=torch.long, device=device)
        self.update(zero, zero[:, None], zero)  # torchmetrics warns without an update; these sums are overwritten
        for key, metric in self.metrics("").items():
            for name, value in sums[key].items():
                setattr(metric, name, value.to(device))
