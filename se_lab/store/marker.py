"""Tell SE-Lab's own folders from others: by a marker in a store, and by the ids and records of trials."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from se_lab.spec import SpecError

MARKER = ".se-lab-store"
_TEXT = "SE-Lab keeps trials in this folder, one folder each. se-lab gc deletes only what SE-Lab wrote.\n"
_ID = re.compile("[0-9a-f]{12}").fullmatch
_CLAIM = re.compile("[0-9]{6,}").fullmatch
_IDENTITY = {"host", "machine", "pid", "start"}


def check_store(folder: str | Path) -> None:
    """Raise SpecError for a file, a path below a file, or a folder with other files and no marker.

    Hidden files and folders of trials are allowed.
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
        examples = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise SpecError(
            f"store is {str(folder)!r}, which holds other files ({examples}) and no marker of SE-Lab's; "
            "it must be a new or empty folder, or a store"
        )


def mark_store(folder: str | Path) -> None:
    """Make a folder a store, creating it where it is missing.

    Raises:
        SpecError: for a folder that holds other files.
        OSError: where nothing can be written.
    """
    folder = Path(folder)
    check_store(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / MARKER).open("x", encoding="utf-8") as file:
        file.write(_TEXT)
        file.flush()
        os.fsync(file.fileno())  # a crash must not leave trials without it


def is_trial_id(name: str) -> bool:
    """Tell whether a name is a trial id: 12 hexadecimal digits."""
    return _ID(name) is not None


def is_trial(path: Path) -> bool:
    """Tell whether a path is the folder of a trial: named by a trial id, with a record or a claim of SE-Lab's."""
    if not _ID(path.name) or path.is_symlink() or not path.is_dir():
        return False
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((path / "record.json").read_bytes())
        return isinstance(record, dict) and record.get("trial_id") == path.name
    return any(identity_in(claim) for claim in claims_in(path / "claims"))


def aside_of(path: Path) -> Path:
    """Return the name under which a file is written before it is renamed into place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def is_written_aside(path: Path) -> bool:
    """Tell whether a path is a temporary file of SE-Lab's, or a folder that it renamed in order to delete it."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return re.fullmatch(r"\.[0-9a-f]{12}\.[0-9a-f]{32}", path.name) is not None
    return re.fullmatch(r"\.([\w.-]+\.)?[0-9a-f]{32}", path.name) is not None


def claims_in(folder: Path) -> list[Path]:
    """Return the claims in a trial's folder of claims, by number: files, and no links or folders of others."""
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as entries:
            return sorted(
                folder / entry.name for entry in entries if _CLAIM(entry.name) and entry.is_file(follow_symlinks=False)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def identity_in(path: Path) -> dict[str, Any]:
    """Return the identity in a claim file; empty if its host crashed before it was on disk, or it is another user's."""
    with contextlib.suppress(ValueError, PermissionError):
        identity = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(identity, dict) and identity.keys() >= _IDENTITY and isinstance(identity["pid"], int):
            return identity
    return {}
