"""Decide whether a trial runs fused."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from se_lab.units.fused.blocks import form_of
from se_lab.units.fused.passes import compiles
from se_lab.units.unit import Unit


class Work(NamedTuple):
    """Numbers of multiply-accumulates in forward passes."""

    step: float
    """In one process's share of a training step."""
    training: float
    """In all steps."""


MINIMUM_WORK: dict[str, Work] = {"cpu": Work(step=5e9, training=1e11)}
"""The minimum work for which fused units are measured to be faster, by device (benchmarks/RESULTS.md: ResNet-50).

In small steps the fixed cost of a fused unit, under a millisecond, exceeds the time saved: on one core, ResNet-20 with
128 images is faster at 32 pixels, and slower at 16 pixels. Compiling the passes takes five seconds, once per machine.
"""


def choose(mode: str, device: str, work: Work, model: nn.Module) -> tuple[bool, str]:
    """Return whether a trial runs fused, and the reason.

    Args:
        mode: `ModelSpec.fused`.
        device: The type of the device for training.
        work: The work of the trial.
        model: The net in its plain form.
    """
    if mode == "off":
        return False, "off: model.fused=off"
    forms = [form_of(model, path) for path, module in model.named_modules() if isinstance(module, Unit)]
    if all(form.startswith("plain") for form in forms):
        return False, f"off: {forms[0].partition(': ')[2]}" if forms else "off: the net has no units"
    if mode == "auto":
        if not any(form in ("tail", "inner") for form in forms):
            return False, "off: only single units could be fused, which is not proven faster"
        if device not in MINIMUM_WORK:
            return False, f"off: not proven faster on {device}"
        if work.step < MINIMUM_WORK[device].step:
            return False, "off: the steps are too small to be faster"
        if work.training < MINIMUM_WORK[device].training:
            return False, "off: the trial is too short to recover the time of compiling"
    if not compiles(device):
        return False, f"off: no compiler for {device}"
    return True, "on: model.fused=on" if mode == "on" else "on: the steps are large enough to be faster"
