"""Data sets of encoded images, which worker processes decode and the device normalises."""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from se_lab.data.augment import DRAWS, keyed_globals, remove, removes
from se_lab.data.base import SPLITS, Batch, Batches, DataError, ImageData, KeyedSampler, stratified_split
from se_lab.data.digests import WHOLE, content_digest, load_or_make
from se_lab.data.files import Files
from se_lab.data.pictures import PictureTransform, Raw, decode, normaliser, why_unreadable
from se_lab.spec import DataSpec, seed_of
from se_lab.spec.text import counted, listed

Key = tuple[int, int, int]
"""The key of an image in a pass: epoch, number in the split, and repetition."""
Item = tuple[Tensor | None, int, int, Tensor, list[str]]
"""An image (C, H, W) as bytes, or None; its label and number; the random numbers of `remove`; and the unreadable images
that it replaces, with the reasons."""

FORK = "fork" if sys.platform == "linux" else None
"""The start method of worker processes. A sweep's trials come from a fork server, and would otherwise start another,
whose workers would import PyTorch again, and outlive the trial."""

CHECKED = 20_000
"""Maximum number of images in a local data set that are all decoded before training; unreadable images of larger data
sets are detected when they are read."""


class Source(Protocol):
    """A source of the images of a split, which is sent to worker processes."""

    @property
    def names(self) -> Sequence[str]:
        """A permanent name for each image."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The class numbers of the images."""
        ...

    @property
    def check_first(self) -> bool:
        """Whether reading is fast enough to check all images of a small set before training."""
        ...

    def read(self, numbers: Sequence[int]) -> Sequence[Raw]:
        """Return the encoded images with these numbers; raise DataError if reading fails."""
        ...


