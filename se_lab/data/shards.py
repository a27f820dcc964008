"""Webdataset shards: tars of images with their labels, on this machine or behind s3://, http:// and what fsspec knows.

A shard is read once to index its images; after that each image is read by its range of bytes, a whole batch at a
time, and only the index is kept on disk. So the order is the full permutation of (seed, epoch), as for every other
set, not that of a shuffle buffer: it does not depend on the number of workers or devices, and an interrupted epoch
resumes at once where it stopped.
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

from se_lab.data.base import DataError, counted
from se_lab.data.digests import WHOLE, content_digest, digest_of, encoded_name, remembered, write_cached
from se_lab.data.images import EncodedData
from se_lab.spec import DataSpec, expand_path
from se_lab.store import cache_folder

NO_LABEL = -(2**31)
AT_ONCE = 8
"""Shards that are indexed at the same time."""
VALIDATORS = ("mtime", "ino", "ETag", "LastModified", "Last-Modified", "Content-MD5", "Digest", "generation", "md5Hash")
"""What file systems say of a file that changes with its content; a server may say none of it."""


class ShardData(EncodedData):
    """wds:TRAIN,TEST or wds:TRAIN,VAL,TEST, each a shard or several in braces, such as train-{000..127}.tar.

    A sample has one image, KEY.jpg, KEY.png or the like, and its class number in KEY.cls, or under "label" in KEY.json;
    KEY.mask.png is no image. The number of classes is one more than the highest label of a training image, or the
    number of lines of a classnames.txt beside the first shard.
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
        with ThreadPoolExecutor(AT_ONCE) as pool:
            versions = [list(pool.map(_version, urls)) for urls in parts]
        small = sum(version[0] for part in versions for version in part) <= WHOLE
        indexed = [_index(urls, of, base, small) for urls, of in zip(parts, versions, strict=True)]
        train, test = indexed[0], indexed[-1]
        names = _class_names(parts[0][0])
        count = len(names) or max([-1, *train.labels]) + 1
        if count < 2:
            raise DataError(
                f"{spec.name} has {counted(len(train.labels), 'training image')} of "
                f"{counted(count, 'class', 'classes')}; training needs two classes"
            )
        if not names and (empty := sorted(set(range(count)) - set(train.labels))):
            raise DataError(
                f"{spec.name} has no training image of {len(empty)} of {count} classes: "
                f"{', '.join(map(str, empty[:10]))}; class numbers go from 0 on without gaps, or a classnames.txt says "
                "what they are"
            )
        self.classes = [str(number) for number in range(count)]
        self._class_names = names or self.classes
        bad: dict[str, str] = {}
        for index in indexed:
            bad |= index.problems
            for name, label in zip(index.names, index.labels, strict=True):
                if label == NO_LABEL:
                    bad.setdefault(name, "it has no label in .cls or .json")
                elif not 0 <= label < count:
                    bad.setdefault(name, f"its label is {label}, and there are {count} classes from 0 on")
        self._indexed, self._versions = indexed, versions
        self.set_splits(train, indexed[1] if len(indexed) == 3 else None, test, bad)

    def class_names(self) -> list[str]:
        """Return the lines of classnames.txt, or the numbers."""
        return self._class_names

    def identify(self) -> str:
        """Return the digest of the images' bytes, names and labels, wherever the shards lie."""
        shards = self._indexed
        names = [f"{name} {label}" for one in shards for name, label in zip(one.names, one.labels, strict=True)]
        if all(one.hashes for one in shards):
            hashes = [found for one in shards for found in one.hashes]
            lines = (f"{name} {found}\n" for name, found in zip(names, hashes, strict=True))
            return digest_of(*sorted(map(encoded_name, lines)))
        sizes = [size for one in shards for size in one.places[:, 2].tolist()]
        places = [(one, number) for one in shards for number in range(len(one.names))]

        def make() -> str:
            return content_digest(names, sizes, lambda number: places[number][0].read([places[number][1]])[0])

        if not all(len(version) > 1 for part in self._versions for version in part):
            return make()
        return remembered("images", [[one.urls for one in shards], self._versions], make)


@dataclass(frozen=True)
class Shards:
    """Images in tars, by the range of bytes where each lies."""

    urls: list[str]
    names: list[str]
    labels: list[int]
    places: np.ndarray[Any, np.dtype[np.int64]]
    """(N, 3): the image's shard, its first byte and its size."""
    hashes: list[str] = field(default_factory=list)
    """SHA-256 of each image; empty for large sets."""
    problems: dict[str, str] = field(default_factory=dict)
    """Images that cannot be used, with the reason."""

    @property
    def check_first(self) -> bool:
        """Whether the shards are on this machine."""
        return "://" not in self.urls[0]

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers, all fetched at the same time."""
        places = self.places[list(numbers)].tolist()
        urls = [self.urls[shard] for shard, _, _ in places]
        found = _fetch(urls, [first for _, first, _ in places], [first + size for _, first, size in places])
        for url, content, (_, _, size) in zip(urls, found, places, strict=True):
            if len(content) != size:
                raise DataError(
                    f"{url} returned {len(content)} bytes instead of {size}: the file has changed, or its server does "
                    "not serve ranges of bytes"
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
    return [url if "://" in url else str(expand_path(url, root).resolve()) for url in urls]


def _common(folders: list[str]) -> str:
    """Return the folder that contains all folders; os.path would split s3://."""
    split = [folder.split("/") for folder in folders]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False))
    return "/".join(parts[0] for parts in same)


def _class_names(first_shard: str) -> list[str]:
    fs, path = _file_system(first_shard)
    names = f"{path.rpartition('/')[0]}/classnames.txt"
    return fs.cat_file(names).decode().splitlines() if fs.exists(names) else []


