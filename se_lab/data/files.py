"""Sets that lie in folders of image files, read by worker processes, with timm's transforms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from se_lab.data.base import Batch, Batches, DataError, ImageData, KeyedSampler, digest_of, stratified_split
from se_lab.spec import DataSpec, seed_of


class FolderData(ImageData):
    """Folders in torchvision's ImageFolder layout: train/, and val/ or test/ or both, each with a folder a class.

    With both, val/ is the validation split; with one of them, that one is the test split, as ImageNet's val/ is in
    the paper, and `val_fraction` of the training images are held out for validation.
    """

    def __init__(self, spec: DataSpec, seed: int, root: str | Path, workers: int) -> None:
        super().__init__(spec, seed)
        self.workers = workers
        self.root = Path(root, spec.name.removeprefix("folder:")).expanduser()  # imagenet and places365: root/<name>
        self.in_chans, self.image_size = 3, spec.image_size or 224
        self.classes, train = _scan(self.root / "train")
        held_out = [name for name in ("val", "test") if (self.root / name).is_dir()]
        if not held_out:
            raise DataError(f"{self.root} has train/ but neither val/ nor test/; one of them holds the test images")
        test = self._scan_like_train(held_out[-1])
        if len(held_out) == 2:
            val = self._scan_like_train("val")
        else:
            labels = torch.tensor([label for _, label in train])
            kept, chosen, _ = stratified_split(labels, (spec.val_fraction, 0.0), spec.split_seed)
            train, val = [train[i] for i in kept], [train[i] for i in chosen]
        self.splits = {"train": train, "val": val, "test": test}
        self.sizes = {split: len(images) for split, images in self.splits.items()}
        listing = [
            f"{path.relative_to(self.root)} {path.stat().st_size}" for s in self.splits.values() for path, _ in s
        ]
        self.digest = digest_of("\n".join(sorted(listing)).encode())
        _check_readable([path for images in self.splits.values() for path, _ in images])

    def test_keys(self) -> Sequence[str]:
        """Return the test images' paths under the root."""
        return [str(path.relative_to(self.root)) for path, _ in self.splits["test"]]

    def batches(self, split: str) -> Batches:
        """Return the loader of a split, with timm's transforms: random resized crop and flip in training."""
        augment = split == "train" and self.spec.augment == "standard"
        size = (3, self.image_size, self.image_size)
        transform = create_transform(size, is_training=augment, color_jitter=None, crop_pct=self.spec.crop_pct)  # type: ignore[arg-type]
        files, labels = zip(*self.splits[split], strict=True)
        images = FolderImages(list(files), list(labels), transform, self.seed)
        return FileBatches(images, self._sampler(split), self.spec.batch_size, self.workers)

    def _scan_like_train(self, name: str) -> list[tuple[Path, int]]:
        classes, images = _scan(self.root / name)
        if classes != self.classes:
            odd = sorted(set(classes) ^ set(self.classes))
            raise DataError(
                f"{self.root / name} and {self.root / 'train'} have different classes: {', '.join(odd[:5])}"
            )
        return images


class FileBatches(Batches):
    """Batches of a set that is read from files, by worker processes."""

    def __init__(self, images: FolderImages, sampler: KeyedSampler, batch_size: int, workers: int) -> None:
        super().__init__(sampler, batch_size)
        self.images, self.workers = images, workers

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches that DataLoader's workers read."""
        keys = list(self.sampler)
        batches = [keys[n * self.batch_size : (n + 1) * self.batch_size] for n in range(skip, len(self))]
        yield from DataLoader(
            self.images,
            batch_sampler=batches,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )


class FolderImages(Dataset[tuple[Tensor, int, int]]):
    """Images of one split of a folder; an item is asked for by (epoch, number), so that augmentation is keyed."""

    def __init__(
        self, files: list[Path], labels: list[int], transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.files, self.labels, self.transform, self.seed = files, labels, transform, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        """Return image (C, H, W), label and number."""
        epoch, number = key
        # torchvision and timm draw from the global streams: key them to this image for as long as it takes
        seed = seed_of(self.seed, "augment", epoch, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            image = self.transform(_open(self.files[number]))
        return image, self.labels[number], number


def _scan(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Return the class names of a split and its images with their labels, in a fixed order."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; a data set has train/ and val/ or test/, each with a folder a class")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} class folders ({', '.join(classes)}); training needs two or more")
    images: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise DataError(f"{folder / name} has no image; files ending in {', '.join(IMG_EXTENSIONS)} count")
        images += [(path, label) for path in files]
    return classes, images


def _check_readable(paths: list[Path], most: int = 20_000) -> None:
    """Look into every image before training starts, where that takes seconds; larger sets find out as they go."""
    if len(paths) > most:
        return
    unreadable = []
    for path in paths:
        try:
            _open(path)
        except Exception as error:  # PIL raises whatever its decoders do
            unreadable.append(str(error))
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(paths)} images cannot be read: {'; '.join(unreadable[:10])}")


def _open(path: Path) -> Image.Image:
    """Read a whole image as RGB: 16 bits a channel come down to 8, which PIL's own conversion would clip to white."""
    try:
        image: Image.Image = Image.open(path)
        image.load()
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode}; images have 8 or 16 bits a channel")
        return image.convert("RGB")
    except Exception as error:  # PIL raises whatever its decoders do
        raise DataError(f"{path} cannot be read: {error}") from error
