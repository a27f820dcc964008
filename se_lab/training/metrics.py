"""Loss in nats and errors in %, from sums over images that add up over batches and over ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from se_lab.parallel.collectives import add_up


class Sums:
    """Images, losses, and wrong answers, summed in double precision where the net is, without waiting for it."""

    def __init__(self, num_classes: int, *, top5: bool = True) -> None:
        """With five classes or fewer there is no top-5 error: it would be 0 whatever the net says."""
        self.top5 = top5 and num_classes > 5
        self.totals = torch.zeros(4)

    def reset(self, device: torch.device) -> None:
        """Begin anew, on the device that the net is on."""
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.totals = torch.zeros(4, dtype=kind, device=device)

    def add(self, losses: Tensor, guesses: Tensor, labels: Tensor) -> None:
        """Add a batch: its losses, (N,), the likeliest classes, best first, (N, 1) or (N, 5), and labels, (N,)."""
        right = guesses == labels[:, None]
        sums = torch.stack([losses.sum(dtype=self.totals.dtype), (~right[:, 0]).sum(), (~right.any(1)).sum()])
        self.totals[0] += len(labels)
        self.totals[1:] += sums

    def read(self, split: str) -> dict[str, float]:
        """Return split/loss in nats and split/top1_error and split/top5_error in %, of all ranks' images."""
        images, loss, top1, top5 = add_up(self.totals).tolist()
        count = images or float("nan")
        found = {f"{split}/loss": loss / count, f"{split}/top1_error": 100 * top1 / count}
        return found | ({f"{split}/top5_error": 100 * top5 / count} if self.top5 else {})
