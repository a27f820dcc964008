"""Encoded images: read, decoded and cut to size by worker processes, normalised a batch at a time on the device."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from se_lab.data.augment import DRAWS, keyed_globals, remove, removes
from se_lab.data.base import SPLITS, Batch, Batches, DataError, ImageData, KeyedSampler, stratified_split
from se_lab.data.pictures import PictureTransform, decode, normaliser, why_unreadable
from se_lab.spec import DataSpec, seed_of

Key = tuple[int, int, int]
"""An image of a pass: epoch, number in the split, and which repetition it is."""
Item = tuple[Tensor | None, int, int, Tensor, list[str]]
"""An image (C, H, W) as bytes, or None; its label and number; the random numbers of `remove`; the images that were
left out for it, with the reason."""

CHECKED = 20_000
"""Sets on this machine with no more images are decoded before training starts; larger ones are found out in passing."""


class Source(Protocol):
    """Where the encoded images of a split come from. It is sent to worker processes."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each image, which lasts as long as the set."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The images' class numbers."""
        ...

    @property
    def remote(self) -> bool:
        """Whether reading an image takes a network."""
        ...

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers. Raise DataError where that fails for other reasons than them."""
        ...


class Part:
    """Some of the images of a source."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers, self.remote = source, list(numbers), source.remote
        self.names = [source.names[number] for number in self.numbers]
        self.labels = [source.labels[number] for number in self.numbers]

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images of these numbers."""
        return self.source.read([self.numbers[number] for number in numbers])


class EncodedData(ImageData):
    """A data set of encoded images, whose splits are Sources."""

    def __init__(self, spec: DataSpec, seed: int, workers: int) -> None:
        super().__init__(spec, seed)
        self.workers = workers
        self.in_chans, self.image_size = 3, spec.image_size or 224
        self.splits: dict[str, Source] = {}
        self.transform("train")  # a RandAugment that timm cannot read is said now

    def set_splits(self, train: Source, val: Source | None, test: Source, bad: dict[str, str]) -> None:
        """Take the splits, less those images that are bad, and hold out validation images if there are none.

        All images are decoded once where that takes seconds, so that bad ones are found before training.
        """
        if val is None:
            kept, chosen, _ = stratified_split(
                torch.tensor(train.labels), (self.spec.val_fraction, 0.0), self.spec.split_seed
            )
            train, val = Part(train, kept.tolist()), Part(train, chosen.tolist())
        self.splits = dict(zip(SPLITS, (train, val, test), strict=True))
        near = [source for source in self.splits.values() if not source.remote]
        if sum(len(source.labels) for source in near) <= CHECKED:
            bad = _unreadable(near) | bad
        self.leave_out(bad)
        self.sizes = {split: len(source.labels) for split, source in self.splits.items()}
        for split, what in (("train", "training"), ("test", "test")):
            if not self.sizes[split]:
                raise DataError(f"{self.spec.name} has no {what} image that can be read")

    def leave_out(self, bad: dict[str, str]) -> None:
        """Drop images by name, {name: reason}, or raise DataError unless the spec says to skip them."""
        if not bad:
            return
        found = [f"{name}: {reason}" for name, reason in bad.items()]
        if self.spec.on_error == "stop":
            more = f" … and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise DataError(
                f"{len(bad)} image(s) of {self.spec.name} cannot be read: {'; '.join(found[:10])}{more} "
                "(data.on_error=skip goes on without them)"
            )
        self.note(found)
        for split, source in self.splits.items():
            if any(name in bad for name in source.names):
                self.splits[split] = Part(source, [n for n, name in enumerate(source.names) if name not in bad])

    def note(self, found: Iterable[str]) -> None:
        """Remember what was left out, and say it once."""
        for text in found:
            if text not in self.skipped:
                self.skipped.append(text)
                print(f"left out: {text}", file=sys.stderr)

    def test_keys(self) -> Sequence[str]:
        """Return the test images' names."""
        return self.splits["test"].names

    def batches(self, split: str) -> Batches:
        """Return the loader of a split."""
        images = DecodedImages(self.splits[split], self.transform(split), self.spec, self.seed, split == "train")
        return EncodedBatches(self, images, self._sampler(split))

    def transform(self, split: str) -> PictureTransform:
        """Return the transform of a split: random resized crop and flip in training, else the central crop."""
        return PictureTransform(self.spec, self.image_size, split == "train" and self.spec.augment == "standard")


