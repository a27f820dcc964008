"""Synchronised batch norm on CPUs; PyTorch supports it on GPUs only."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from se_lab.parallel.collectives import sum_over_ranks


def sync_on_cpu(net: nn.Module) -> None:
    """Let a net's SyncBatchNorms from timm's `convert_sync_batchnorm` run on a CPU."""
    for module in net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = SyncBatchNorm  # type: ignore[assignment]


class SyncBatchNorm(_BatchNorm):
    """SyncBatchNorm over gloo; not a subclass of PyTorch's, which DDP accepts on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) over the images of all ranks, then apply timm's activation, if any."""
        x = self._on_cpu(x) if x.is_cpu and self.training and dist.is_initialized() else super().forward(x)
        for name in ("drop", "act"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x

    def _on_cpu(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        dims = [0, *range(2, x.dim())]
        sums = torch.cat([x.sum(dims), x.new_full((1,), x.numel() / x.shape[1])])
        total: Tensor = _SumOverRanks.apply(sums)
        count = total[-1]
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        var: Tensor = _SumOverRanks.apply(centred.square().sum(dims)) / count
        self._track(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), share)


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the gradients of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_ranks(gradients[0])
