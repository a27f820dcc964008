"""The manifest of an export, se_lab.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from se_lab.spec import SpecError
from se_lab.store import read_sealed

KEYS = {"trial_id": str, "weights": str, "spec": dict, "plugins": str, "num_classes": int, "input": dict}
"""The required keys of a manifest, and the types of their values."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest in a folder, or None if there is none.

    Raises:
        SpecError: for a se_lab.json that is corrupt, or that `se-lab export` did not write.
    """
    path = folder / "se_lab.json"
    try:
        manifest = read_sealed(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SpecError(f"{path} is corrupt, or was not written by se-lab export: {error}") from error
    if any(not isinstance(manifest.get(key), kind) for key, kind in KEYS.items()):
        raise SpecError(f"{path} was not written by se-lab export")
    return manifest


def tensors_digest(tensors: Mapping[str, Tensor], start: bytes = b"") -> str:
    """Return a digest of `start`, and of the names and values of tensors (a state dict) in their order."""
    digest = hashlib.sha256(start)
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