class EncodedBatches(Batches):
    """Batches of encoded images. The worker processes live as long as the loader."""

    def __init__(self, data: EncodedData, images: Dataset[Item], sampler: KeyedSampler) -> None:
        super().__init__(sampler, data.spec.batch_size, data.share())
        self.data = data
        self._keys: Iterable[list[Any]] = ()
        on_gpu = torch.cuda.is_available() if data.trainer is None else data.device().type == "cuda"
        self._loader = DataLoader(
            images,
            batch_sampler=_Renewed(self),
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=on_gpu,
            collate_fn=_collate,
        )

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches that the workers decode."""
        self._keys = self.keys(skip)
        device = self.data.device()
        normalise = normaliser(device)
        for images, labels, numbers, draws, left_out in self._loader:
            self.data.note(left_out)
            if images is None:
                if self.training:
                    raise DataError(f"no image of a batch can be read: {'; '.join(left_out[:10])}")
                # an empty batch: the ranks count each other's
                images = torch.empty((0, 3, self.data.image_size, self.data.image_size), dtype=torch.uint8)
            batch = normalise(images.to(device, non_blocking=True))
            if self.training:
                batch = remove(batch, draws, self.data.spec)
            yield batch, labels.to(device, non_blocking=True), numbers

    def keys(self, skip: int) -> Iterator[list[Any]]:
        """Yield what is asked of the workers for each batch of this epoch, from number `skip` on."""
        order, turns, epoch = self.sampler.order(), self.sampler.turns(), self.sampler.epoch
        for places in map(self.places, range(skip, len(self))):
            yield [(epoch, *pair) for pair in zip(order[places].tolist(), turns[places].tolist(), strict=True)]


class _Renewed:
    """The keys of a pass for a DataLoader that outlives it."""

    def __init__(self, batches: EncodedBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches._keys)


class DecodedImages(Dataset[Item]):
    """The images of a split, asked for by the batch and by key, so that augmentation is keyed to each image.

    One that cannot be read is replaced in training by another, which its key chooses, and left out in evaluation.
    """

    def __init__(self, source: Source, transform: PictureTransform, spec: DataSpec, seed: int, training: bool) -> None:
        self.source, self.transform, self.spec = source, transform, spec
        self.seed, self.training = seed, training

    def __getitems__(self, keys: Sequence[Key]) -> list[Item]:
        """Return the images of a batch."""
        numbers = [number for _, number, _ in keys]
        return [self._item(key, encoded) for key, encoded in zip(keys, self.source.read(numbers), strict=True)]

    def _item(self, key: Key, encoded: bytes) -> Item:
        epoch, number, turn = key
        item = make_item(key, encoded, self.source.labels[number], self.source.names[number], self)
        left_out = item[4]
        stream = random.Random(seed_of(self.seed, "replace", *key))
        while self.training and item[0] is None:
            number = stream.randrange(len(self.source.labels))
            (encoded,) = self.source.read([number])
            key = (epoch, number, turn)
            item = make_item(key, encoded, self.source.labels[number], self.source.names[number], self)
            left_out += item[4]
            if len(left_out) == 10:
                raise DataError(f"ten images in turn cannot be read: {'; '.join(left_out)}")
        return (*item[:4], left_out)


class Making(Protocol):
    """How an item is made of an encoded image."""

    transform: PictureTransform
    spec: DataSpec
    seed: int


def make_item(key: Key, encoded: bytes, label: int, name: str, making: Making) -> Item:
    """Return an image's item; one without a picture if it cannot be read and the spec says to skip it."""
    epoch, number, turn = key
    spec = making.spec
    try:
        picture = decode(encoded)
    except Exception as error:  # PIL raises whatever its decoders do
        return no_item(key, f"{name}: {error}", spec)
    with keyed_globals(seed_of(making.seed, "augment", epoch, number, *([turn] if turn else []))):
        image = making.transform(picture)
        draws = torch.rand(DRAWS if removes(spec) else 0)
    return image, label, number, draws, []


def no_item(key: Key, reason: str, spec: DataSpec) -> Item:
    """Return an item without a picture, or raise DataError unless the spec says to skip such images."""
    if spec.on_error == "stop":
        raise DataError(f"{reason} (data.on_error=skip goes on without such images)")
    return None, 0, key[1], torch.empty(0), [reason]


def _collate(items: list[Item]) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, list[str]]:
    left_out = [text for item in items for text in item[4]]
    readable = [item for item in items if item[0] is not None]
    labels, numbers = (torch.tensor([item[part] for item in readable], dtype=torch.long) for part in (1, 2))
    if not readable:
        return None, labels, numbers, None, left_out
    images, draws = (torch.stack([cast(Tensor, item[part]) for item in readable]) for part in (0, 3))
    return images, labels, numbers, draws, left_out


def _unreadable(sources: Sequence[Source]) -> dict[str, str]:
    """Decode every image, and return the names of those that cannot be, with the reason."""

    def look(source: Source, number: int) -> tuple[str, str]:
        try:
            return source.names[number], why_unreadable(source.read([number])[0])
        except DataError as error:
            return source.names[number], str(error)

    with ThreadPoolExecutor(4) as pool:
        found = [pool.map(look, [source] * len(source.labels), range(len(source.labels))) for source in sources]
        return {name: reason for results in found for name, reason in results if reason}
