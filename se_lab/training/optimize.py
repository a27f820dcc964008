"""Create the optimizer and the learning-rate schedule of an OptimSpec."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from se_lab.spec import OptimSpec, check_choice

TIMM_OPTIMIZERS = {"sgd": "momentum", "nesterov": "sgd"}
"""timm's names: its `sgd` has Nesterov momentum, while SE-Lab's has plain momentum, as in the paper."""


def check_optimizer(optim: OptimSpec) -> None:
    """Raise SpecError, with the nearest name, for an optimizer that timm does not have."""
    name = TIMM_OPTIMIZERS.get(optim.name, optim.name).removeprefix("lookahead_")
    check_choice("optim.name", name, ("nesterov", *map(str, list_optimizers())))


def create_optimizer(net: nn.Module, optim: OptimSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a spec for a net's parameters."""
    name = TIMM_OPTIMIZERS.get(optim.name, optim.name)
    return create_optimizer_v2(net, name, optim.lr, optim.weight_decay, optim.momentum)


def create_schedule(
    optimizer: torch.optim.Optimizer, optim: OptimSpec, epochs: int
) -> Scheduler | ReduceLROnPlateau | OneCycle:
    """Return the schedule of a spec, and set the optimizer to the rate of the first step.

    Schedules are timm's, but plateau is PyTorch's, since timm's is deprecated and has no state to resume from.
    """
    if optim.schedule == "plateau":
        plateau = ReduceLROnPlateau(optimizer, mode="min", factor=optim.decay_rate, patience=optim.patience)
        set_rate(optimizer, optim.lr * warmup_fraction(0, optim.warmup_epochs))
        return plateau
    if optim.schedule == "onecycle":
        return OneCycle(optimizer)
    schedule, _ = create_scheduler_v2(
        optimizer,
        # timm has no constant schedule; multistep without milestones is constant
        sched="multistep" if optim.schedule == "constant" else optim.schedule,
        num_epochs=epochs,
        decay_epochs=optim.decay_epochs,
        decay_milestones=[epoch + 1 for epoch in optim.milestones],  # timm decays one epoch earlier
        decay_rate=optim.decay_rate,
        warmup_epochs=optim.warmup_epochs,
        warmup_lr=optim.lr / max(optim.warmup_epochs, 1),
    )
    assert isinstance(schedule, Scheduler)
    schedule.step(0)
    return schedule


def step_plateau(schedule: ReduceLROnPlateau, optim: OptimSpec, epoch: int, loss: float) -> None:
    """Set the rate of the next epoch, by the warm-up or by the validation loss."""
    if epoch < optim.warmup_epochs:
        set_rate(schedule.optimizer, optim.lr * warmup_fraction(epoch + 1, optim.warmup_epochs))
    else:
        schedule.step(loss)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class OneCycle(LRScheduler):
    """A schedule that rises linearly during the warm-up, then falls linearly to 0, per step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps, self.warmup = 1, 0
        super().__init__(optimizer)

    def start(self, steps: int, warmup: int) -> None:
        """Set the number of steps in training and in its warm-up, and the rate of the next step."""
        self.steps, self.warmup = steps, warmup
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of the current step for each group of parameters."""
        return [base * onecycle_fraction(self.last_epoch, self.steps, self.warmup) for base in self.base_lrs]


def onecycle_fraction(step: int, steps: int, warmup: int) -> float:
    """Return the fraction of the peak rate at a step, with a linear warm-up and decay to 0."""
    return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))


def warmup_fraction(epoch: int, warmup: int) -> float:
    """Return the fraction of the base learning rate at an epoch of linear warm-up, as in timm."""
    return min((1 + epoch * (1 - 1 / warmup)) / warmup, 1.0) if warmup else 1.0
