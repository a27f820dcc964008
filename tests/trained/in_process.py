"""timm's net built in the tests' process, and not in one that has only timm, which takes seconds to start."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch

from se_lab.trained.export import Net


def outputs_of_timm(folder: Path, net: Net) -> tuple[str, dict[str, torch.Tensor] | None]:
    """Return what export._plain_timm does: the outputs of timm's net, or why there are none."""
    name = json.loads((folder / "config.json").read_text())["architecture"]
    if timm.models.model_entrypoint(name).__module__.startswith("se_lab"):
        return f"Unknown model ({name})", None
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        return "", {str(number): model(net.images(number)) for number in (1, 3)}
