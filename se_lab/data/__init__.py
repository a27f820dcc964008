"""The images: small sets as tensors in memory, large ones from folders of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from se_lab.data.base import Batch, Batches, DataError, ImageData
from se_lab.data.files import FolderData
from se_lab.data.memory import CifarData, DigitsData
from se_lab.spec import DataSpec, SpecError

__all__ = ["KNOWN", "Batch", "Batches", "DataError", "ImageData", "check_split", "create_data", "data_shape"]


@dataclass(frozen=True)
class Known:
    """What is known of a data set without opening it."""

    classes: int
    in_chans: int
    image_size: int
    train_images: int
    """Before any are held out for validation."""


KNOWN = {
    "digits": Known(10, 1, 8, 1437),
    "cifar10": Known(10, 3, 32, 50_000),
    "cifar100": Known(100, 3, 32, 50_000),
    "imagenet": Known(1000, 3, 224, 1_281_167),
    "places365": Known(365, 3, 224, 1_803_460),
}


def create_data(
    spec: DataSpec, seed: int, *, root: str | Path = ".", workers: int = 0, download: bool = False
) -> ImageData:
    """Open the data set of a spec.

    Args:
        spec: Which images.
        seed: Seeds the order and the augmentation of the training images.
        root: Where relative paths start, and where cifar10, cifar100, imagenet and places365 lie.
        workers: Processes that read files.
        download: Fetch CIFAR where it is missing.

    Raises:
        DataError: naming the folder or file that cannot be used.
    """
    if spec.name == "digits":
        return DigitsData(spec, seed)
    if spec.name in ("cifar10", "cifar100"):
        return CifarData(spec, seed, root, download)
    data = FolderData(spec, seed, root, workers)
    if spec.name in KNOWN and len(data.classes) != KNOWN[spec.name].classes:
        raise DataError(
            f"{data.root / 'train'} has {len(data.classes)} class folders; {spec.name} has {KNOWN[spec.name].classes}"
        )
    return data


def data_shape(spec: DataSpec, *, root: str | Path = ".") -> tuple[int, tuple[int, int, int], int]:
    """Return classes, (C, H, W) of an image, and training images, without opening a set where they are known."""
    if (known := KNOWN.get(spec.name)) is not None:
        size = spec.image_size or known.image_size
        return known.classes, (known.in_chans, size, size), round(known.train_images * (1 - spec.val_fraction))
    data = create_data(spec, 0, root=root)
    return len(data.classes), (data.in_chans, data.image_size, data.image_size), data.sizes["train"]


def check_split(spec: DataSpec, sizes: dict[str, int], needs: str) -> None:
    """Raise SpecError if no validation image is there for what needs one."""
    if not sizes["val"]:
        raise SpecError(f"{needs} looks at validation images and {spec.name} holds none out: set data.val_fraction")
