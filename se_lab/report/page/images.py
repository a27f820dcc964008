"""Thumbnails of test images."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

from se_lab.spec import expand_path
from se_lab.store import RunRecord

if TYPE_CHECKING:
    from PIL import Image

SIDE = 64


def thumbnail(record: RunRecord, key: str) -> str | None:
    """Return a test image as a data URI, for digits and image folders; else None.

    Args:
        record: The record of the trial, with data set and data root.
        key: The image's key in `predictions.npz`.
    """
    name = str(record.spec.get("data.name", ""))
    if name == "digits":
        return _data_uri(_digit(int(key)))
    if not name.startswith("folder:"):
        return None
    folder = expand_path(name.removeprefix("folder:"), str(record.execution.get("data_root", ".")))
    for part in ("test", "val", ""):
        path = folder / part / key
        if path.is_file():
            return _open_picture(path)
    return None


def _open_picture(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            return _data_uri(image.convert("RGB"))
    except (OSError, UnidentifiedImageError):
        return None


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if max(image.size) < 32 else "JPEG")
    kind = "png" if max(image.size) < 32 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _digits() -> list[Image.Image]:
    from PIL import Image
    from sklearn.datasets import load_digits

    return [Image.fromarray((255 - digit * 15.9).astype("uint8")) for digit in load_digits().images]


def _digit(number: int) -> Image.Image:
    return _digits()[number].copy()
