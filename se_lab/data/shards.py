"""Webdataset shards: tars of images with their labels, on this machine or behind s3://, http:// and what fsspec knows.

A shard is read through once, to learn where its images lie; after that each image is read by its range of bytes, a
whole batch at a time, and nothing is kept on disk. So the order is the full permutation of (seed, epoch) as for every
other set, not that of a shuffle buffer: it depends on no number of workers or devices, and an interrupted epoch goes
on at once where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from se_lab.data.base import DataError, digest_of
from se_lab.data.images import EncodedData
from se_lab.spec import DataSpec

UNLABELLED = -(2**31)
AT_ONCE = 8
"""Shards that are read through at the same time."""


class ShardData(EncodedData):
    """wds:TRAIN,TEST or wds:TRAIN,VAL,TEST, each a shard or several in braces, such as train-{000..127}.tar.

    A sample has an image (.jpg, .png, …) and its class number in .cls, or under "label" in .json. The number of
    classes is one more than the highest of a training image, or the lines of a classnames.txt beside the first shard.
    """

    def __init__(self, spec: DataSpec, seed: int, root: str | Path, workers: int) -> None:
        super().__init__(spec, seed, workers)
        parts = [_expand(part, root) for part in re.split(r",(?![^{]*\})", spec.name.removeprefix("wds:"))]
        if not 2 <= len(parts) <= 3:
            raise DataError(
                f"data.name is {spec.name!r}; it names training and test shards, or training, validation and test "
                "shards, with commas between them: wds:train-{000..127}.tar,test-{00..07}.tar"
            )
        folders = [url.rpartition("/")[0] for part in parts for url in part]
        base = _common(folders)
        indexed = [_index(urls, base) for urls in parts]
        train, test = indexed[0], indexed[-1]
        names = _class_names(parts[0][0])
        count = len(names) or max([-1, *train.labels]) + 1
        if count < 2:
            raise DataError(f"{spec.name} has {len(train.labels)} training images of {count} class(es); two are needed")
        if not names and (empty := sorted(set(range(count)) - set(train.labels))):
            raise DataError(
                f"{spec.name} has no training image of {len(empty)} of {count} classes: "
                f"{', '.join(map(str, empty[:10]))}; class numbers go from 0 on without gaps, or a classnames.txt says "
                "what they are"
            )
        self.classes = [str(number) for number in range(count)]
        self._class_names = names or self.classes
        self.digest = digest_of(*(index.identity for index in indexed))
        bad: dict[str, str] = {}
        for index in indexed:
            for name, label in zip(index.names, index.labels, strict=True):
                if label == UNLABELLED:
                    bad[name] = "it has no label in .cls or .json"
                elif not 0 <= label < count:
                    bad[name] = f"its label is {label}, and there are {count} classes from 0 on"
        self.set_splits(train, indexed[1] if len(indexed) == 3 else None, test, bad)

    def class_names(self) -> list[str]:
        """Return the lines of classnames.txt, or the numbers."""
        return self._class_names


@dataclass(frozen=True)
class Shards:
    """Images in tars, by the range of bytes where each lies."""

    urls: list[str]
    names: list[str]
    labels: list[int]
    places: np.ndarray[Any, np.dtype[np.int64]]
    """(N, 3): the image's shard, its first byte and its size."""

    @property
    def remote(self) -> bool:
        """Whether the shards are on another machine."""
        return "://" in self.urls[0]

    @cached_property
    def identity(self) -> bytes:
        """What tells these images from others, wherever they lie."""
        listing = zip(self.names, self.places[:, 2].tolist(), self.labels, strict=True)
        return json.dumps(list(listing)).encode()

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers, all fetched at the same time."""
        places = self.places[list(numbers)].tolist()
        urls = [self.urls[shard] for shard, _, _ in places]
        found = _fetch(urls, [first for _, first, _ in places], [first + size for _, first, size in places])
        for url, content, (_, _, size) in zip(urls, found, places, strict=True):
            if len(content) != size:
                raise DataError(
                    f"{url} gave {len(content)} bytes where {size} were asked for: the file has changed, or its "
                    "server does not serve ranges of bytes"
                )
        return found


def _fetch(urls: list[str], starts: list[int], ends: list[int], tries: int = 3) -> list[bytes]:
    fs, _ = _file_system(urls[0])
    paths = [fs._strip_protocol(url) for url in urls]
    for left in reversed(range(tries)):
        found = fs.cat_ranges(paths, starts, ends, on_error="return")
        if not (failed := [n for n, content in enumerate(found) if isinstance(content, Exception)]):
            return list(found)
        if not left:
            raise DataError(f"{urls[failed[0]]} cannot be read: {found[failed[0]]!r}")
    raise AssertionError


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url)  # fsspec keeps one a process, and makes a new one after a fork
    except ImportError as error:
        raise DataError(f"{url} needs a package that is missing ({error}): pip install 'se-lab[shards]'") from error
    except ValueError as error:
        raise DataError(f"{url} cannot be opened: {error}") from error
    return fs, path


def _expand(pattern: str, root: str | Path) -> list[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise DataError("wds: needs a package that is missing: pip install 'se-lab[shards]'") from error
    try:
        urls = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern} cannot be expanded: {error}") from error
    return [url if "://" in url else str(Path(root, url).expanduser().resolve()) for url in urls]


def _common(folders: list[str]) -> str:
    """Return the folder that all lie in; os.path would take s3:// apart."""
    split = [folder.split("/") for folder in folders]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False))
    return "/".join(parts[0] for parts in same)


