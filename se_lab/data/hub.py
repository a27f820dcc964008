"""Hugging Face data sets: local folders, with random access, or streamed from the hub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from se_lab.data.base import Batches, DataError
from se_lab.data.digests import WHOLE, content_digest, digest_of, load_or_make
from se_lab.data.images import EncodedBatches, EncodedData, Item, Key, make_item, no_item
from se_lab.spec import DataSpec, expand_path, seed_of

SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
BUFFER = 4096
"""Number of images in the buffer that shuffles a streamed training split."""


def open_hub(spec: DataSpec, seed: int, root: str | Path, workers: int) -> EncodedData:
    """Open hf:PATH (a folder for `load_from_disk` or `load_dataset`) or hf:NAME (streamed).

    Raises:
        DataError: if the data set does not exist, has no images or labels, or lacks a split.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("hf: needs a missing package: pip install 'se-lab[shards]'") from error
    name = spec.name.removeprefix("hf:")
    path = expand_path(name, root)
    try:
        if (path / "dataset_dict.json").exists():
            return HubData(spec, seed, workers, datasets.load_from_disk(str(path)))
        if path.is_dir():
            return HubData(spec, seed, workers, datasets.load_dataset(str(path)))
        return StreamedData(spec, seed, workers, datasets.load_dataset(name, streaming=True))
    except DataError:
        raise
    except Exception as error:  # the readers and the network can raise any exception
        raise DataError(f"{spec.name} cannot be opened as the folder {path}, nor from the hub: {error}") from error


class HubData(EncodedData):
    """A data set in a local folder, with the permutation of (seed, epoch) over all images."""

    def __init__(self, spec: DataSpec, seed: int, workers: int, tables: Mapping[str, Any]) -> None:
        super().__init__(spec, seed, workers)
        image, label, self.classes = _columns(spec.name, next(iter(tables.values())).features)
        sources = {split: Rows(tables[name], name, image, label) for split, name in _names(tables).items()}
        sources = {split: rows for split, rows in sources.items() if split == "train" or max(rows.labels) >= 0}
        if not self.classes:
            self.classes = [str(number) for number in range(max(sources["train"].labels) + 1)]
        eval_splits = _held_out(spec.name, sources)
        count = len(self.classes)
        bad = {
            name: f"its label is {label}; it must be from 0 to {count - 1}"
            for rows in sources.values()
            for name, label in zip(rows.names, rows.labels, strict=True)
            if not 0 <= label < count
        }
        val = sources[eval_splits[0]] if len(eval_splits) == 2 else None
        self.rows = sources
        self.set_splits(sources["train"], val, sources[eval_splits[-1]], bad)

    def identify(self) -> str:
        """Return the digest of the encoded images and their labels, cached for unchanged tables."""
        places = [(rows, number) for rows in self.rows.values() for number in range(len(rows.labels))]
        names = [f"{rows.names[number]} {rows.labels[number]}" for rows, number in places]
        size = sum(rows.size for rows in self.rows.values()) // max(len(names), 1)

        def read(number: int) -> bytes:
            rows, place = places[number]
            return rows.read([place])[0]

        def make() -> str:
            return content_digest(names, [size] * len(names), read)

        return load_or_make("images", [WHOLE, names, *(rows.status() for rows in self.rows.values())], make)


