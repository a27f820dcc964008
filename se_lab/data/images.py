"""Encoded images: read, decoded and cut to size by worker processes, then normalised a batch at a time on the device.

Images become RGB as torchvision makes them: CMYK, palette and grey ones are converted, a transparency is dropped, and
the rotation that a camera notes in EXIF is not applied, as in the training of the published nets. Of 16 bits a channel
the upper 8 stay, which torchvision would clip to white.
"""

from __future__ import annotations

import io
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import RandAugment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from se_lab.data.augment import DRAWS, keyed_globals, remove, removes
from se_lab.data.base import SPLITS, Batch, Batches, DataError, ImageData, KeyedSampler, stratified_split
from se_lab.data.rand_augment import posterize_all
from se_lab.spec import DataSpec, SpecError, seed_of

Key = tuple[int, int, int]
"""An image of a pass: epoch, number in the split, and which repetition it is."""
Item = tuple[Tensor, int, int, Tensor, list[str]]
"""An image (C, H, W) as bytes, its label and number, draws for what is removed, and what had to be left out for it."""

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
        _transform(spec, self.image_size, training=True)  # a RandAugment that timm cannot read is said now

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
        """Return the loader of a split: random resized crop and flip in training, else the central crop."""
        images = DecodedImages(self.splits[split], self.transform(split), self.spec, self.seed, split == "train")
        return EncodedBatches(self, images, self._sampler(split))

    def transform(self, split: str) -> Callable[[Image.Image], Tensor]:
        """Return what makes an image of a split a tensor of bytes, (3, H, W)."""
        training = split == "train" and self.spec.augment == "standard"
        return _transform(self.spec, self.image_size, training)


class EncodedBatches(Batches):
    """Batches of encoded images. The worker processes live as long as the loader."""

    def __init__(self, data: EncodedData, images: Dataset[Item], sampler: KeyedSampler) -> None:
        super().__init__(sampler, data.spec.batch_size, data.share())
        self.data = data
        self._keys: Iterable[list[Any]] = ()
        self._loader = DataLoader(
            images,
            batch_sampler=_Renewed(self),
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
        )

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches that the workers decode."""
        self._keys = self.keys(skip)
        device = self.data.device()
        mean, std = (
            torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        for images, labels, numbers, draws, left_out in self._loader:
            self.data.note(left_out)
            if images is None:
                raise DataError(f"no image of a batch can be read: {'; '.join(left_out[:10])}")
            batch = images.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
            if self.training:
                batch = remove(batch, draws, self.data.spec)
            yield batch, labels.to(device, non_blocking=True), numbers

    def keys(self, skip: int) -> Iterator[list[Any]]:
        """Yield what is asked of the workers for each batch of this epoch, from number `skip` on."""
        keys = list(self.sampler)
        return ([keys[place] for place in self.places(n).tolist()] for n in range(skip, len(self)))


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

    def __init__(
        self, source: Source, transform: Callable[[Image.Image], Tensor], spec: DataSpec, seed: int, training: bool
    ) -> None:
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
        while self.training and not item[0].numel():
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

    transform: Callable[[Image.Image], Tensor]
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
    return torch.empty(0), 0, key[1], torch.empty(0), [reason]


def decode(encoded: bytes) -> Image.Image:
    """Return a whole image as RGB, whatever its file calls itself.

    Raises:
        Exception: of PIL's decoders, or ValueError, with a message that says what is wrong.
    """
    if not encoded:
        raise ValueError("it has no bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise ValueError(f"it is no image; it begins with {encoded[:12]!r}") from None
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}; images have 8 or 16 bits a channel")
    return image.convert("RGB")


def _transform(spec: DataSpec, size: int, training: bool) -> Callable[[Image.Image], Tensor]:
    """Return timm's transforms, up to bytes."""
    short_side = math.floor(size / spec.crop_pct)
    try:
        transform: Any = create_transform(
            (3, size, size),
            is_training=training,
            color_jitter=None,  # type: ignore[arg-type]
            auto_augment=spec.rand_augment or None,
            crop_pct=size / (short_side + 0.5),  # of which timm takes the floor again
            use_prefetcher=True,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise SpecError(
            f"data.rand_augment is {spec.rand_augment!r}, which timm cannot read ({error}); an example is "
            "rand-m9-mstd0.5-inc1"
        ) from error
    for step in transform.transforms:
        if isinstance(step, RandAugment):
            posterize_all(step)
    return cast(Callable[[Image.Image], Tensor], transform)


def _collate(items: list[Item]) -> tuple[Tensor | None, Tensor, Tensor, Tensor, list[str]]:
    left_out = [text for item in items for text in item[4]]
    items = [item for item in items if item[0].numel()]
    labels, numbers = (torch.tensor([item[part] for item in items]) for part in (1, 2))
    if not items:
        return None, labels, numbers, torch.empty(0), left_out
    images, draws = (torch.stack([item[part] for item in items]) for part in (0, 3))  # type: ignore[misc]
    return images, labels, numbers, draws, left_out


def _unreadable(sources: Sequence[Source]) -> dict[str, str]:
    """Decode every image, and return the names of those that cannot be, with the reason."""

    def look(source: Source, number: int) -> tuple[str, str] | None:
        try:
            decode(source.read([number])[0])
            return None
        except Exception as error:  # PIL raises whatever its decoders do
            return source.names[number], str(error)

    with ThreadPoolExecutor(4) as pool:
        found = [pool.map(look, [source] * len(source.labels), range(len(source.labels))) for source in sources]
        return dict(bad for results in found for bad in results if bad)
