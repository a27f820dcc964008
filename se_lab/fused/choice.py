"""Whether a trial runs fused."""

from __future__ import annotations

from se_lab.fused.passes import compiles

PAYS_FROM: dict[str, float] = {"cpu": 3e13}
"""By device type where fused units are proven faster (benchmarks/RESULTS.md): the multiply-accumulates of a training
run, forward and backward, from which on that is worth the minute that compiling takes. On two cores, ResNet-50 in NCHW,
a step of 8 images, 3 · 8 · 4.1e9 of them, is 0.20 s shorter: 2e-12 s each, and 60 s / 2e-12 s = 3e13."""


def choose(mode: str, device: str, macs: int, images: int) -> tuple[bool, str]:
    """Decide for a trial, and say why.

    Args:
        mode: `ModelSpec.fused`.
        device: The type of the device that trains.
        macs: Multiply-accumulates of an image's forward pass.
        images: Images that the trial trains on, epochs included.
    """
    if mode == "off":
        return False, "off, as told"
    if mode == "auto":
        if device not in PAYS_FROM:
            return False, f"off: not proven faster on {device}"
        if 3.0 * macs * images < PAYS_FROM[device]:
            return False, "off: too short a trial to pay for compiling"
    if not compiles(device):
        return False, f"off: no compiler for {device}"
    return True, "on, as told" if mode == "on" else "on: long enough to pay for compiling"