class Rows:
    """The encoded images and the labels of a split."""

    check_first = True

    def __init__(self, rows: Any, name: str, image: str, label: str) -> None:
        from datasets import Image

        self.size = int(rows.data.nbytes)
        """The size of the table in bytes, without images in separate files."""
        self.rows, self.image = rows.select_columns([image]).cast_column(image, Image(decode=False)), image
        self.labels = [-1 if value is None else int(value) for value in rows.select_columns([label])[label]]
        self.names = [f"{name}/{number}" for number in range(len(self.labels))]

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers."""
        return [_encoded(image) for image in self.rows[list(numbers)][self.image]]

    def status(self) -> list[Any]:
        """Return the fingerprint of the table, and sizes, times and inodes of its files."""
        files = [Path(file["filename"]).stat() for file in self.rows.cache_files]
        return [
            self.rows._fingerprint,
            *([stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for stat in files),
        ]


class StreamedData(EncodedData):
    """A data set of the hub, streamed over the network; nothing is stored.

    The order of a training epoch is that of datasets' shuffle, seeded by (seed, epoch): the files in random order, some
    at a time, through a buffer of BUFFER images. It may differ between versions of datasets. The main process reads the
    stream and sends encoded images to its workers, so that the order does not depend on their number. Each rank reads
    the whole stream, and decodes its own part. An interrupted epoch is read again from its start, without decoding, to
    the place where it stopped. Augmentation is keyed by the image's place in the epoch's order.
    """

    def __init__(self, spec: DataSpec, seed: int, workers: int, tables: Mapping[str, Any]) -> None:
        super().__init__(spec, seed, workers)
        from datasets import Image

        table = next(iter(tables.values()))
        if table.features is None:
            raise DataError(f"{spec.name} does not declare its columns; download it and name the folder")
        self.image, self.label, self.classes = _columns(spec.name, table.features)
        if not self.classes:
            raise DataError(f"{spec.name} does not declare the number of classes in column {self.label!r}")
        columns = [self.image, self.label]
        self.streams = {
            split: tables[name].select_columns(columns).cast_column(self.image, Image(decode=False))
            for split, name in _names(tables).items()
        }
        unlabelled = [s for s in self.streams if s != "train" and next(iter(self.streams[s]))[self.label] in (None, -1)]
        eval_splits = _held_out(spec.name, [split for split in self.streams if split not in unlabelled])
        self.streams["test"] = self.streams[eval_splits[-1]]
        names = _names(tables)
        counts = {split: _count(spec.name, tables[names[split]], names[split]) for split in ("train", *eval_splits)}
        self.sizes = {"train": counts["train"], "val": 0, "test": counts[eval_splits[-1]]}
        if len(eval_splits) == 2:
            self.sizes["val"] = counts["val"]
        elif spec.val_fraction:
            raise DataError(
                f"{spec.name} has no validation split, and no images can be held out of a stream; set "
                "data.val_fraction=0, or download it and name the folder"
            )
        self._digest = digest_of(f"{spec.name} {getattr(table.info, 'version', '')} {self.sizes}".encode())

    def batches(self, split: str) -> Batches:
        """Return the loader of a split."""
        return StreamBatches(self, split)

    def test_keys(self) -> Sequence[str]:
        """Return the places of the test images in the stream."""
        return [f"test/{number}" for number in range(self.sizes["test"])]


class StreamBatches(EncodedBatches):
    """Batches of a stream, whose encoded images are sent to the workers."""

    def __init__(self, data: StreamedData, split: str) -> None:
        images = StreamedImages(data, split)
        super().__init__(data, images, data._sampler(split))
        self.stream, self.split, self.columns = data.streams[split], split, (data.image, data.label)

    def keys(self, skip: int) -> Iterator[list[tuple[Key, bytes, int]]]:
        """Yield keys, encoded images and labels of each batch of this epoch, from batch `skip` on."""
        sampler, repeats = self.sampler, self.sampler.repeats
        stream = self.stream
        if self.training:
            seed = seed_of(sampler.seed or 0, "order", sampler.epoch) % 2**32
            stream = stream.shuffle(seed=seed, buffer_size=BUFFER)
        image, label = self.columns
        rows = enumerate(stream)
        buffer: dict[int, Mapping[str, Any]] = {}
        step = self.micro_batch * self.portion.ranks * self.portion.accumulate
        for number in range(skip, len(self)):
            places = self.places(number).tolist()
            first = number // self.portion.accumulate * step if self.training else places[0]
            buffer = {place: row for place, row in buffer.items() if place >= first // repeats}
            while not all(place // repeats in buffer for place in places):
                place, row = next(rows, (-1, {}))
                if place < 0:
                    raise DataError(
                        f"{self.data.spec.name} has fewer images in its {self.split} split than the declared "
                        f"{sampler.size}"
                    )
                if place >= first // repeats:
                    buffer[place] = row
            batch = [(place, buffer[place // repeats]) for place in places]
            yield [
                ((sampler.epoch, place // repeats, place % repeats), _encoded(row[image]), row[label])
                for place, row in batch
            ]


class StreamedTestImages:
    """The test images of a stream by number; a lower number than the last starts another pass."""

    check_first = False

    def __init__(self, data: StreamedData) -> None:
        """Read all labels; raise DataError for a label out of range."""
        self.rows, self.image = data.streams["test"], data.image
        labels = [row[data.label] for row in self.rows.select_columns([data.label])]
        self.names, count = [f"test/{number}" for number in range(len(labels))], len(data.classes)
        for name, label in zip(self.names, labels, strict=True):
            if label is None or not 0 <= label < count:
                raise DataError(f"{name}: its label is {label}; it must be from 0 to {count - 1}")
        self.labels: list[int] = labels
        self._pass: Iterator[Any] = iter(())
        self._next = len(labels)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers; ascending numbers are fastest."""
        images = {}
        for number in sorted(set(numbers)):
            if number < self._next:
                self._pass, self._next = iter(self.rows), 0
            row = next(itertools.islice(self._pass, number - self._next, None))
            images[number], self._next = _encoded(row[self.image]), number + 1
        return [images[number] for number in numbers]