class Part:
    """A subset of the images of a source."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers, self.check_first = source, list(numbers), source.check_first
        self.names = list(map(source.names.__getitem__, self.numbers))
        self.labels = list(map(source.labels.__getitem__, self.numbers))

    def read(self, numbers: Sequence[int]) -> Sequence[Raw]:
        """Return the encoded images with these numbers."""
        return self.source.read([self.numbers[number] for number in numbers])


class EncodedData(ImageData):
    """A data set with a Source of encoded images for each split."""

    flips = True
    """Whether a mirrored image shows the same class."""

    def __init__(self, spec: DataSpec, seed: int, workers: int) -> None:
        super().__init__(spec, seed)
        self.workers = workers
        self.in_chans, self.image_size = 3, spec.image_size or 224
        self.splits: dict[str, Source] = {}
        self.all_sources: list[Source] = []
        """The sources before images were held out for validation or left out."""
        self.transform("train")  # raises for a RandAugment that timm cannot parse

    def set_splits(self, train: Source, val: Source | None, test: Source, bad: dict[str, str]) -> None:
        """Set the splits without their bad images, and hold out validation images if `val` is None.

        All images of a small data set are decoded, so that bad ones are found before training.

        Args:
            train: The training images.
            val: The validation images, or None.
            test: The test images.
            bad: Images to leave out, {name: reason}.
        """
        self.all_sources = [source for source in (train, val, test) if source is not None]
        if val is None:
            labels = torch.tensor(train.labels)
            rest, val_part, _ = stratified_split(labels, (self.spec.val_fraction, 0.0), self.spec.split_seed)
            train, val = Part(train, rest.tolist()), Part(train, val_part.tolist())
        self.splits = dict(zip(SPLITS, (train, val, test), strict=True))
        if sum(len(source.labels) for source in self.all_sources if source.check_first) <= CHECKED:
            bad = self.unreadable() | bad
        self.leave_out(bad)
        self.sizes = {split: len(source.labels) for split, source in self.splits.items()}
        for split, kind in (("train", "training"), ("test", "test")):
            if not self.sizes[split]:
                raise DataError(f"{self.spec.name} has no readable {kind} images")

    def identify(self) -> str:
        """Return the digest, cached for unchanged files."""
        files = self._files()
        assert files is not None, "a data set without files must override identify"
        names, status = (
            [name for part in files for name in part.paths],
            [row for part in files for row in part.status()],
        )
        places = [(part, number) for part in files for number in range(len(part.paths))]

        def read(number: int) -> bytes:
            part, place = places[number]
            try:
                return part.read([place])[0]
            except DataError:  # data.on_error=skip trains without the image
                return b""

        def make() -> str:
            sizes = [size for size, *_ in status]
            return content_digest(names, sizes, read, [modified // 10**9 for _, modified, *_ in status])

        return load_or_make("images", [WHOLE, *({part.root for part in files}), names, status], make)

    def unreadable(self, every: bool = False) -> dict[str, str]:
        """Return the images that cannot be decoded, {name: reason}, cached for unchanged files.

        Args:
            every: Whether to include images that are slow to read.
        """
        sources = [source for source in self.all_sources if every or source.check_first]
        if (files := self._files()) is None or len(sources) != len(self.all_sources):
            return _unreadable(sources)
        key = [PIL.__version__, [[part.root, *part.paths, part.status()] for part in files]]

        def lasting(bad: dict[str, str]) -> bool:
            return not any(" cannot be read: " in reason for reason in bad.values())  # disk or network errors

        return load_or_make("unreadable", key, lambda: _unreadable(sources), lasting)

    def _files(self) -> list[Files] | None:
        """Return the image files, or None if some images are not files."""
        files = [source for source in self.all_sources if isinstance(source, Files)]
        return files if len(files) == len(self.all_sources) else None

    def leave_out(self, bad: dict[str, str]) -> None:
        """Drop images by name, {name: reason}; raise DataError unless data.on_error is skip."""
        if not bad:
            return
        lines = [f"{name}: {reason}" for name, reason in bad.items()]
        if self.spec.on_error == "stop":
            raise DataError(
                f"{counted(len(bad), 'image')} of {self.spec.name} cannot be read: {listed(lines, 10, '; ')} "
                "(data.on_error=skip leaves them out)"
            )
        self.note(lines)
        for split, source in self.splits.items():
            if any(name in bad for name in source.names):
                self.splits[split] = Part(source, [n for n, name in enumerate(source.names) if name not in bad])

    def note(self, left_out: Iterable[str]) -> None:
        """Record skipped images, and print each once."""
        for text in left_out:
            if text not in self.skipped:
                self.skipped.append(text)
                print(f"left out: {text}", file=sys.stderr)

    def test_keys(self) -> Sequence[str]:
        """Return the names of the test images."""
        return self.splits["test"].names

    def batches(self, split: str) -> Batches:
        """Return the loader of a split."""
        images = DecodedImages(self.splits[split], self.transform(split), self.spec, self.seed, split == "train")
        return EncodedBatches(self, images, self._sampler(split))

    def transform(self, split: str) -> PictureTransform:
        """Return the transform of a split, with augmentation for training images."""
        training = split == "train" and self.spec.augment == "standard"
        return PictureTransform(self.spec, self.image_size, training, self.flips)


class EncodedBatches(Batches):
    """Batches of images that persistent worker processes decode."""

    def __init__(self, data: EncodedData, images: Dataset[Item], sampler: KeyedSampler) -> None:
        super().__init__(sampler, data.spec.batch_size, data.portion())
        self.data = data
        self.pending_keys: Iterator[list[Any]] = iter(())
        on_gpu = torch.cuda.is_available() if data.trainer is None else data.device().type == "cuda"
        self._loader = DataLoader(
            images,
            batch_sampler=_PendingKeys(self),
            num_workers=data.workers,
            multiprocessing_context=FORK if data.workers else None,
            persistent_workers=data.workers > 0,
            pin_memory=on_gpu,
            collate_fn=_collate,
        )
        # Collected in a cycle, a loader would wait 5 s for each worker: its queues would be closed before it could ask
        # the workers to end. This reference keeps it out of any cycle that the batches are in.
        weakref.finalize(self, _release, self._loader).atexit = False

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches that the workers decode."""
        self.pending_keys = self.keys(skip)
        device = self.data.device()
        normalise = normaliser(device)
        for images, labels, numbers, draws, left_out in self._loader:
            self.data.note(left_out)
            if images is None:
                if self.training:
                    raise DataError(f"no image of a batch can be read: {'; '.join(left_out[:10])}")
                # an empty batch, so that all ranks have the same number of batches
                images = torch.empty((0, 3, self.data.image_size, self.data.image_size), dtype=torch.uint8)
            batch = normalise(images.to(device, non_blocking=True))
            if self.training:
                batch = remove(batch, draws, self.data.spec)
            yield batch, labels.to(device, non_blocking=True), numbers

    def keys(self, skip: int) -> Iterator[list[Any]]:
        """Yield the keys of each batch of this epoch, from batch `skip` on, for the workers."""
        order, turns, epoch = self.sampler.order(), self.sampler.turns(), self.sampler.epoch
        for places in map(self.places, range(skip, len(self))):
            yield [(epoch, *pair) for pair in zip(order[places].tolist(), turns[places].tolist(), strict=True)]


