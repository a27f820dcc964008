"""Test images to run through a net, with selection of classes and of images per class."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from se_lab.data import Batch, DataError, ImageData, create_data, scan
from se_lab.data.files import Files, printable
from se_lab.data.hub import StreamedData, StreamedTestImages
from se_lab.data.images import EncodedData, Source
from se_lab.data.pictures import PictureTransform, decode, normaliser, short_side
from se_lab.excitations.capture import ExcitationError
from se_lab.spec import DataSpec, expand_path, nearest, seed_of
from se_lab.spec.text import listed

if TYPE_CHECKING:
    from PIL import Image

AMBIGUOUS = {"plane": ("n02690373", "n04552348")}
"""Names with another meaning in the paper than in ImageNet, where plane is a carpenter's tool (n03954731): Figures 6
and 7 show an aircraft, either the airliner or the warplane."""


Contents = tuple[list[str], Source, str]
"""Classes, images, and a digest of both."""


@dataclass(frozen=True)
class LabelledImages:
    """The test images of a data set."""

    name: str
    classes: list[str]
    labels: Tensor
    """Class numbers (N,)."""
    digest: str
    """Digest of the images and their transform."""
    batches: Callable[[Tensor], Iterable[Batch]]
    """Returns batches of the images with given numbers, in that order: images (N, C, H, W), labels, numbers."""
    picture: Callable[[int], Image.Image]
    """Returns the picture of an image number, for display."""

    def choose(self, per_class: int | None) -> Tensor:
        """Return the numbers of `per_class` random images of each class, or of all images.

        The random images are the same in every call.
        """
        if per_class is None:
            return torch.arange(len(self.labels))
        if per_class < 1:
            raise ExcitationError(f"--images_per_class is {per_class}; it must be at least 1")
        stream = torch.Generator().manual_seed(seed_of(0, "excitations", len(self.labels)))
        order = torch.randperm(len(self.labels), generator=stream)
        samples = [order[self.labels[order] == label][:per_class] for label in torch.unique(self.labels)]
        return torch.cat(samples).sort().values


def open_images(
    spec: DataSpec, *, root: str = ".", workers: int = 0, config: dict[str, Any] | None = None
) -> LabelledImages:
    """Open the test images of a data set; files are read on demand.

    Args:
        spec: The data set. For folder:PATH (and imagenet and places365 as such folders) the images of PATH/test,
            PATH/val or PATH itself, with one folder per class; otherwise the test images of a trial.
        root: Folder that relative paths start from.
        workers: Number of processes that read files.
        config: timm's data config of a pretrained net; by default the preprocessing of the data set.

    Raises:
        DataError: if the folder is missing or has no images.
    """
    folder = expand_path(spec.name.removeprefix("folder:"), root)
    has_list = spec.name == "places365" and (folder / "places365_val.txt").exists()  # torchvision's layout
    if spec.name.startswith("folder:") or (spec.name in ("imagenet", "places365") and not has_list):
        folder = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder)
        return _from_source(replace(spec, name=f"folder:{folder}"), _folder(folder), workers, config)
    data = create_data(spec, 0, root=root)
    if isinstance(data, StreamedData):  # without workers, each of which would read all images
        return _from_source(spec, (data.classes, StreamedTestImages(data), data.digest), 0, config)
    if isinstance(data, EncodedData):
        return _from_source(spec, (data.classes, data.splits["test"], data.digest), workers, config)
    return _from_memory(spec, data)


def _from_memory(spec: DataSpec, data: ImageData) -> LabelledImages:
    from PIL import Image

    images, labels = (torch.cat(parts) for parts in list(zip(*data.batches("test"), strict=True))[:2])

    def batches(numbers: Tensor) -> Iterator[Batch]:
        for part in torch.split(numbers, spec.batch_size):
            yield images[part], labels[part], part

    def picture(number: int) -> Image.Image:
        pixels = images[number].permute(1, 2, 0)
        scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
        return Image.fromarray(scaled.byte().squeeze(2).numpy())

    return LabelledImages(spec.name, data.classes, labels, data.digest, batches, picture)


def _folder(folder: Path) -> Contents:
    """Return the contents of a folder of images with one folder per class."""
    try:
        contents = scan(folder)
    except OSError as error:
        raise DataError(f"{folder} is not a folder of images with one folder per class: {error.strerror}") from None
    if not contents.paths:
        raise DataError(f"{folder} has class folders, but no images")
    files = Files(str(folder), contents.paths, contents.labels)
    listing = "\n".join(f"{name} {size}" for name, (size, *_) in zip(files.names, files.status(), strict=True))
    return [printable(name) for name in contents.classes], files, hashlib.sha256(listing.encode()).hexdigest()


def _from_source(spec: DataSpec, contents: Contents, workers: int, config: dict[str, Any] | None) -> LabelledImages:
    from timm.data import create_transform

    classes, source, digest = contents
    prepare = create_transform(**config) if config else _TestTransform(spec)
    dataset = _ShownImages(source, prepare)

    def batches(numbers: Tensor) -> Iterator[Batch]:
        start = 0
        pinned = torch.cuda.is_available()
        subset = Subset(dataset, numbers.tolist())
        for batch, labels in DataLoader(subset, spec.batch_size, num_workers=workers, pin_memory=pinned):
            yield batch, labels, numbers[start : start + len(labels)]
            start += len(labels)

    return LabelledImages(
        spec.name,
        classes,
        torch.tensor(source.labels),
        hashlib.sha256(f"{digest} {prepare!r}".encode()).hexdigest()[:16],
        batches,
        lambda number: dataset.pictures([number])[0],
    )


class _ShownImages(Dataset[tuple[Tensor, int]]):
    """Preprocessed images of a source."""

    def __init__(self, source: Source, prepare: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.prepare = source, prepare

    def pictures(self, numbers: Sequence[int]) -> list[Image.Image]:
        """Return images without transforms; raise DataError for one that cannot be read."""
        pictures = []
        for number, encoded in zip(numbers, self.source.read(numbers), strict=True):
            try:
                pictures.append(decode(encoded))
            except Exception as error:  # PIL's decoders raise many types of errors
                raise DataError(f"{self.source.names[number]} cannot be read: {error}") from error
        return pictures

    def __getitems__(self, numbers: list[int]) -> list[tuple[Tensor, int]]:
        """Return the images and labels of a batch."""
        labels = [self.source.labels[number] for number in numbers]
        return [(self.prepare(picture), label) for picture, label in zip(self.pictures(numbers), labels, strict=True)]


class _TestTransform:
    """The preprocessing of a trial's test images."""

    def __init__(self, spec: DataSpec) -> None:
        size = spec.image_size or 224
        self.crop = PictureTransform(spec, size, training=False)
        self.text = f"{size} of {short_side(spec, size)}"

    def __repr__(self) -> str:
        return self.text

    def __call__(self, picture: Image.Image) -> Tensor:
        return normaliser(torch.device("cpu"))(self.crop(picture))


