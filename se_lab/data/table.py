"""The table of data sets, to which plugins can add entries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms.v2.functional import pil_to_tensor

from se_lab.data.base import DataError, ImageData, stratified_split
from se_lab.data.digests import WHOLE, content_digest, digest_of
from se_lab.data.files import Files
from se_lab.data.images import CHECKED, EncodedData, Part, Source
from se_lab.data.memory import MemoryData
from se_lab.data.pictures import Raw, decode
from se_lab.spec import DATA_SETS, DataSpec, expand_path
from se_lab.spec.text import counted

Images = Dataset[Any]
"""A map-style data set of (image, label)."""

LABELS = ("targets", "labels", "_labels", "y")
"""Attributes in which torchvision's data sets store their labels."""


@dataclass(frozen=True)
class Splits:
    """The splits of a data set.

    Each split is a map-style torch data set of (image, label): a PIL image or a uint8 tensor (C, H, W) with one or
    three channels, and a class number. Images must not be augmented: SE-Lab does that, keyed by seed, epoch and image.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> images, labels = torch.zeros(8, 1, 12, 12, dtype=torch.uint8), torch.arange(8) % 2
        >>> def mine(root):
        ...     both = TensorDataset(images, labels)
        ...     return Splits(both, None, both, classes=["a", "b"], image_size=12, pad=1)
        >>> DATASETS["mine"] = mine  # now data.name=mine is a data set
    """

    train: Images
    """The training images."""
    val: Images | None
    """The validation images. If None, `data.val_fraction` of the training images are held out."""
    test: Images
    """The test images."""
    classes: Sequence[str]
    """The names of the classes, in the order of the labels."""
    image_size: int = 224
    """Side in pixels of the net's input images, unless `data.image_size` is set."""
    pad: int | None = None
    """None: worker processes read the images, and training crops have random sizes. A number: all images have the same
    size and are kept in memory, and training crops have that size, after zero padding by `pad` pixels."""
    flips: bool = True
    """Whether a mirrored image shows the same class."""


DATASETS: dict[str, Callable[..., Splits]] = {}
"""Data sets by name (for `data.name`), each a function of the root folder that returns `Splits`. A function with a
parameter `download` is passed the value of --download."""
DATA_SETS["table"] = DATASETS


def open_table(spec: DataSpec, seed: int, root: str | Path, workers: int, download: bool) -> ImageData:
    """Open a data set of the table.

    Raises:
        DataError: if the function fails or returns invalid splits.
    """
    splits = _call(spec.name, root, download)
    sources = {"train": splits.train, "val": splits.val, "test": splits.test}
    for split, images in sources.items():
        if images is None and split == "val":
            continue
        if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
            raise DataError(
                f"{spec.name}: its {split} split has type {type(images).__name__}; it must be a map-style data set "
                "with __len__ and __getitem__"
            )
    if len(splits.classes) < 2:
        raise DataError(
            f"{spec.name} has {counted(len(splits.classes), 'class', 'classes')}; training needs at least two"
        )
    if splits.pad is not None:
        return _TableInMemory(spec, seed, splits)
    return _TableData(spec, seed, splits, workers)


def _call(name: str, root: str | Path, download: bool) -> Splits:
    function = DATASETS[name]
    options = {"download": download} if "download" in inspect.signature(function).parameters else {}
    try:
        splits = function(expand_path(root), **options)
    except DataError:
        raise
    except Exception as error:  # a user's function can raise anything
        hint = "; download it with --download" if options and not download else ""
        raise DataError(f"{name} cannot be opened in {root}: {type(error).__name__}: {error}{hint}") from error
    if not isinstance(splits, Splits):
        raise DataError(f"DATASETS[{name!r}] returned {type(splits).__name__}; it must return se_lab.Splits")
    return splits


class _TableInMemory(MemoryData):
    """A data set in memory, with the paper's augmentation for CIFAR: flip, pad, random crop."""

    def __init__(self, spec: DataSpec, seed: int, splits: Splits) -> None:
        self.pad, self.flips = splits.pad or 0, splits.flips
        parts = {"train": splits.train, "test": splits.test} | ({"val": splits.val} if splits.val is not None else {})
        data = {
            split: _stacked(f"{spec.name}, {split}", images, len(splits.classes)) for split, images in parts.items()
        }
        digest = digest_of(*(part.numpy().tobytes() for _, tensors in sorted(data.items()) for part in tensors))
        if "val" not in data:
            images, labels = data["train"]
            rest, val_part, _ = stratified_split(labels, (spec.val_fraction, 0.0), spec.split_seed)
            data["train"], data["val"] = (images[rest], labels[rest]), (images[val_part], labels[val_part])
        super().__init__(spec, seed, {split: data[split] for split in ("train", "val", "test")})
        self._digest, self.classes = digest, list(splits.classes)


