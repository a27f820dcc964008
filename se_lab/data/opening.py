"""Open the data set that a spec names, and tell what is known of one without opening it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from se_lab.data.base import DataError, ImageData
from se_lab.data.folders import FolderData, folder_digest
from se_lab.data.hub import open_hub
from se_lab.data.images import CHECKED
from se_lab.data.memory import CifarData, DigitsData
from se_lab.data.shards import ShardData
from se_lab.spec import DataSpec, SpecError


@dataclass(frozen=True)
class Known:
    """What is known of a data set without opening it."""

    classes: int
    in_chans: int
    image_size: int
    train_images: int
    """Before any are held out for validation."""
    test_images: int


KNOWN = {
    "digits": Known(10, 1, 8, 1437, 360),
    "cifar10": Known(10, 3, 32, 50_000, 10_000),
    "cifar100": Known(100, 3, 32, 50_000, 10_000),
    "imagenet": Known(1000, 3, 224, 1_281_167, 50_000),
    "places365": Known(365, 3, 224, 1_803_460, 36_500),
}


def create_data(
    spec: DataSpec,
    seed: int,
    *,
    root: str | Path = ".",
    workers: int = 0,
    download: bool = False,
    accumulate: int = 1,
) -> ImageData:
    """Open the data set of a spec.

    Args:
        spec: Which images.
        seed: Seeds the order and the augmentation of the training images.
        root: Where relative paths start, and where cifar10, cifar100, imagenet and places365 lie.
        workers: Processes that read files.
        download: Fetch CIFAR where it is missing.
        accumulate: Micro-batches of a training step on each device; the loaders ask the trainer for its ranks.

    Raises:
        DataError: naming the folder or file that cannot be used.
        SpecError: for a batch that cannot be dealt out, here or, where ranks are in the way, by the loaders.
    """
    data = _open(spec, seed, root, workers, download)
    data.accumulate = accumulate
    data.share().micro_batch(spec.batch_size)
    return data


def _open(spec: DataSpec, seed: int, root: str | Path, workers: int, download: bool) -> ImageData:
    if spec.name == "digits":
        return DigitsData(spec, seed)
    if spec.name in ("cifar10", "cifar100"):
        return CifarData(spec, seed, root, download)
    if spec.name.startswith("wds:"):
        return ShardData(spec, seed, root, workers)
    if spec.name.startswith("hf:"):
        return open_hub(spec, seed, root, workers)
    data = FolderData(spec, seed, root, workers)
    if spec.name in KNOWN and len(data.classes) != KNOWN[spec.name].classes:
        raise DataError(
            f"{data.root / 'train'} has {len(data.classes)} class folders; {spec.name} has {KNOWN[spec.name].classes}"
        )
    return data


@dataclass(frozen=True)
class DataShape:
    """What nets and plans need to know of a data set."""

    classes: int
    shape: tuple[int, int, int]
    """(C, H, W) of an image."""
    sizes: dict[str, int]
    """Images of the train, val and test splits."""


def data_shape(spec: DataSpec, *, root: str | Path = ".") -> DataShape:
    """Return what is known of a set without opening it, about as many images as it has; else open it."""
    if (known := KNOWN.get(spec.name)) is not None:
        size = spec.image_size or known.image_size
        val = known.classes * round(spec.val_fraction * known.train_images / known.classes)
        sizes = {"train": known.train_images - val, "val": val, "test": known.test_images}
        return DataShape(known.classes, (known.in_chans, size, size), sizes)
    data = create_data(spec, 0, root=root)
    return DataShape(len(data.classes), (data.in_chans, data.image_size, data.image_size), data.sizes)


def present_digest(spec: DataSpec, images: int, *, root: str | Path = ".") -> str | None:
    """Return the digest of the images that are there now, where that takes a moment: of folders of few images.

    Sets in memory are checked against checksums: under one name they are the same. Of larger sets, of shards and of
    streams, and where the images are gone, it is None.

    Args:
        spec: Which images.
        images: About how many.
        root: Where relative paths start.
    """
    if spec.name.startswith("folder:") and images <= CHECKED:
        with contextlib.suppress(DataError, OSError):
            return folder_digest(spec, root)
    return None


def check_split(spec: DataSpec, sizes: dict[str, int], needs: str) -> None:
    """Raise SpecError if no validation image is there for what needs one."""
    if not sizes["val"]:
        raise SpecError(f"{needs} looks at validation images and {spec.name} holds none out: set data.val_fraction")
