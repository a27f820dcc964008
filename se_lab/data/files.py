"""Image files as a source of encoded images, whatever their names and wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from se_lab.data.base import DataError
from se_lab.data.pictures import decode


def printable(name: str) -> str:
    r"""Return a file name as text, its bytes that are not UTF-8 as \xe9: it can be printed and written anywhere."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, eq=False)
class Files(Dataset[tuple[Image.Image, int]]):
    """Image files, by their paths under a root: a map-style data set that gives (PIL image, label)."""

    root: str
    paths: Sequence[str]
    labels: Sequence[int]
    check_first: bool = True

    @cached_property
    def names(self) -> Sequence[str]:
        """The paths as text."""
        try:
            "".join(self.paths).encode()
        except UnicodeEncodeError:
            return [printable(path) for path in self.paths]
        return self.paths

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the files' bytes."""
        try:
            return [Path(self.root, self.paths[number]).read_bytes() for number in numbers]
        except OSError as error:
            raise DataError(f"{printable(str(error.filename))} cannot be read: {error.strerror}") from error

    def status(self) -> list[tuple[int, int, int, int]]:
        """Return size, times of the last modification and the last change in nanoseconds, and inode of each file.

        All are zero for a missing file.
        """
        return [_status(f"{self.root}/{path}") for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return decode(self.read([number])[0]), self.labels[number]


def _status(path: str) -> tuple[int, int, int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path per file is slower
    except OSError:
        return 0, 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
