"""Webdataset shards: tar files of images and labels, local or at fsspec URLs.

A shard is read once to index its images; then images are read by their byte ranges, a batch at a time, and only the
index is stored on disk. The order is therefore the permutation of (seed, epoch) over all images, without a shuffle
buffer: it does not depend on the number of workers or devices, and an interrupted epoch resumes immediately.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from se_lab.data.base import DataError
from se_lab.data.digests import WHOLE, content_digest, digest_of, encoded_name, load_or_make, write_cached
from se_lab.data.images import EncodedData
from se_lab.spec import DataSpec, expand_path
from se_lab.spec.text import counted, listed
from se_lab.store import cache_folder

NO_LABEL = -(2**31)
AT_ONCE = 8
"""Number of shards that are indexed at the same time."""
VALIDATORS = ("mtime", "ino", "ETag", "LastModified", "Last-Modified", "Content-MD5", "Digest", "generation", "md5Hash")
"""Fields of a file's info that change with the file's content; a server may provide none of them."""


class ShardData(EncodedData):
    """A data set wds:TRAIN,TEST or wds:TRAIN,VAL,TEST of shards such as train-{000..127}.tar.

    A sample has one image, such as KEY.jpg or KEY.png (but not KEY.mask.png), and a class number in KEY.cls or under
    "label" in KEY.json. The number of classes is the highest training label plus one, or the number of lines in
    classnames.txt beside the first shard.
    """

    def __init__(self, spec: DataSpec, seed: int, root: str | Path, workers: int) -> None:
        super().__init__(spec, seed, workers)
        parts = [_expand(part, root) for part in re.split(r",(?![^{]*\})", spec.name.removeprefix("wds:"))]
        if not 2 <= len(parts) <= 3:
            raise DataError(
                f"data.name is {spec.name!r}; it must name training and test shards, or training, validation and test "
                "shards, separated by commas, such as wds:train-{000..127}.tar,test-{00..07}.tar"
            )
        folders = [url.rpartition("/")[0] for part in parts for url in part]
        base = _common(folders)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            versions = [list(pool.map(_version, urls)) for urls in parts]
        is_small = sum(version[0] for part in versions for version in part) <= WHOLE
        shards = [_index(urls, stamps, base, is_small) for urls, stamps in zip(parts, versions, strict=True)]
        train, test = shards[0], shards[-1]
        names = _class_names(parts[0][0])
        count = len(names) or max([-1, *train.labels]) + 1
        if count < 2:
            raise DataError(
                f"{spec.name} has {counted(len(train.labels), 'training image')} of "
                f"{counted(count, 'class', 'classes')}; training needs at least two"
            )
        if not names and (empty := sorted(set(range(count)) - set(train.labels))):
            raise DataError(
                f"{spec.name} has no training images of {len(empty)} of {count} classes: "
                f"{', '.join(map(str, empty[:10]))}; number classes from 0 on without gaps, or add classnames.txt"
            )
        self.classes = [str(number) for number in range(count)]
        self._class_names = names or self.classes
        bad: dict[str, str] = {}
        for index in shards:
            bad |= index.problems
            for name, label in zip(index.names, index.labels, strict=True):
                if label == NO_LABEL:
                    bad.setdefault(name, "it has no label in .cls or .json")
                elif not 0 <= label < count:
                    bad.setdefault(name, f"its label is {label}; it must be from 0 to {count - 1}")
        self._indexed, self._versions = shards, versions
        self.set_splits(train, shards[1] if len(shards) == 3 else None, test, bad)

    def class_names(self) -> list[str]:
        """Return the lines of classnames.txt, or the class numbers."""
        return self._class_names

    def identify(self) -> str:
        """Return the digest of the images' bytes, names and labels, wherever the shards are."""
        shards = self._indexed
        names = [f"{name} {label}" for split in shards for name, label in zip(split.names, split.labels, strict=True)]
        if all(split.hashes for split in shards):
            hashes = [digest for split in shards for digest in split.hashes]
            lines = (f"{name} {digest}\n" for name, digest in zip(names, hashes, strict=True))
            return digest_of(*sorted(map(encoded_name, lines)))
        sizes = [size for split in shards for size in split.places[:, 2].tolist()]
        places = [(split, number) for split in shards for number in range(len(split.names))]

        def make() -> str:
            return content_digest(names, sizes, lambda number: places[number][0].read([places[number][1]])[0])

        if not all(len(version) > 1 for part in self._versions for version in part):
            return make()
        return load_or_make("images", [[split.urls for split in shards], self._versions], make)