def class_label(name: str) -> str:
    """Return a class's name in figures: the first WordNet name of an ImageNet id, else `name`."""
    return _imagenet().get(name, (name,))[0]


def choose_classes(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the numbers of classes given by name, WordNet id, folder or number.

    By default, these are the paper's four classes if the data has them, else four evenly spaced ones.

    Raises:
        ExcitationError: for an unknown or ambiguous name.
    """
    if not names:
        papers = [classes.index(id) for id in ("n01443537", "n02110958", "n02690373", "n09246464") if id in classes]
        spaced_classes = np.linspace(0, len(classes) - 1, min(4, len(classes))).round().astype(int).tolist()
        return papers if len(papers) == 4 else spaced_classes
    return list(dict.fromkeys(_choose_class(name.strip(), classes) for name in names))


def _choose_class(query: str, classes: Sequence[str]) -> int:
    if query in classes:
        return classes.index(query)
    if query.isdigit() and int(query) < len(classes):
        return int(query)
    words = {name: [w.lower() for w in _imagenet().get(name, (name,))] for name in classes}
    lower_query = query.lower()
    matches = [name for name in classes if lower_query in words[name]]
    matches = matches or [name for name in classes if any(lower_query in _split(word) for word in words[name])]
    matches += [name for name in AMBIGUOUS.get(lower_query, ()) if name in classes and name not in matches]
    if len(matches) == 1:
        return classes.index(matches[0])
    if matches:
        options = listed(map(_describe, matches), 12)
        raise ExcitationError(f"class {query!r} is ambiguous: {options}; use the folder or id of a class")
    all_names = dict.fromkeys([*classes, *(word for names in words.values() for word in names)])
    examples = listed(map(_describe, classes), 5)
    raise ExcitationError(f"unknown class {query!r}; the classes are {examples}{nearest(lower_query, all_names)}")


def _split(words: str) -> list[str]:
    return words.replace("-", " ").split()


def _describe(name: str) -> str:
    words = _imagenet().get(name)
    return f"{name} ({', '.join(words)})" if words else name


@functools.cache
def _imagenet() -> dict[str, tuple[str, ...]]:
    """Return WordNet's names of ImageNet's 1,000 classes by id."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {id: tuple(info.label_name_to_description(id).split(", ")) for id in info.label_names()}  # type: ignore[no-untyped-call]
