"""The manifest of an export, se_lab.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_lab.spec import SpecError

KEYS = {"trial_id": str, "weights": str, "spec": dict, "plugins": str, "num_classes": int, "input": dict}
"""The required keys of a manifest, and the types of their values."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest in a folder, or None if there is none.

    Raises:
        SpecError: for a se_lab.json that `se-lab export` did not write.
    """
    path = folder / "se_lab.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SpecError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(key), kind) for key, kind in KEYS.items()):
        raise SpecError(f"{path} was not written by se-lab export")
    return manifest


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
