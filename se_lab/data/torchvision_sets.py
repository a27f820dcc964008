"""torchvision's data sets for the table: small images in memory, others as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets as tv

from se_lab.data.base import stratified_split
from se_lab.data.files import Files
from se_lab.data.table import Splits

TEST_FRACTION = 0.2
"""Fraction of test images in data sets without a test split; the split does not depend on seeds."""


def _pixels(dataset: Any, labels: Any) -> TensorDataset:
    """Return the images of a torchvision data set, (N, C, H, W), and labels, as a TensorDataset."""
    data = torch.as_tensor(np.asarray(dataset.data))
    if data.dim() == 3:
        data = data[:, None]
    elif data.shape[-1] == 3:
        data = data.permute(0, 3, 1, 2)
    return TensorDataset(data.contiguous(), torch.as_tensor(np.asarray(labels)).long())


def _cifar(kind: Callable[..., Any]) -> Callable[..., Splits]:
    def open_set(root: Path, download: bool = False) -> Splits:
        train, test = (kind(root, train=part, download=download) for part in (True, False))
        parts = [_pixels(part, part.targets) for part in (train, test)]
        return Splits(parts[0], None, parts[1], train.classes, 32, pad=4)

    return open_set


def _mnist(kind: Callable[..., Any], flips: bool) -> Callable[..., Splits]:
    def open_set(root: Path, download: bool = False) -> Splits:
        train, test = (kind(root, train=part, download=download) for part in (True, False))
        parts = [_pixels(part, part.targets) for part in (train, test)]
        return Splits(parts[0], None, parts[1], train.classes, 28, pad=2, flips=flips)

    return open_set


def _svhn(root: Path, download: bool = False) -> Splits:
    train, test = (tv.SVHN(root, split=part, download=download) for part in ("train", "test"))
    parts = [_pixels(part, part.labels) for part in (train, test)]
    return Splits(parts[0], None, parts[1], [str(digit) for digit in range(10)], 32, pad=4, flips=False)


def _stl10(root: Path, download: bool = False) -> Splits:
    train, test = (tv.STL10(root, split=part, download=download) for part in ("train", "test"))
    parts = [_pixels(part, part.labels) for part in (train, test)]
    return Splits(parts[0], None, parts[1], train.classes, 96, pad=12)


def _food101(root: Path, download: bool = False) -> Splits:
    train, test = (tv.Food101(root, split=part, download=download) for part in ("train", "test"))
    parts = [_files(root, part._image_files, part._labels) for part in (train, test)]
    return Splits(parts[0], None, parts[1], train.classes)


def _flowers102(root: Path, download: bool = False) -> Splits:
    train, val, test = (tv.Flowers102(root, split=part, download=download) for part in ("train", "val", "test"))
    parts = [_files(root, part._image_files, part._labels) for part in (train, val, test)]
    return Splits(parts[0], parts[1], parts[2], train.classes)


def _oxford_pets(root: Path, download: bool = False) -> Splits:
    train, test = (tv.OxfordIIITPet(root, split=part, download=download) for part in ("trainval", "test"))
    parts = [_files(root, part._images, part._labels) for part in (train, test)]
    return Splits(parts[0], None, parts[1], train.classes)


def _caltech101(root: Path, download: bool = False) -> Splits:
    dataset = tv.Caltech101(root, download=download)
    folder = Path(dataset.root, "101_ObjectCategories")
    paths = [
        folder / dataset.categories[label] / f"image_{number:04d}.jpg"
        for label, number in zip(dataset.y, dataset.index, strict=True)
    ]
    return _divided(_files(root, paths, dataset.y), dataset.categories)


def _eurosat(root: Path, download: bool = False) -> Splits:
    dataset = tv.EuroSAT(root, download=download)
    return _divided(_files(root, [path for path, _ in dataset.samples], dataset.targets), dataset.classes, 64)


def _files(root: Path, paths: Sequence[str | Path], labels: Sequence[int]) -> Files:
    return Files(str(root), [os.path.relpath(path, root) for path in paths], list(labels))


def _divided(files: Files, classes: Sequence[str], image_size: int = 224) -> Splits:
    train, test, _ = stratified_split(torch.tensor(files.labels), (TEST_FRACTION, 0.0), seed=0)
    return Splits(Subset(files, train.tolist()), None, Subset(files, test.tolist()), classes, image_size)


TORCHVISION: dict[str, Callable[..., Splits]] = {
    "cifar10": _cifar(tv.CIFAR10),
    "cifar100": _cifar(tv.CIFAR100),
    "mnist": _mnist(tv.MNIST, flips=False),
    "fashion_mnist": _mnist(tv.FashionMNIST, flips=True),
    "svhn": _svhn,
    "stl10": _stl10,
    "food101": _food101,
    "flowers102": _flowers102,
    "oxford_pets": _oxford_pets,
    "caltech101": _caltech101,
    "eurosat": _eurosat,
}
