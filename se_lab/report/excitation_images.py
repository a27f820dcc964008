"""The images to show a net: classes by name, a few images of each, batches that can start anywhere."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from se_lab.activations import ExcitationError
from se_lab.data import Batch, DataError, create_data
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
    batches: Callable[[Tensor], Iterable[Batch]]
    """Makes the batches of the images of the given numbers, in that order: images (N, C, H, W), labels, numbers."""
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


def open_images(
    spec: DataSpec, *, root: str = ".", workers: int = 0, config: dict[str, Any] | None = None
) -> LabelledImages:
    """Open the test images of a data set.

    Args:
        spec: Which; for folder:PATH (and sets that lie in folders under the root) the images of PATH/test, else of
            PATH/val, else of PATH itself, a folder a class.
        root: Where relative paths start.
        workers: Processes that read files.
        config: timm's data config of a pretrained net (input size, crop, mean and std); by default SE-Lab's own.

    Raises:
        DataError: naming the folder that is missing or holds no images.
    """
    if spec.name.startswith("folder:") or spec.name in ("imagenet", "places365"):
        folder = Path(root, spec.name.removeprefix("folder:")).expanduser()
        split = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder)
        return _from_folder(split, spec, workers, config)
    return _from_memory(spec, root)


def _from_memory(spec: DataSpec, root: str) -> LabelledImages:
    from PIL import Image

    data = create_data(spec, 0, root=root)
    images, labels = (torch.cat(parts) for parts in list(zip(*data.batches("test"), strict=True))[:2])

    def batches(numbers: Tensor) -> Iterator[Batch]:
        for part in torch.split(numbers, spec.batch_size):
            yield images[part], labels[part], part

    def picture(number: int) -> Image.Image:
        pixels = images[number].permute(1, 2, 0)
        scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
        return Image.fromarray(scaled.byte().squeeze(2).numpy())

    return LabelledImages(spec.name, data.classes, labels, data.digest, batches, picture)


def _from_folder(folder: Path, spec: DataSpec, workers: int, config: dict[str, Any] | None) -> LabelledImages:
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    size = spec.image_size or 224
    transform = create_transform(**config or {"input_size": (3, size, size), "crop_pct": spec.crop_pct})
    try:
        images = ImageFolder(folder, transform, loader=_read, allow_empty=True)
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no folder of images, with a folder a class: {error}") from None
    if not len(images):
        raise DataError(f"{folder} has class folders, and no image that can be read")
    listing = [f"{Path(file).relative_to(folder)} {Path(file).stat().st_size}" for file, _ in images.samples]

    def batches(numbers: Tensor) -> Iterator[Batch]:
        done = 0
        pinned = torch.cuda.is_available()
        subset = Subset(images, numbers.tolist())
        for batch, labels in DataLoader(subset, spec.batch_size, num_workers=workers, pin_memory=pinned):
            yield batch, labels, numbers[done : done + len(labels)]
            done += len(labels)

    return LabelledImages(
        f"folder:{folder}",
        images.classes,
        torch.tensor(images.targets),
        hashlib.sha256("\n".join([*listing, repr(transform)]).encode()).hexdigest()[:16],
        batches,
        lambda number: _read(images.samples[number][0]),
    )


def _read(path: str) -> Image.Image:
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except Exception as error:  # PIL raises whatever its decoders do
        raise DataError(f"{path} cannot be read: {error}") from error


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
    return {id: tuple(info.label_name_to_description(id).split(", ")) for id in info.label_names()}  # type: ignore[no-untyped-call]
