"""Recognise SE-Lab's folders: stores by a marker file, trials by their ids and records."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from se_lab.spec import SpecError
from se_lab.spec.text import listed

MARKER = ".se-lab-store"
_TEXT = "SE-Lab keeps trials in this folder, one folder per trial. se-lab gc deletes only files that SE-Lab wrote.\n"
_ID = re.compile("[0-9a-f]{12}").fullmatch
_CLAIM = re.compile("[0-9]{6,}").fullmatch
_IDENTITY = {"host", "machine", "pid", "start"}


def check_store(folder: str | Path) -> None:
    """Raise SpecError unless a path is a store, a new or empty folder, or a folder of trials.

    Hidden files are ignored.
    """
    folder = Path(folder)
    if file := next((path for path in (folder, *folder.parents) if path.is_file()), None):
        raise SpecError(f"store is {str(folder)!r}, and {file} is a file; it must be a folder")
    if not folder.is_dir() or (folder / MARKER).is_file():
        return
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not (entry.name.startswith(".") or (_ID(entry.name) and entry.is_dir(follow_symlinks=False)))
        )
    if names:
        raise SpecError(
            f"store is {str(folder)!r}, which contains other files ({listed(names, 3)}) and no {MARKER}; "
            "it must be a new or empty folder, or a store"
        )


def mark_store(folder: str | Path) -> None:
    """Make a folder a store; create the folder if it is missing.

    Raises:
        SpecError: if the folder contains other files.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    check_store(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / MARKER).open("x", encoding="utf-8") as file:
        file.write(_TEXT)
        file.flush()
        os.fsync(file.fileno())  # a crash must not leave trials without a marker


def is_trial_id(name: str) -> bool:
    """Return whether a name is a trial id: 12 hexadecimal digits."""
    return _ID(name) is not None


def is_trial(path: Path) -> bool:
    """Return whether a path is a trial's folder: named by a trial id, with a record or a claim."""
    if not _ID(path.name) or path.is_symlink() or not path.is_dir():
        return False
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((path / "record.json").read_bytes())
        return isinstance(record, dict) and record.get("trial_id") == path.name
    return any(identity_in(claim) for claim in claims_in(path / "claims"))


def temp_path_of(path: Path) -> Path:
    """Return a temporary path for a file that will be renamed into place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def is_temporary(path: Path) -> bool:
    """Return whether a path is a temporary file, or a trial's folder renamed for deletion."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return re.fullmatch(r"\.[0-9a-f]{12}\.[0-9a-f]{32}", path.name) is not None
    return re.fullmatch(r"\.([\w.-]+\.)?[0-9a-f]{32}", path.name) is not None


def claims_in(folder: Path) -> list[Path]:
    """Return the claim files in a folder by number; links and folders are skipped."""
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _CLAIM(entry.name) and entry.is_file(follow_symlinks=False)]
        return [folder / name for name in sorted(names, key=int)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def identity_in(path: Path) -> dict[str, Any]:
    """Return the identity in a claim file; {} if the file is incomplete or unreadable."""
    with contextlib.suppress(ValueError, PermissionError):
        identity = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(identity, dict) and identity.keys() >= _IDENTITY and isinstance(identity["pid"], int):
            return identity
    return {}
