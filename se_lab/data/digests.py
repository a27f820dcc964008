"""Digests of data sets, computed from the images' bytes and cached for unchanged files."""

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
"""Maximum size in bytes of a data set of which all images are read for the digest."""
SAMPLE = 2_000
"""Number of images of a larger data set that are read for the digest."""

T = TypeVar("T")

_use_memory = contextvars.ContextVar("_use_memory", default=True)


def digest_of(*parts: bytes) -> str:
    """Return the digest of some bytes: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def encoded_name(name: str) -> bytes:
    """Return a file name as bytes; it need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def content_digest(
    names: Sequence[str], sizes: Sequence[int], read: Callable[[int], bytes], times: Sequence[int] = ()
) -> str:
    """Return the digest of a data set, which does not depend on the order of the images.

    Up to WHOLE bytes, all images are read. For a larger data set, a fixed random sample of SAMPLE images is read, and
    the digest also depends on the names, sizes and times of all images.

    Args:
        names: A name for each image that includes split and class, such as train/cat/0.png.
        sizes: The size of each image in bytes.
        read: Returns the bytes of an image, given its number; it is called from several threads.
        times: The time of each image's last modification, in whole seconds.
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


def load_or_make(kind: str, key: Sequence[object], make: Callable[[], T], keep: Callable[[T], bool] = bool) -> T:
    """Return the result of `make`, which is cached by `key` in the user's cache folder.

    Args:
        kind: The kind of value, which is part of the file's name.
        key: All that the value depends on, as JSON values.
        make: Computes the value, a JSON value.
        keep: Returns whether a value may be cached.
    """
    text = json.dumps(key, separators=(",", ":"))
    path = cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if _use_memory.get():
        with contextlib.suppress(OSError, ValueError):
            return cast(T, json.loads(path.read_text("utf-8"))["value"])
    value = make()
    if keep(value):
        with contextlib.suppress(OSError):  # on a full or read-only disk, the value is not cached
            write_cached(path, lambda temp_path: temp_path.write_text(json.dumps({"value": value}), "utf-8"))
    return value


@contextlib.contextmanager
def ignore_cache() -> Iterator[None]:
    """Ignore cached values inside the context."""
    token = _use_memory.set(False)
    try:
        yield
    finally:
        _use_memory.reset(token)


def write_cached(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file to the cache atomically; raise OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
