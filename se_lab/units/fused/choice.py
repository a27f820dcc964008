"""Whether a trial runs fused."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from se_lab.units.fused.blocks import form_of
from se_lab.units.fused.passes import compiles
from se_lab.units.unit import Unit


class Work(NamedTuple):
    """Multiply-accumulates of forward passes."""

    step: float
    """Of a process's share of a training step."""
    training: float
    """Of all steps."""


PAYS_FROM: dict[str, Work] = {"cpu": Work(step=5e9, training=1e11)}
"""The least work for which fused units are proven faster, by device type (benchmarks/RESULTS.md: ResNet-50).

In small steps the fixed cost of a fused unit, under a millisecond, outweighs what it saves: on a core, ResNet-20 gains
at 32 pixels and 128 images, and loses at 16 pixels. The passes are compiled once per machine, in five seconds, so
that a trial need save only a fraction of those.
"""


def choose(mode: str, device: str, work: Work, model: nn.Module) -> tuple[bool, str]:
    """Decide for a trial, and say why.

    Args:
        mode: `ModelSpec.fused`.
        device: The type of the device that trains.
        work: What the trial has to do.
        model: The net, not fused yet.
    """
    if mode == "off":
        return False, "off: model.fused=off"
    forms = [form_of(model, path) for path, module in model.named_modules() if isinstance(module, Unit)]
    if all(form.startswith("plain") for form in forms):
        return False, f"off: {forms[0].partition(': ')[2]}" if forms else "off: the net has no units"
    if mode == "auto":
        if not any(form in ("tail", "inner") for form in forms):
            return False, "off: only the units themselves would be fused, which is not proven faster in whole nets"
        if device not in PAYS_FROM:
            return False, f"off: not proven faster on {device}"
        if work.step < PAYS_FROM[device].step:
            return False, "off: too little work a step to gain by it"
        if work.training < PAYS_FROM[device].training:
            return False, "off: too short a trial to pay for compiling"
    if not compiles(device):
        return False, f"off: no compiler for {device}"
    return True, "on: model.fused=on" if mode == "on" else "on: enough work to gain by it"