@dataclass(frozen=True)
class Shards:
    """Images in tar files, with their byte ranges."""

    urls: list[str]
    names: list[str]
    labels: list[int]
    places: np.ndarray[Any, np.dtype[np.int64]]
    """The shard, first byte and size of each image, (N, 3)."""
    hashes: list[str] = field(default_factory=list)
    """The SHA-256 of each image; empty for large data sets."""
    problems: dict[str, str] = field(default_factory=dict)
    """Unusable images, {name: reason}."""

    @property
    def check_first(self) -> bool:
        """Whether the shards are local files."""
        return "://" not in self.urls[0]

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers, fetched concurrently."""
        places = self.places[list(numbers)].tolist()
        urls = [self.urls[shard] for shard, _, _ in places]
        contents = _fetch(urls, [first for _, first, _ in places], [first + size for _, first, size in places])
        for url, content, (_, _, size) in zip(urls, contents, places, strict=True):
            if len(content) != size:
                raise DataError(
                    f"{url} returned {len(content)} of {size} bytes: the file has changed, or the server does "
                    "not support byte ranges"
                )
        return contents


def _fetch(urls: list[str], starts: list[int], ends: list[int], tries: int = 3) -> list[bytes]:
    fs, _ = _file_system(urls[0])
    paths = [fs._strip_protocol(url) for url in urls]
    for tries_left in reversed(range(tries)):
        contents = fs.cat_ranges(paths, starts, ends, on_error="return")
        if not (failures := [n for n, content in enumerate(contents) if isinstance(content, Exception)]):
            return list(contents)
        if not tries_left:
            raise DataError(f"{urls[failures[0]]} cannot be read: {contents[failures[0]]!r}")
    raise AssertionError


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url)  # fsspec keeps one per process, and a new one after a fork
    except ImportError as error:
        raise DataError(f"{url} needs a missing package ({error}): pip install 'se-lab[shards]'") from error
    except ValueError as error:
        raise DataError(f"{url} cannot be opened: {error}") from error
    return fs, path


def _expand(pattern: str, root: str | Path) -> list[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise DataError("wds: needs a missing package: pip install 'se-lab[shards]'") from error
    try:
        urls = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern} cannot be expanded: {error}") from error
    return [url if "://" in url else str(expand_path(url, root).resolve()) for url in urls]


def _common(folders: list[str]) -> str:
    """Return the common parent of folders or URLs; os.path would split s3://."""
    paths = [folder.split("/") for folder in folders]
    prefix = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "/".join(parts[0] for parts in prefix)


def _class_names(first_shard: str) -> list[str]:
    fs, path = _file_system(first_shard)
    names = f"{path.rpartition('/')[0]}/classnames.txt"
    return fs.cat_file(names).decode().splitlines() if fs.exists(names) else []


def _index(urls: list[str], versions: list[list[Any]], base: str, hashed: bool) -> Shards:
    """Return the images of shards, from the cached index if the shards have not changed.

    Args:
        urls: The shards.
        versions: The results of `_version`; shards with a size only are not cached.
        base: The folder that names are relative to.
        hashed: Whether to hash the images.
    """
    is_cacheable = all(len(version) > 1 for version in versions)
    digest = hashlib.sha256(json.dumps([2, urls, versions, hashed]).encode()).hexdigest()[:32]
    cache = cache_folder() / f"shards-{digest}.npz"
    arrays = _load_index(cache) if is_cacheable else None
    if arrays is None:
        if "://" in urls[0] or len(urls) > AT_ONCE:
            print(f"indexing {counted(len(urls), 'shard')}: {urls[0]} …", file=sys.stderr)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(_samples, urls, [hashed] * len(urls)))
        samples = [(number, sample) for number, shard in enumerate(results) for sample in shard]
        if not samples:
            raise DataError(f"{listed(urls, 1)}: no images in shards")
        arrays = {
            "keys": np.array([item.key for _, item in samples]),
            "labels": np.array([item.label for _, item in samples], np.int64),
            "places": np.array([(number, *item.place) for number, item in samples], np.int64),
            "hashes": np.array([item.hash for _, item in samples]),
            "problems": np.array([item.problem for _, item in samples]),
        }
        if is_cacheable:
            _save_index(cache, arrays)
    paths = [url[len(base) :].lstrip("/") for url in urls]
    keys, places = arrays["keys"].tolist(), arrays["places"]
    names = [f"{paths[shard]}/{key}" for shard, key in zip(places[:, 0].tolist(), keys, strict=True)]
    problems = {name: problem for name, problem in zip(names, arrays["problems"].tolist(), strict=True) if problem}
    return Shards(urls, names, arrays["labels"].tolist(), places, arrays["hashes"].tolist() if hashed else [], problems)


