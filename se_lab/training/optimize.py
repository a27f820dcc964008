"""Optimizers and learning-rate schedules: timm's, by the names of an OptimSpec."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from se_lab.spec import OptimSpec, check_choice

TIMM_OPTIMIZERS = {"sgd": "momentum", "nesterov": "sgd"}
"""timm calls SGD with Nesterov momentum sgd; here sgd is the paper's, with plain momentum."""


def check_optimizer(optim: OptimSpec) -> None:
    """Raise SpecError for an optimizer that timm does not have, naming the nearest."""
    name = TIMM_OPTIMIZERS.get(optim.name, optim.name).removeprefix("lookahead_")
    check_choice("optim.name", name, ("nesterov", *map(str, list_optimizers())))


def create_optimizer(net: nn.Module, optim: OptimSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a spec over a net's parameters."""
    name = TIMM_OPTIMIZERS.get(optim.name, optim.name)
    return create_optimizer_v2(net, name, optim.lr, optim.weight_decay, optim.momentum)


def create_schedule(
    optimizer: torch.optim.Optimizer, optim: OptimSpec, epochs: int
) -> Scheduler | ReduceLROnPlateau | None:
    """Return timm's schedule; for plateau PyTorch's, since timm's is deprecated and keeps no state to resume from.

    None is for onecycle, which `onecycle` computes a step at a time; a plateau's warm-up is left to `warmed`.
    """
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


def onecycle(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at a step: up linearly over `warmup` steps, down linearly to 0 at the end."""
    return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))


def warmed(epoch: int, warmup: int) -> float:
    """Return the share of the full rate in an epoch of a warm-up of so many, as timm's schedules have it; then 1."""
    return min((1 + epoch * (1 - 1 / warmup)) / warmup, 1.0) if warmup else 1.0
