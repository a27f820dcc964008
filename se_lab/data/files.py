"""Image files as a source of encoded images."""

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
    r"""Return a file name as valid text, with bytes that are not UTF-8 written as \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, eq=False)
class Files(Dataset[tuple[Image.Image, int]]):
    """A map-style data set of image files (paths relative to a root): (PIL image, label)."""

    root: str
    paths: Sequence[str]
    labels: Sequence[int]
    check_first: bool = True

    @cached_property
    def names(self) -> Sequence[str]:
        """The paths as valid text."""
        try:
            "".join(self.paths).encode()
        except UnicodeEncodeError:
            return [printable(path) for path in self.paths]
        return self.paths

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the contents of the files with these numbers."""
        try:
            return [Path(self.root, self.paths[number]).read_bytes() for number in numbers]
        except OSError as error:
            raise DataError(f"{printable(str(error.filename))} cannot be read: {error.strerror}") from error

    def status(self) -> list[tuple[int, int, int, int]]:
        """Return size, modification time, change time (in ns) and inode of each file; 0 if missing."""
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