def _class_names(first_shard: str) -> list[str]:
    fs, path = _file_system(first_shard)
    names = f"{path.rpartition('/')[0]}/classnames.txt"
    return fs.cat_file(names).decode().splitlines() if fs.exists(names) else []


def _index(urls: list[str], base: str) -> Shards:
    """Read through shards, or take what an earlier look at the very same files found."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        versions = list(pool.map(_version, urls))
        digest = hashlib.sha256(json.dumps([urls, versions]).encode()).hexdigest()[:32]
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "se-lab" / f"shards-{digest}.npz"
        try:
            with np.load(cache) as found:
                keys, labels, places = (found[name] for name in ("keys", "labels", "places"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            if "://" in urls[0] or len(urls) > AT_ONCE:
                print(f"reading through {len(urls)} shard(s) once: {urls[0]} …", file=sys.stderr)
            samples = [(n, *sample) for n, shard in enumerate(pool.map(_samples, urls)) for sample in shard]
            if not samples:
                raise DataError(f"{urls[0]} and {len(urls) - 1} more shards have no image") from None
            keys = np.array([key for _, key, _, _, _ in samples])
            labels = np.array([label for *_, label in samples], np.int64)
            places = np.array([(n, first, size) for n, _, first, size, _ in samples], np.int64)
            _keep(cache, keys=keys, labels=labels, places=places)
    short = [url[len(base) :].lstrip("/") for url in urls]
    names = [f"{short[shard]}/{key}" for shard, key in zip(places[:, 0].tolist(), keys.tolist(), strict=True)]
    return Shards(urls, names, labels.tolist(), places)


def _version(url: str) -> list[str]:
    fs, path = _file_system(url)
    try:
        info = fs.info(path)
    except Exception as error:  # whatever the file system behind the URL raises
        raise DataError(f"{url} is missing, or cannot be reached: {error!r}") from error
    return [str(info.get(key)) for key in ("size", "mtime", "ETag", "LastModified")]


def _samples(url: str) -> list[tuple[str, int, int, int]]:
    """Return key, first byte, size and label of each sample of a shard."""
    fs, path = _file_system(url)
    found: list[tuple[str, int, int, int]] = []
    key, place, label = "", (0, 0), UNLABELLED

    def end() -> None:
        if place != (0, 0):
            found.append((key, *place, label))

    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # which tarfile would keep, all of them
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not (member.isfile() and stem and dot):
                    continue
                if key != (name := f"{folder}/{stem}".lstrip("/")):
                    end()
                    key, place, label = name, (0, 0), UNLABELLED
                extension = extension.lower()
                if extension == "cls" or extension == "json":
                    content = tar.extractfile(member)
                    assert content is not None
                    label = _label(content.read(), extension, label)
                elif f".{extension.rpartition('.')[2]}" in IMG_EXTENSIONS:
                    place = (member.offset_data, member.size)
            end()
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{url} is no whole tar without compression: {error}") from error
    return found


def _label(content: bytes, extension: str, before: int) -> int:
    try:
        label = int(content if extension == "cls" else json.loads(content)["label"])
        return label if abs(label) < 2**31 else UNLABELLED
    except (ValueError, KeyError, TypeError):
        return before


def _keep(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """Write what was found for the next time, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        Path(file.name).replace(path)
    except OSError as error:
        print(f"{path} cannot be written ({error}): the shards will be read through again next time", file=sys.stderr)
