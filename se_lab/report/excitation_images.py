"""The images whose excitations are looked at: classes by name, a few images of each, batches that can start anywhere."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from se_lab.activations import ExcitationError
from se_lab.data import Batches, DataError, DigitsData, FileBatches, FolderImages, KeyedSampler
from se_lab.spec import DataSpec, nearest, seed_of

if TYPE_CHECKING:
    from PIL import Image

AMBIGUOUS = {"plane": ("n02690373", "n04552348")}
"""Names that mean something else in the paper than in ImageNet, where plane is a carpenter's tool (n03954731): its
Figures 6 and 7 show an aircraft, without saying whether the airliner or the warplane."""


@dataclass(frozen=True)
class LabelledImages:
    """The test images of a data set, or a few of each class."""

    name: str
    classes: list[str]
    labels: Tensor
    """(N,) class numbers."""
    digest: str
    """Identifies images and their transform."""
    batches: Callable[[Tensor], Batches]
    """Makes the loader of the images of the given numbers, in that order: images (N, C, H, W), labels and numbers."""
    picture: Callable[[int], Image.Image]
    """Returns an image by its number, to be looked at."""

    def choose(self, per_class: int | None) -> Tensor:
        """Return the numbers of `per_class` random images of each class, the same each time, or of all images."""
        if per_class is None:
            return torch.arange(len(self.labels))
        if per_class < 1:
            raise ExcitationError(f"--images-per-class is {per_class}; it must be at least 1")
        stream = torch.Generator().manual_seed(seed_of(0, "excitations", len(self.labels)))
        order = torch.randperm(len(self.labels), generator=stream)
        chosen = [order[self.labels[order] == label][:per_class] for label in torch.unique(self.labels)]
        return torch.cat(chosen).sort().values


class _Chosen(KeyedSampler):
    """Images by their numbers, as they are given."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__(len(numbers), None)
        self.numbers = numbers

    def order(self) -> Tensor:
        return self.numbers


def open_images(
    spec: DataSpec, *, root: str = ".", workers: int = 0, config: dict[str, object] | None = None
) -> LabelledImages:
    """Open the test images of a data set.

    Args:
        spec: digits, or folder:PATH: the images of PATH/test, else PATH/val, else PATH itself, a folder a class.
        root: Where relative paths start.
        workers: Processes that read files.
        config: timm's data config of a pretrained net (input size, crop, mean and std); by default SE-Lab's own.

    Raises:
        DataError: naming the folder that is missing or holds no images.
    """
    if spec.name == "digits":
        return _digits(spec)
    folder = Path(root, spec.name.removeprefix("folder:")).expanduser()
    split = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder)
    return _folder(split, spec, workers, config)


def _digits(spec: DataSpec) -> LabelledImages:
    from PIL import Image

    data = DigitsData(spec, 0)
    index = data.splits["test"]

    def load(numbers: Tensor) -> Batches:
        batches = data.batches("test")
        batches.sampler = _Chosen(numbers)
        return batches

    def picture(number: int) -> Image.Image:
        pixels = data.images[index[number], 0]
        scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
        return Image.fromarray(np.asarray(scaled.byte()))

    return LabelledImages("digits", data.classes, data.labels[index], data.digest, load, picture)


def _folder(folder: Path, spec: DataSpec, workers: int, config: dict[str, object] | None) -> LabelledImages:
    from PIL import Image
    from timm.data import create_transform
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, numbers = find_classes(folder)
        listed = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True)
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no folder of images, with a folder a class: {error}") from None
    if not listed:
        raise DataError(f"{folder} has class folders and no image; files ending in {', '.join(IMG_EXTENSIONS)} count")
    files, labels = [Path(file) for file, _ in listed], [label for _, label in listed]
    size = spec.image_size or 224
    transform = create_transform(**config or {"input_size": (3, size, size), "crop_pct": 224 / 256})  # type: ignore[arg-type]
    images = FolderImages(files, labels, transform, 0)  # type: ignore[arg-type]
    listing = [f"{file.relative_to(folder)} {file.stat().st_size}" for file in files]
    digest = hashlib.sha256("\n".join([*listing, repr(transform)]).encode()).hexdigest()[:16]
    return LabelledImages(
        f"folder:{folder}",
        classes,
        torch.tensor(labels),
        digest,
        lambda chosen: FileBatches(images, _Chosen(chosen), spec.batch_size, workers),
        lambda number: Image.open(files[number]).convert("RGB"),
    )


def class_label(name: str) -> str:
    """Return what a class is called in a figure: the first of WordNet's names for an id of ImageNet's, else itself."""
    return _imagenet().get(name, (name,))[0]


def choose_classes(asked: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the numbers of the classes that are asked for by name, WordNet id, folder or number.

    Without any, the paper's four where the data has them, else four evenly spaced ones.

    Raises:
        ExcitationError: for an unknown name, with the nearest; for one that fits several classes, with all of them.
    """
    if not asked:
        papers = [classes.index(id) for id in ("n01443537", "n02110958", "n02690373", "n09246464") if id in classes]
        spaced = np.linspace(0, len(classes) - 1, min(4, len(classes))).round().astype(int).tolist()
        return papers if len(papers) == 4 else spaced
    return list(dict.fromkeys(_choose_class(name.strip(), classes) for name in asked))


def _choose_class(asked: str, classes: Sequence[str]) -> int:
    if asked in classes:
        return classes.index(asked)
    if asked.isdigit() and int(asked) < len(classes):
        return int(asked)
    words = {name: [w.lower() for w in _imagenet().get(name, (name,))] for name in classes}
    low = asked.lower()
    found = [name for name in classes if low in words[name]]
    found = found or [name for name in classes if any(low in _split(word) for word in words[name])]
    found += [name for name in AMBIGUOUS.get(low, ()) if name in classes and name not in found]
    if len(found) == 1:
        return classes.index(found[0])
    if found:
        listed = ", ".join(_described(name) for name in found[:12])
        raise ExcitationError(f"class {asked!r} fits {len(found)} classes: {listed}; ask for one by its folder or id")
    every = dict.fromkeys([*classes, *(word for names in words.values() for word in names)])
    some = ", ".join(map(_described, classes[:5])) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
    raise ExcitationError(f"no class is called {asked!r}; there are {some}{nearest(low, every)}")


def _split(words: str) -> list[str]:
    return words.replace("-", " ").split()


def _described(name: str) -> str:
    words = _imagenet().get(name)
    return f"{name} ({', '.join(words)})" if words else name


@functools.cache
def _imagenet() -> dict[str, tuple[str, ...]]:
    """Return WordNet's names of ImageNet's 1,000 classes by their ids; the first of a class is its own if it can be."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {id: tuple(info.label_name_to_description(id).split(", ")) for id in info.label_names()}
