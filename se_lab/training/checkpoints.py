"""Write and read checkpoints, which are verified before they replace the previous ones."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from se_lab import store
from se_lab.spec import SpecError
from se_lab.training.folder import TrialFolder


class CheckpointError(OSError):
    """A checkpoint could not be written; the previous one is intact."""


class TrialCheckpointIO(TorchCheckpointIO):
    """Writes and reads a trial's checkpoints, which contain its id."""

    def __init__(self, folder: TrialFolder) -> None:
        super().__init__()
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            ClaimLostError: if another worker has claimed the trial.
            CheckpointError: if the checkpoint cannot be written.
        """
        self.folder.check()
        write_checkpoint(Path(path), {"trial_id": self.folder.trial_id, **checkpoint})

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            SpecError: if the checkpoint belongs to another trial.
        """
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        _check_owner(path, checkpoint, self.folder.trial_id)
        return checkpoint


def read_checkpoint(path: Path, trial_id: str, digest: str | None = None) -> dict[str, Any]:
    """Return a trial's checkpoint on the CPU, after verifying its checksums.

    Args:
        path: The file.
        trial_id: The id of the trial.
        digest: The SHA-256 of the file, or None if it is unknown.

    Raises:
        SpecError: if the checkpoint is missing, damaged, changed, or belongs to another trial.
    """
    if not is_whole(path):
        raise SpecError(f"{path} is not a checkpoint of SE-Lab: it is missing, corrupt or incomplete")
    if digest not in (None, store.digest_of_file(path)):
        raise SpecError(f"{path} was changed after its trial ended: its digest is not the one in record.json")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"]
    except Exception as error:  # torch.load can raise any exception
        raise SpecError(f"{path} is not a checkpoint of SE-Lab: {type(error).__name__}: {error}") from error
    _check_owner(path, checkpoint, trial_id)
    return checkpoint


def _check_owner(path: Any, checkpoint: Mapping[str, Any], trial_id: str) -> None:
    if (owner := checkpoint.get("trial_id", trial_id)) != trial_id:
        raise SpecError(
            f"{path} is a checkpoint of trial {owner} in the folder of trial {trial_id}; delete the checkpoints there "
            "to restart the trial"
        )


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write and verify a checkpoint, and move it into place; last.ckpt becomes previous.ckpt.

    Raises:
        CheckpointError: if the checkpoint cannot be written; existing checkpoints are kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = store.temp_path_of(path)
    try:
        with temp_path.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # so that verifying reads the disk, not the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not is_whole(temp_path):
            raise CheckpointError(f"{path}: its checksums are wrong after writing")
        if path.name == "last.ckpt" and path.exists():
            path.replace(path.with_name("previous.ckpt"))
        store.put_in_place(temp_path, path)
    except (OSError, RuntimeError) as error:  # PyTorch wraps OSErrors
        size, free = temp_path.stat().st_size if temp_path.exists() else 0, shutil.disk_usage(path.parent).free
        temp_path.unlink(missing_ok=True)
        if isinstance(error, CheckpointError):
            raise
        number = getattr(error, "errno", None) or getattr(error.__cause__ or error.__context__, "errno", None)
        text = f"writing failed after {size:,} bytes, with {free:,} free; the previous checkpoint is intact"
        raise CheckpointError(number or 0, f"{os.strerror(number) if number else error}: {text}", str(path)) from error


def newest_checkpoint(folder: Path, *, with_best: bool = False) -> Path | None:
    """Return the newest intact checkpoint of a trial; print a message for each corrupt one.

    `with_best`: the trial is tested with best.ckpt, so none is returned if that is corrupt.
    """
    best = folder / "best.ckpt"
    if with_best and best.exists() and not is_whole(best):
        print(f"{best} is corrupt or incomplete: the trial begins anew", file=sys.stderr)
        return None
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        if is_whole(path):
            return path
        print(f"{path} is corrupt or incomplete: resuming without it", file=sys.stderr)
    return None


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is complete and intact, by its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False  # the exceptions of zipfile for a corrupt directory


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint that was saved during a validation so that Lightning restarts it.

    By default Lightning would skip the validation. Its loop restarts an evaluation with exactly one batch in progress.
    """
    counts = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = {
        "total": counts | {"ready": 1, "started": 1},
        "current": counts,
        "is_last_batch": False,
    }
