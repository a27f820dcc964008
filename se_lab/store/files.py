"""Files that are replaced whole or not at all, and JSON that carries a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from se_lab.store.marker import aside_of

_PART = 1 << 16
_SEAL = re.compile(rb'\{\n  "checksum": "([0-9a-f]{64})",\n')


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file, sync it to disk, and rename it into place: nobody ever reads half of it.

    Missing folders are created. A device or a pipe is written directly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            write(file)
        return
    temp_path = aside_of(path)
    try:
        with temp_path.open("wb") as file:
            write(file)
        put_in_place(temp_path, path)
    finally:
        temp_path.unlink(missing_ok=True)


def write_bytes_whole(path: Path, content: bytes) -> None:
    """Write a file with its content, as `write_whole`."""
    write_whole(path, lambda file: file.write(content))


def write_text_whole(path: Path, text: str) -> None:
    """Write a text as UTF-8, as `write_whole`."""
    write_bytes_whole(path, text.encode())


def put_in_place(aside: Path, path: Path) -> None:
    """Sync a temporary file to disk and rename it into place, with the permissions that the umask gives."""
    if aside.stat().st_mode & 0o777 == 0o600:  # safetensors writes so, whatever the umask
        probe = aside_of(path)
        probe.touch()
        aside.chmod(probe.stat().st_mode & 0o777)
        probe.unlink()
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can: a crash then loses no rename."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read_bytes(path: str) -> bytes:
    """Read a small file in half the time of Python's open, which matters for ten thousand files."""
    file = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(file, _PART)]
        while len(parts[-1]) == _PART:
            parts.append(os.read(file, _PART))
        return b"".join(parts)
    finally:
        os.close(file)


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def sealed(values: Mapping[str, Any]) -> bytes:
    """Return a mapping as JSON that begins with the checksum of the rest; NaN becomes null."""
    body = json.dumps(_without_nan(values), indent=2, allow_nan=False).removeprefix("{\n").encode()
    return f'{{\n  "checksum": "{hashlib.sha256(body).hexdigest()}",\n'.encode() + body


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as `sealed` JSON."""
    write_bytes_whole(path, sealed(values))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return a mapping that was written as `sealed` JSON, without its checksum.

    Raises:
        ValueError: for a file that is no such mapping, or was changed since it was written.
        FileNotFoundError: for one that does not exist.
    """
    content = read_bytes(str(path))
    check_seal(content)
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, not a mapping")
    values.pop("checksum", None)
    return values


def check_seal(content: bytes) -> bool:
    """Return whether a file's content carries a checksum; raise ValueError if it carries a wrong one."""
    seal = _SEAL.match(content)
    if seal and hashlib.sha256(memoryview(content)[seal.end() :]).hexdigest().encode() != seal[1]:
        raise ValueError("its checksum is not that of its content: it is damaged, or was edited")
    return seal is not None


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


def create_once(path: Path, content: bytes) -> bool:
    """Create a file with its content, and return whether this call did it: of concurrent calls, exactly one does.

    A hard link is atomic on every file system, NFS included.
    """
    temp_path = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with temp_path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temp_path, path)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost, and fail since the first one succeeded
        return temp_path.stat().st_nlink == 2
    finally:
        temp_path.unlink(missing_ok=True)
    return True