def _release(loader: DataLoader[Item]) -> None:
    """Do nothing; the caller drops its reference to the loader."""


class _PendingKeys:
    """The keys of the current pass of batches, without a strong reference to them."""

    def __init__(self, batches: EncodedBatches) -> None:
        self._batches = weakref.ref(batches)

    def __iter__(self) -> Iterator[list[Any]]:
        while (batches := self._batches()) is not None:
            keys = next(batches.pending_keys, None)
            del batches
            if keys is None:
                return
            yield keys


class DecodedImages(Dataset[Item]):
    """The decoded images of a split, fetched by key, with augmentation keyed to each image.

    In training, an unreadable image is replaced by a random one keyed by its key; in evaluation it is left out.
    """

    def __init__(self, source: Source, transform: PictureTransform, spec: DataSpec, seed: int, training: bool) -> None:
        self.source, self.transform, self.spec = source, transform, spec
        self.seed, self.training = seed, training

    def __getitems__(self, keys: Sequence[Key]) -> list[Item]:
        """Return the images of a batch."""
        numbers = [number for _, number, _ in keys]
        return [self._item(key, raw) for key, raw in zip(keys, self.source.read(numbers), strict=True)]

    def _item(self, key: Key, raw: Raw) -> Item:
        epoch, number, turn = key
        item = make_item(key, raw, self.source.labels[number], self.source.names[number], self)
        left_out = item[4]
        stream = random.Random(seed_of(self.seed, "replace", *key))
        while self.training and item[0] is None:
            number = stream.randrange(len(self.source.labels))
            (raw,) = self.source.read([number])
            key = (epoch, number, turn)
            item = make_item(key, raw, self.source.labels[number], self.source.names[number], self)
            left_out += item[4]
            if len(left_out) == 10:
                raise DataError(f"ten consecutive images cannot be read: {'; '.join(left_out)}")
        return (*item[:4], left_out)


class ItemSettings(Protocol):
    """The settings that `make_item` needs."""

    transform: PictureTransform
    spec: DataSpec
    seed: int


def make_item(key: Key, raw: Raw, label: int, name: str, settings: ItemSettings) -> Item:
    """Return the item of an image, without a picture if it is unreadable and skipped."""
    epoch, number, turn = key
    spec = settings.spec
    try:
        picture = decode(raw)
    except Exception as error:  # PIL's decoders can raise any exception
        return no_item(key, f"{name}: {error}", spec)
    with keyed_globals(seed_of(settings.seed, "augment", epoch, number, *([turn] if turn else []))):
        image = settings.transform(picture)
        draws = torch.rand(DRAWS if removes(spec) else 0)
    return image, label, number, draws, []


def no_item(key: Key, reason: str, spec: DataSpec) -> Item:
    """Return an item without a picture; raise DataError unless data.on_error is skip."""
    if spec.on_error == "stop":
        raise DataError(f"{reason} (data.on_error=skip leaves such images out)")
    return None, 0, key[1], torch.empty(0), [reason]


def _collate(items: list[Item]) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, list[str]]:
    left_out = [text for item in items for text in item[4]]
    good_items = [item for item in items if item[0] is not None]
    labels, numbers = (torch.tensor([item[part] for item in good_items], dtype=torch.long) for part in (1, 2))
    if not good_items:
        return None, labels, numbers, None, left_out
    images, draws = (torch.stack([cast(Tensor, item[part]) for item in good_items]) for part in (0, 3))
    return images, labels, numbers, draws, left_out


def _unreadable(sources: Sequence[Source]) -> dict[str, str]:
    """Return the images that cannot be decoded, {name: reason}."""

    def check(source: Source, number: int) -> tuple[str, str]:
        try:
            return source.names[number], why_unreadable(source.read([number])[0])
        except DataError as error:
            return source.names[number], str(error)

    with ThreadPoolExecutor(4) as pool:
        checks = [pool.map(check, [source] * len(source.labels), range(len(source.labels))) for source in sources]
        return {name: reason for results in checks for name, reason in results if reason}