def _load_index(cache: Path) -> dict[str, np.ndarray[Any, Any]] | None:
    try:
        with np.load(cache) as archive:
            return {name: archive[name] for name in ("keys", "labels", "places", "hashes", "problems")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save_index(cache: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    def write(temp_path: Path) -> None:
        with temp_path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    try:
        write_cached(cache, write)
    except OSError as error:
        print(f"{cache} cannot be written ({error}): the shards will be indexed again next time", file=sys.stderr)


def _version(url: str) -> list[Any]:
    """Return a shard's size, and its fields that change with its content (VALIDATORS)."""
    fs, path = _file_system(url)
    try:
        info = fs.info(path)
    except Exception as error:  # fsspec's file systems can raise any exception
        raise DataError(f"{url} is missing or cannot be reached: {error!r}") from error
    return [int(info.get("size") or 0), *(f"{key} {info[key]}" for key in VALIDATORS if info.get(key) is not None)]


@dataclass
class _Sample:
    key: str
    place: tuple[int, int] = (0, 0)
    """The first byte and the size of the image."""
    label: int = NO_LABEL
    hash: str = ""
    problem: str = ""
    image: str = ""
    """The extension of the image."""
    other: str = ""
    """An extension such as mask.png, which is not that of the image."""

    def take_image(self, extension: str, place: tuple[int, int]) -> None:
        if self.image:
            self.problem = self.problem or f"it has two images, .{self.image} and .{extension}"
        else:
            self.image, self.place = extension, place

    def take_label(self, extension: str, content: bytes) -> None:
        label, problem = _label(content, extension)
        if label != self.label and NO_LABEL not in (label, self.label):
            problem = problem or f"its labels in .cls and .json differ: {self.label} and {label}"
        self.problem = self.problem or problem
        self.label = label if self.label == NO_LABEL else self.label


def _samples(url: str, hashed: bool) -> list[_Sample]:
    """Return the samples of a shard that have an image."""
    fs, path = _file_system(url)
    samples: list[_Sample] = []
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all members in memory
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not (member.isfile() and stem and dot):
                    continue
                key = f"{folder}/{stem}".lstrip("/")
                if not samples or samples[-1].key != key:
                    samples.append(_Sample(key))
                sample, extension = samples[-1], extension.lower()
                if extension in ("cls", "json"):
                    sample.take_label(extension, _content(tar, member))
                elif f".{extension}" in IMG_EXTENSIONS:
                    sample.take_image(extension, (member.offset_data, member.size))
                    if hashed:
                        sample.hash = hashlib.sha256(_content(tar, member)).hexdigest()
                elif f".{extension.rpartition('.')[2]}" in IMG_EXTENSIONS:
                    sample.other = extension
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{url} is not a complete, uncompressed tar file: {error}") from error
    for sample in samples:
        if not sample.image and sample.other:
            sample.problem = f"it has .{sample.other} but no image, such as KEY.jpg or KEY.png"
    return [sample for sample in samples if sample.image or sample.other]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None
    return content.read()


def _label(content: bytes, extension: str) -> tuple[int, str]:
    """Return the label in a .cls or .json file, or NO_LABEL, and a problem, or an empty string."""
    if extension == "cls":
        value: Any = content.decode("utf-8", "backslashreplace").strip()
    else:
        try:
            fields = json.loads(content)
        except ValueError as error:
            return NO_LABEL, f"its .json is not valid JSON ({error})"
        if not isinstance(fields, dict) or "label" not in fields:
            return NO_LABEL, ""
        value = fields["label"]
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:
        return value, ""
    return NO_LABEL, f"its label is {str(value)[:40]!r} in .{extension}; it must be an integer, such as 3"