def _index(urls: list[str], versions: list[list[Any]], base: str, hashed: bool) -> Shards:
    """Index shards, or take the index that an earlier look at the same files has kept.

    Args:
        urls: The shards.
        versions: Their sizes and what else tells whether they have changed; without that, they are indexed again.
        base: The folder that names are relative to.
        hashed: Whether to hash the images.
    """
    known = all(len(version) > 1 for version in versions)
    digest = hashlib.sha256(json.dumps([2, urls, versions, hashed]).encode()).hexdigest()[:32]
    cache = cache_folder() / f"shards-{digest}.npz"
    arrays = _kept(cache) if known else None
    if arrays is None:
        if "://" in urls[0] or len(urls) > AT_ONCE:
            print(f"indexing {counted(len(urls), 'shard')}: {urls[0]} …", file=sys.stderr)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(_samples, urls, [hashed] * len(urls)))
        samples = [(number, sample) for number, shard in enumerate(found) for sample in shard]
        if not samples:
            raise DataError(f"{urls[0]}{f' and {len(urls) - 1} more' if len(urls) > 1 else ''}: no image in the shards")
        arrays = {
            "keys": np.array([one.key for _, one in samples]),
            "labels": np.array([one.label for _, one in samples], np.int64),
            "places": np.array([(number, *one.place) for number, one in samples], np.int64),
            "hashes": np.array([one.hash for _, one in samples]),
            "problems": np.array([one.problem for _, one in samples]),
        }
        if known:
            _keep(cache, arrays)
    short = [url[len(base) :].lstrip("/") for url in urls]
    keys, places = arrays["keys"].tolist(), arrays["places"]
    names = [f"{short[shard]}/{key}" for shard, key in zip(places[:, 0].tolist(), keys, strict=True)]
    problems = {name: problem for name, problem in zip(names, arrays["problems"].tolist(), strict=True) if problem}
    return Shards(urls, names, arrays["labels"].tolist(), places, arrays["hashes"].tolist() if hashed else [], problems)


def _kept(cache: Path) -> dict[str, np.ndarray[Any, Any]] | None:
    try:
        with np.load(cache) as found:
            return {name: found[name] for name in ("keys", "labels", "places", "hashes", "problems")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(cache: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    try:
        write_cached(cache, write)
    except OSError as error:
        print(f"{cache} cannot be written ({error}): the shards will be indexed again next time", file=sys.stderr)


def _version(url: str) -> list[Any]:
    """Return a shard's size, and whatever else changes when its content does."""
    fs, path = _file_system(url)
    try:
        info = fs.info(path)
    except Exception as error:  # whatever the file system behind the URL raises
        raise DataError(f"{url} is missing, or cannot be reached: {error!r}") from error
    return [int(info.get("size") or 0), *(f"{key} {info[key]}" for key in VALIDATORS if info.get(key) is not None)]


@dataclass
class _Sample:
    key: str
    place: tuple[int, int] = (0, 0)
    """First byte and size of the image."""
    label: int = NO_LABEL
    hash: str = ""
    problem: str = ""
    image: str = ""
    """The extension of the image."""
    other: str = ""
    """An extension such as mask.png, which is no image of the sample."""

    def take_image(self, extension: str, place: tuple[int, int]) -> None:
        if self.image:
            self.problem = self.problem or f"it has two images, .{self.image} and .{extension}"
        else:
            self.image, self.place = extension, place

    def take_label(self, extension: str, content: bytes) -> None:
        label, problem = _label(content, extension)
        if label != self.label and NO_LABEL not in (label, self.label):
            problem = problem or f"it has two labels, {self.label} and {label} in .cls and .json"
        self.problem = self.problem or problem
        self.label = label if self.label == NO_LABEL else self.label


def _samples(url: str, hashed: bool) -> list[_Sample]:
    """Return the samples of a shard that have an image."""
    fs, path = _file_system(url)
    found: list[_Sample] = []
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # which tarfile would keep, all of them
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not (member.isfile() and stem and dot):
                    continue
                key = f"{folder}/{stem}".lstrip("/")
                if not found or found[-1].key != key:
                    found.append(_Sample(key))
                sample, extension = found[-1], extension.lower()
                if extension in ("cls", "json"):
                    sample.take_label(extension, _content(tar, member))
                elif f".{extension}" in IMG_EXTENSIONS:
                    sample.take_image(extension, (member.offset_data, member.size))
                    if hashed:
                        sample.hash = hashlib.sha256(_content(tar, member)).hexdigest()
                elif f".{extension.rpartition('.')[2]}" in IMG_EXTENSIONS:
                    sample.other = extension
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{url} is no whole tar without compression: {error}") from error
    for sample in found:
        if not sample.image and sample.other:
            sample.problem = f"it has no image but .{sample.other}; an image's name is KEY.jpg, KEY.png or the like"
    return [sample for sample in found if sample.image or sample.other]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None
    return content.read()


def _label(content: bytes, extension: str) -> tuple[int, str]:
    """Return the label of a .cls or a .json, or NO_LABEL; and what is wrong with it, or an empty string."""
    if extension == "cls":
        given: Any = content.decode("utf-8", "backslashreplace").strip()
    else:
        try:
            about = json.loads(content)
        except ValueError as error:
            return NO_LABEL, f"its .json is no JSON ({error})"
        if not isinstance(about, dict) or "label" not in about:
            return NO_LABEL, ""
        given = about["label"]
    if isinstance(given, str) and re.fullmatch(r"[+-]?[0-9]{1,10}", given):
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 2**31:
        return given, ""
    return NO_LABEL, f"its label is {str(given)[:40]!r} in .{extension}; a label is an integer, such as 3"
