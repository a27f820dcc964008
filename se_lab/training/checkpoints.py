"""Checkpoints on disk: written aside, read back, and put in place; the one before stays until the new one is proved."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from se_lab import store


class CheckpointError(OSError):
    """A checkpoint that could not be written; the one before is whole."""


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint, prove it by its checksums, and put it in place; last.ckpt becomes previous.ckpt.

    Raises:
        CheckpointError: where the disk does not take it; what is there stays, and what was written is removed.
    """
    aside = store.aside_of(path)
    try:
        with aside.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # to read what the disk has, not what memory still holds
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not is_whole(aside):
            raise CheckpointError(f"{path}: what was written does not read back")
        if path.name == "last.ckpt" and path.exists():
            path.replace(path.with_name("previous.ckpt"))
        store.put_in_place(aside, path)
    except (OSError, RuntimeError) as error:  # torch wraps what the file says
        size, free = aside.stat().st_size if aside.exists() else 0, shutil.disk_usage(path.parent).free
        aside.unlink(missing_ok=True)
        if isinstance(error, CheckpointError):
            raise
        number = getattr(error, "errno", None) or getattr(error.__cause__ or error.__context__, "errno", None)
        said = f"it could not be written after {size:,} bytes, with {free:,} free; the checkpoint before it is whole"
        raise CheckpointError(number or 0, f"{os.strerror(number) if number else error}: {said}", str(path)) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a trial that is whole, by its checksums; say so where that is not the last."""
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        if is_whole(path):
            return path
        print(f"{path} is torn: going on without it", file=sys.stderr)
    return None


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint reads as it was written, by the checksums within."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False
