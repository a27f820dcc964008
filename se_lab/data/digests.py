"""Digests of data sets: by the bytes of their images, remembered for files that have not changed."""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

from se_lab.spec import seed_of
from se_lab.store import cache_folder

WHOLE = 2 * 10**9
"""Bytes of a set up to which every image is read for its digest."""
SAMPLE = 2_000
"""Images of a larger set that are read for its digest."""

T = TypeVar("T")

_use_memory = contextvars.ContextVar("_use_memory", default=True)


def digest_of(*parts: bytes) -> str:
    """Return 16 hexadecimal digits that identify a data set by its bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def encoded_name(name: str) -> bytes:
    """Return a file name as bytes, also one that is not UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def content_digest(
    names: Sequence[str], sizes: Sequence[int], read: Callable[[int], bytes], times: Sequence[int] = ()
) -> str:
    """Return the digest of a set of images by their bytes; the order of the images does not matter.

    Every image of a set of up to WHOLE bytes is read. Of a larger set a keyed sample of SAMPLE images is read, and the
    digest depends on all names, sizes and times.

    Args:
        names: What an image is and where it belongs, such as train/cat/0.png.
        sizes: Bytes of each image.
        read: Returns an image's bytes by its number. It is called from several threads.
        times: When each image was last modified, in whole seconds.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    is_small = sum(sizes) <= WHOLE
    numbers = order if is_small else random.Random(seed_of("digest", len(order))).sample(order, min(SAMPLE, len(order)))
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(lambda number: hashlib.sha256(read(number)).hexdigest(), numbers))
    listing = [
        b"%s %s\n" % (encoded_name(names[number]), value.encode())
        for number, value in zip(numbers, hashes, strict=True)
    ]
    if not is_small:
        seconds = times or [0] * len(names)
        listing += [b"%s %d %d\n" % (encoded_name(names[n]), sizes[n], seconds[n]) for n in order]
    return digest_of(*listing)


def remembered(kind: str, key: Sequence[object], make: Callable[[], T], keep: Callable[[T], bool] = bool) -> T:
    """Return what `make` returns, from the user's cache if it was made with the same key before.

    Args:
        kind: The kind of value, a part of the file's name.
        key: Everything that the value depends on, as JSON values.
        make: Returns the value, a JSON value.
        keep: Whether a value may be remembered.
    """
    text = json.dumps(key, separators=(",", ":"))
    path = cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if _use_memory.get():
        with contextlib.suppress(OSError, ValueError):
            return cast(T, json.loads(path.read_text("utf-8"))["value"])
    value = make()
    if keep(value):
        with contextlib.suppress(OSError):  # a full or read-only disk: it is made again next time
            write_cached(path, lambda temp_path: temp_path.write_text(json.dumps({"value": value}), "utf-8"))
    return value


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Read all images again inside the context, ignoring cached values."""
    token = _use_memory.set(False)
    try:
        yield
    finally:
        _use_memory.reset(token)


def write_cached(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file into the cache, complete or not at all. Raise OSError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
