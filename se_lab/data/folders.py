"""Sets that lie in folders of image files: a folder a class, ImageNet and Places365 as torchvision lays them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets import Places365
from torchvision.datasets.folder import IMG_EXTENSIONS

from se_lab.data.base import DataError, digest_of
from se_lab.data.images import EncodedData
from se_lab.spec import DataSpec


@dataclass(frozen=True)
class Files:
    """Image files, by their paths under a root."""

    root: Path
    names: Sequence[str]
    labels: Sequence[int]
    remote: bool = False

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the files' bytes."""
        try:
            return [(self.root / self.names[number]).read_bytes() for number in numbers]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


class FolderData(EncodedData):
    """Folders in torchvision's ImageFolder layout: train/, and val/ or test/ or both, each with a folder a class.

    With both, val/ is the validation split; with one of them, that one is the test split, as ImageNet's val/ is in
    the paper, and `val_fraction` of the training images are held out for validation. Files that do not end as images
    do are passed over, as torchvision passes over them.
    """

    def __init__(self, spec: DataSpec, seed: int, root: str | Path, workers: int) -> None:
        super().__init__(spec, seed, workers)
        self.root, (self.classes, train, val, test), sizes = _look(spec, root)
        self.digest = _digest(sizes)
        self.set_splits(train, val, test, {name: "it has no bytes" for name, size in sizes.items() if not size})

    def class_names(self) -> list[str]:
        """Return what the classes are called: for WordNet ids the words of torchvision's meta.bin, else of timm."""
        if not all(name[:1] == "n" and name[1:].isdigit() and len(name) == 9 for name in self.classes):
            return self.classes
        if (meta := self.root / "meta.bin").exists():
            words: dict[str, Sequence[str]] = torch.load(meta, weights_only=True)[0]
        else:
            from timm.data import ImageNetInfo

            info = ImageNetInfo("imagenet22k")
            words = {id: (info.label_name_to_description(id),) for id in info.label_names()}  # type: ignore[no-untyped-call]
        return [", ".join(words.get(name, [name])) for name in self.classes]


def folder_digest(spec: DataSpec, root: str | Path) -> str:
    """Return the digest that a FolderData would have, from a look at names and sizes alone.

    Raises:
        DataError: as FolderData does.
    """
    return _digest(_look(spec, root)[2])


Splits = tuple[list[str], Files, Files | None, Files]
"""Classes, and the train, val and test split; no val where it is to be held out of train."""


def _look(spec: DataSpec, root: str | Path) -> tuple[Path, Splits, dict[str, int]]:
    """Return where a set lies, its splits, and the bytes of each file."""
    folder = Path(root, spec.name.removeprefix("folder:")).expanduser()  # imagenet and places365: root/<name>
    lists = spec.name == "places365" and (folder / "places365_train_standard.txt").exists()
    splits = _places365(folder) if lists else _folders(folder)
    sizes = {name: (folder / name).stat().st_size for part in splits[1:] if part for name in part.names}
    return folder, splits, sizes


def _digest(sizes: dict[str, int]) -> str:
    return digest_of("\n".join(sorted(f"{name} {size}" for name, size in sizes.items())).encode())


def _folders(root: Path) -> Splits:
    classes, train = _scan(root, "train")
    held_out = [name for name in ("val", "test") if (root / name).is_dir()]
    if not held_out:
        raise DataError(f"{root} has train/ but neither val/ nor test/; one of them holds the test images")
    others = []
    for name in held_out:
        found, files = _scan(root, name)
        if found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise DataError(f"{root / name} and {root / 'train'} have different classes: {', '.join(odd[:5])}")
        others.append(files)
    return classes, train, others[0] if len(others) == 2 else None, others[-1]


def _places365(root: Path) -> Splits:
    """Read torchvision's layout: lists of files, and data_256_standard/ and val_256/, or the large ones."""
    small = (root / "data_256_standard").is_dir()
    try:
        train, test = (Places365(root, split, small=small) for split in ("train-standard", "val"))
    except RuntimeError as error:
        raise DataError(f"{root} has torchvision's layout of Places365, and it is torn: {error}") from error
    splits = []
    for part in (train, test):
        if not Path(part.images_dir).is_dir():
            raise DataError(
                f"{part.images_dir} is missing; Places365 has data_256_standard/ and val_256/, or "
                "data_large_standard/ and val_large/"
            )
        splits.append(Files(root, [os.path.relpath(path, root) for path, _ in part.imgs], part.targets))
    names = sorted(train.class_to_idx, key=train.class_to_idx.__getitem__)
    return names, splits[0], None, splits[1]


def _scan(root: Path, split: str) -> tuple[list[str], Files]:
    """Return the class names of a split and its images, in a fixed order."""
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; a data set has train/ and val/ or test/, each with a folder a class")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) < 2:
        loose = sum(path.suffix.lower() in IMG_EXTENSIONS for path in folder.iterdir())
        raise DataError(
            f"{folder} has {len(classes)} class folders ({', '.join(classes)}); training needs two or more"
            + (f", and the {loose} images beside them belong into the folders of their classes" if loose else "")
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise DataError(f"{folder / name} has no image; files ending in {', '.join(IMG_EXTENSIONS)} count")
        names += [str(path.relative_to(root)) for path in files]
        labels += [label] * len(files)
    return classes, Files(root, names, labels)
