"""Write files atomically, and read and write JSON with a checksum."""

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

from se_lab.store.marker import temp_path_of

_PART = 1 << 16
_SEAL = re.compile(rb'\{\n  "checksum": "([0-9a-f]{64})",\n')


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: a temporary file is synced to disk and renamed into place.

    Missing folders are created. Devices and pipes are written directly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            write(file)
        return
    temp_path = temp_path_of(path)
    try:
        with temp_path.open("wb") as file:
            write(file)
        put_in_place(temp_path, path)
    finally:
        temp_path.unlink(missing_ok=True)


def write_bytes_whole(path: Path, content: bytes) -> None:
    """Write bytes to a file atomically."""
    write_whole(path, lambda file: file.write(content))


def write_text_whole(path: Path, text: str) -> None:
    """Write text to a file as UTF-8, atomically."""
    write_bytes_whole(path, text.encode())


def put_in_place(temp_path: Path, path: Path) -> None:
    """Sync a temporary file to disk and rename it into place, with the umask's permissions."""
    if temp_path.stat().st_mode & 0o777 == 0o600:  # safetensors ignores the umask
        probe = temp_path_of(path)
        probe.touch()
        temp_path.chmod(probe.stat().st_mode & 0o777)
        probe.unlink()
    with temp_path.open("rb") as file:
        os.fsync(file.fileno())
    temp_path.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk where the system can, so that a crash loses no rename."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bytes(path: str) -> bytes:
    """Return the content of a small file; twice as fast as `open`, for stores of many trials."""
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
    """Return a mapping as JSON that starts with a checksum of the rest; NaN becomes null."""
    body = json.dumps(_without_nan(values), indent=2, allow_nan=False).removeprefix("{\n").encode()
    return f'{{\n  "checksum": "{hashlib.sha256(body).hexdigest()}",\n'.encode() + body


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping to a file as JSON with a checksum."""
    write_bytes_whole(path, sealed(values))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the mapping that `write_sealed` wrote to a file, without its checksum.

    Raises:
        ValueError: if the file is invalid, or was changed after it was written.
        FileNotFoundError: if the file does not exist.
    """
    content = read_bytes(str(path))
    check_seal(content)
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError(f"it contains {type(values).__name__}, not a mapping")
    values.pop("checksum", None)
    return values


def check_seal(content: bytes) -> bool:
    """Return whether a file's content has a checksum; raise ValueError if it is wrong."""
    seal = _SEAL.match(content)
    if seal and hashlib.sha256(memoryview(content)[seal.end() :]).hexdigest().encode() != seal[1]:
        raise ValueError("its checksum does not match its content: it is damaged or was edited")
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
    """Create a file with its content; return True in exactly one of several concurrent calls.

    It uses a hard link, which is atomic on every file system, NFS included.
    """
    temp_path = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with temp_path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temp_path, path)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost; the repetition fails although the link was made
        return temp_path.stat().st_nlink == 2
    finally:
        temp_path.unlink(missing_ok=True)
    return True