def _stacked(name: str, images: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Return all images of a split, (N, C, H, W) of bytes, and their labels, (N,)."""
    if isinstance(images, TensorDataset):
        pixels, labels = images.tensors
    else:
        items = [_item(images, number) for number in range(len(images))]
        if failures := [f"{number}: {raw}" for number, (raw, _) in enumerate(items) if isinstance(raw, Exception)]:
            raise DataError(f"{name}: {counted(len(failures), 'image')} cannot be read: {'; '.join(failures[:10])}")
        tensors = [raw if isinstance(raw, Tensor) else pil_to_tensor(raw) for raw, _ in items]
        if len(shapes := sorted({tuple(image.shape) for image in tensors})) > 1:
            raise DataError(
                f"{name}: images have shapes {', '.join(map(str, shapes[:3]))}; with a pad, all must have one shape"
            )
        pixels, labels = torch.stack(tensors), torch.tensor([label for _, label in items])
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[2] != pixels.shape[3]:
        raise DataError(f"{name}: images are {pixels.dtype} {tuple(pixels.shape)}; they must be uint8 (N, C, H, H)")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"{name}: labels are {labels.min()} to {labels.max()}; they must be from 0 to {classes - 1}")
    return pixels, labels.long()


class _TableData(EncodedData):
    """A data set whose images are read by worker processes."""

    def __init__(self, spec: DataSpec, seed: int, splits: Splits, workers: int) -> None:
        self.flips = splits.flips
        super().__init__(spec, seed, workers)
        self.classes, self.image_size = list(splits.classes), spec.image_size or splits.image_size
        count = len(self.classes)
        bad: dict[str, str] = {}
        train, test = _source(splits.train, "train", count, bad), _source(splits.test, "test", count, bad)
        val = None if splits.val is None else _source(splits.val, "val", count, bad)
        self.set_splits(train, val, test, bad)

    def identify(self) -> str:
        """Return the digest of the image files, or of the decoded images of a set without files."""
        if self._files() is not None:
            return super().identify()
        places = [(source, number) for source in self.all_sources for number in range(len(source.labels))]
        names = [f"{source.names[n]} {source.labels[n]}" for source, n in places]

        def read(number: int) -> bytes:
            source, place = places[number]
            try:
                return decode(source.read([place])[0]).tobytes()
            except Exception:  # PIL's decoders can raise any exception; data.on_error=skip trains without the image
                return b""

        size = len(read(0))
        is_small = len(names) <= CHECKED and len(names) * size <= WHOLE
        return content_digest(names, [size if is_small else WHOLE] * len(names), read)


def _source(images: Any, split: str, classes: int, bad: dict[str, str]) -> Source:
    """Return a split as a source of images, and add images with invalid labels to `bad`."""
    source = _as_source(images, split)
    for name, label in zip(source.names, source.labels, strict=True):
        if not 0 <= label < classes:
            bad[name] = f"its label is {label}; it must be from 0 to {classes - 1}"
    return source


def _as_source(images: Any, split: str) -> Source:
    if isinstance(images, Files):
        return images
    if isinstance(images, Subset):
        return Part(_as_source(images.dataset, split), list(images.indices))
    if type(images) is ImageFolder and images.transforms is None and images.loader is default_loader:
        paths = [str(Path(path).relative_to(images.root)) for path, _ in images.samples]
        return Files(str(images.root), paths, images.targets)
    return Rows(images, split)


class Rows:
    """The images of a map-style data set, by number."""

    check_first = False

    def __init__(self, images: Any, split: str) -> None:
        self.images = images
        self.labels = _labels(images)
        self.names = [f"{split}/{number}" for number in range(len(self.labels))]

    def read(self, numbers: Sequence[int]) -> list[Raw]:
        """Return the images with these numbers, or the errors of reading them."""
        return [_item(self.images, number)[0] for number in numbers]


def _labels(images: Any) -> list[int]:
    """Return all labels, from an attribute of the data set or from its items."""
    for name in LABELS:
        values = getattr(images, name, None)
        if values is not None and not callable(values) and len(values) == len(images):
            return [_label(label) for label in values]
    if isinstance(images, TensorDataset):
        return [_label(label) for label in images.tensors[1]]
    return [_item(images, number)[1] for number in range(len(images))]


def _label(label: Any) -> int:
    """Return a label as an integer, or -1 for any other value."""
    value = label.item() if hasattr(label, "item") and getattr(label, "ndim", 0) == 0 else label
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _item(images: Any, number: int) -> tuple[Image.Image | Tensor | Exception, int]:
    """Return an image and its label, or an error and -1."""
    try:
        image, label = images[number]
    except Exception as error:  # a user's data set can raise anything
        return error, -1
    if not isinstance(image, (Image.Image, Tensor)):
        return ValueError(f"it is a {type(image).__name__}; it must be a PIL image or a uint8 tensor (C, H, W)"), -1
    return image, _label(label)