class StreamedImages(Dataset[Item]):
    """Decodes the images of a stream; unreadable images are left out."""

    def __init__(self, data: StreamedData, split: str) -> None:
        self.transform, self.spec, self.seed, self.split = data.transform(split), data.spec, data.seed, split
        self.count = len(data.classes)

    def __getitems__(self, entries: Sequence[tuple[Key, bytes, int]]) -> list[Item]:
        """Return the images of a batch."""
        return [self._item(*entry) for entry in entries]

    def _item(self, key: Key, encoded: bytes, label: int | None) -> Item:
        name = f"{self.split}/{key[1]} of epoch {key[0]}"
        if label is not None and 0 <= label < self.count:
            return make_item(key, encoded, label, name, self)
        return no_item(key, f"{name}: its label is {label}; it must be from 0 to {self.count - 1}", self.spec)


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """Return the columns of images and of labels, and the names of the classes (or [])."""
    from datasets import ClassLabel, Image, Value

    images = [column for column, kind in features.items() if isinstance(kind, Image)]
    classes = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
    numbers = [column for column, kind in features.items() if isinstance(kind, Value) and "int" in kind.dtype]
    candidates = [c for c in ("label", "labels", "fine_label") if c in classes] + classes
    candidates += [c for c in ("label", "labels") if c in numbers]
    if not images or not candidates:
        raise DataError(f"{name} has no {'labels' if images else 'images'} among its columns: {', '.join(features)}")
    kind = features[candidates[0]]
    return images[0], candidates[0], list(kind.names) if isinstance(kind, ClassLabel) else []


def _names(tables: Mapping[str, Any]) -> dict[str, str]:
    """Return the data set's names of the train, val and test splits."""
    return {split: name for split, names in SPLIT_NAMES.items() for name in names[::-1] if name in tables}


def _held_out(name: str, splits: Mapping[str, Any] | Sequence[str]) -> list[str]:
    eval_splits = [split for split in ("val", "test") if split in splits]
    if "train" not in splits or not eval_splits:
        raise DataError(f"{name} has the labelled splits {', '.join(splits)}; it needs train, and validation or test")
    return eval_splits


def _count(name: str, rows: Any, split: str) -> int:
    info = (rows.info.splits or {}).get(split)
    if info is None or not info.num_examples:
        raise DataError(f"{name} does not declare the size of its {split} split; download it and name the folder")
    return int(info.num_examples)


def _encoded(image: Mapping[str, Any] | None) -> bytes:
    if image is None:
        return b""
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise DataError(f"{image['path']} cannot be read: {error.strerror}") from error
