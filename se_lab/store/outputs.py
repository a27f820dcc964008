"""Write files to paths given by the user, without replacing files that SE-Lab did not write."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from se_lab.spec import SpecError
from se_lab.store.files import digest_of_file


def cache_folder() -> Path:
    """Return SE-Lab's folder under the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "se-lab"


@contextlib.contextmanager
def guard_outputs(paths: Iterable[str | Path], *, overwrite: bool = False) -> Iterator[None]:
    """Guard the files written in the context: only unchanged files of SE-Lab may be replaced.

    Args:
        paths: The files that will be written.
        overwrite: Whether any file may be replaced.

    Raises:
        SpecError: before anything is written, if another file would be replaced.
    """
    files = [Path(path).absolute() for path in paths]
    if not overwrite and (losses := [file for file in files if os.path.lexists(file) and not _is_ours(file)]):
        more = f" (and {len(losses) - 1} more)" if len(losses) > 1 else ""
        raise SpecError(
            f"{losses[0]}{more} already exists and was not written by SE-Lab, or was changed since; choose another "
            "name, or add --overwrite"
        )
    stamps = {file: _stamp(file) for file in files}
    try:
        yield
    finally:  # after an error, some files were written and others were not
        _remember(file for file in files if _stamp(file) != stamps[file])


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return inode, size and modification time of a file, or None if it is missing."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remember(files: Iterable[Path]) -> None:
    for file in files:
        if file.is_file():
            note = _note(file)
            with contextlib.suppress(OSError):  # without a note, the file will not be replaced
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(digest_of_file(file), encoding="utf-8")


def _is_ours(file: Path) -> bool:
    try:
        return file.is_file() and _note(file).read_text(encoding="utf-8") == digest_of_file(file)
    except OSError:
        return False


def _note(file: Path) -> Path:
    return cache_folder() / "outputs" / hashlib.sha256(os.fsencode(file)).hexdigest()[:32]
