"""Open the data set of a spec, or return its shape and digest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from se_lab.data.base import DataError, ImageData
from se_lab.data.digests import ignore_cache
from se_lab.data.folders import FolderData, Listing
from se_lab.data.hub import open_hub
from se_lab.data.images import CHECKED, EncodedData
from se_lab.data.memory import DigitsData
from se_lab.data.shards import ShardData
from se_lab.data.table import DATASETS, open_table
from se_lab.data.torchvision_sets import TORCHVISION
from se_lab.spec import DataSpec, SpecError

DATASETS.update(TORCHVISION)


@dataclass(frozen=True)
class Known:
    """Properties of a data set that are known without opening it."""

    classes: int
    in_chans: int
    image_size: int
    train_images: int
    """The number of training images before any are held out for validation."""
    test_images: int
    val_images: int | None = None
    """The number of validation images, or None if there is no validation split."""
    in_memory: bool = False
    """Whether images are normalised by statistics of the training images; data sets of files use ImageNet's."""


KNOWN = {
    "digits": Known(10, 1, 8, 899, 898, in_memory=True),
    "cifar10": Known(10, 3, 32, 50_000, 10_000, in_memory=True),
    "cifar100": Known(100, 3, 32, 50_000, 10_000, in_memory=True),
    "imagenet": Known(1000, 3, 224, 1_281_167, 50_000),
    "places365": Known(365, 3, 224, 1_803_460, 36_500),
    "mnist": Known(10, 1, 28, 60_000, 10_000, in_memory=True),
    "fashion_mnist": Known(10, 1, 28, 60_000, 10_000, in_memory=True),
    "svhn": Known(10, 3, 32, 73_257, 26_032, in_memory=True),
    "stl10": Known(10, 3, 96, 5_000, 8_000, in_memory=True),
    "food101": Known(101, 3, 224, 75_750, 25_250),
    "flowers102": Known(102, 3, 224, 1_020, 6_149, 1_020),
    "oxford_pets": Known(37, 3, 224, 3_680, 3_669),
    "caltech101": Known(101, 3, 224, 6_942, 1_735),
    "eurosat": Known(10, 3, 64, 21_600, 5_400),
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
    """Open the data set of a spec as a LightningDataModule.

    Its loaders yield images (N, C, H, W), labels (N,) and the images' numbers (N,).

    Args:
        spec: The data spec.
        seed: Seed of the order and the augmentation of the training images, unless the spec has an `order_seed`.
        root: The root of relative paths, and the folder of imagenet, places365 and torchvision's data sets.
        workers: Number of processes that read files.
        download: Whether to download a missing data set of torchvision's.
        accumulate: Micro-batches of a training step on each device; a trainer's own number takes precedence.

    Raises:
        DataError: if a folder or file is missing or invalid.
        SpecError: for a batch size that cannot be divided evenly; with several ranks, the loaders raise it.

    Examples:
        >>> data = create_data(DataSpec("digits", batch_size=64), seed=0)
        >>> data.sizes
        {'train': 809, 'val': 90, 'test': 898}
        >>> images, labels, numbers = next(iter(data.train_dataloader()))
        >>> images.shape
        torch.Size([64, 1, 8, 8])
    """
    data = _open(spec, seed if spec.order_seed is None else spec.order_seed, root, workers, download)
    data.accumulate = accumulate
    data.portion().micro_batch(spec.batch_size)
    return data


def _open(spec: DataSpec, seed: int, root: str | Path, workers: int, download: bool) -> ImageData:
    if spec.is_in_folders:
        return _open_folders(spec, seed, root, workers)
    if spec.name == "digits":
        return DigitsData(spec, seed)
    if spec.name in DATASETS:
        return open_table(spec, seed, root, workers, download)
    if spec.name.startswith("wds:"):
        return ShardData(spec, seed, root, workers)
    return open_hub(spec, seed, root, workers)


def _open_folders(spec: DataSpec, seed: int, root: str | Path, workers: int) -> FolderData:
    data = FolderData(spec, seed, root, workers)
    if spec.name in KNOWN and len(data.classes) != KNOWN[spec.name].classes:
        raise DataError(
            f"{data.root / 'train'} has {len(data.classes)} class folders; {spec.name} has {KNOWN[spec.name].classes}"
        )
    return data


def listing_of(spec: DataSpec, *, root: str | Path = ".") -> Listing | None:
    """Return the files of a data set in folders, with its digest, to pass to other processes.

    Return None for other data sets, and for those that cannot be opened or have unreadable images.
    """
    if not spec.is_in_folders:
        return None
    try:
        data = _open_folders(spec, 0, root, 0)
        checked = sum(data.sizes.values()) <= CHECKED
        return None if data.skipped else dataclasses.replace(data.listing, digest=data.digest, checked=checked)
    except (DataError, SpecError, OSError):  # the trials record the error
        return None


def with_present_digest(listing: Listing, spec: DataSpec, *, root: str | Path = ".") -> Listing:
    """Return a listing with the present digest; files are read again only if one has changed."""
    try:
        data = FolderData(spec, 0, root, 0, dataclasses.replace(listing, digest=None))
        checked = listing.checked and data.digest == listing.digest
        return dataclasses.replace(listing, digest=data.digest, checked=checked)
    except (DataError, OSError):  # such as a missing file; the trials record the error
        return listing


@dataclass(frozen=True)
class DataShape:
    """The number of classes, the shape of an image and the sizes of the splits."""

    classes: int
    shape: tuple[int, int, int]
    """The shape of an image, (C, H, W)."""
    sizes: dict[str, int]
    """The numbers of images in the train, val and test splits."""


def data_shape(spec: DataSpec, *, root: str | Path = ".") -> DataShape:
    """Return the shape of a data set; that of a known one is returned without opening it."""
    if (info := KNOWN.get(spec.name)) is not None:
        size = spec.image_size or info.image_size
        val_images = info.classes * round(spec.val_fraction * info.train_images / info.classes)
        sizes = {"train": info.train_images, "val": info.val_images or 0, "test": info.test_images}
        if info.val_images is None:
            sizes |= {"train": info.train_images - val_images, "val": val_images}
        return DataShape(info.classes, (info.in_chans, size, size), sizes)
    data = create_data(spec, 0, root=root)
    return DataShape(len(data.classes), (data.in_chans, data.image_size, data.image_size), data.sizes)


def data_shapes(specs: Iterable[DataSpec], *, root: str | Path = ".") -> dict[DataSpec, DataShape]:
    """Return the shape of each data set; each is opened at most once."""
    return {spec: data_shape(spec, root=root) for spec in dict.fromkeys(specs)}


def present_digest(spec: DataSpec, *, root: str | Path = ".") -> str | None:
    """Return the digest of the present images, or None if they are missing or need a network.

    Unchanged files are not read again.

    Args:
        spec: The data spec.
        root: The root of relative paths.
    """
    if "://" in spec.name or spec.name.startswith("hf:"):
        return None
    try:
        return create_data(spec, 0, root=root).digest
    except (DataError, SpecError, OSError):
        return None


@dataclass(frozen=True)
class Inspection:
    """The result of reading all images of a data set."""

    digest: str
    """The digest of the images, to compare with those in records."""
    images: int
    unreadable: list[str]
    """The images that cannot be decoded, each with the reason."""


def inspect_images(spec: DataSpec, *, root: str | Path = ".") -> Inspection:
    """Read and decode every image of a data set, ignoring cached values.

    Raises:
        DataError: if a folder or file is missing or invalid.
    """
    with ignore_cache():
        data = create_data(dataclasses.replace(spec, on_error="skip"), 0, root=root)
        bad = data.skipped
        if isinstance(data, EncodedData):
            bad = list(
                dict.fromkeys([*bad, *(f"{name}: {reason}" for name, reason in data.unreadable(every=True).items())])
            )
        return Inspection(data.digest, sum(data.sizes.values()), bad)


def check_split(spec: DataSpec, sizes: dict[str, int], needs: str) -> None:
    """Raise SpecError if there are no validation images, which the setting `needs` requires."""
    if not sizes["val"]:
        raise SpecError(f"{needs} needs validation images, and {spec.name} has none: set data.val_fraction above 0")
