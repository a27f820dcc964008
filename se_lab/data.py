"""The images: small sets as tensors in memory, folders of images through torchvision and timm.

Order and augmentation come from streams keyed by (seed, epoch) and (seed, epoch, image): they do not depend on the
model, on the number of workers, or on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets.folder import IMG_EXTENSIONS

from se_lab.spec import DataSpec, SpecError, seed_of

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W), labels (N,), and the images' numbers in their split (N,)."""


class DataError(ValueError):
    """A data set that cannot be trained on; the message names the folder or file."""


class KeyedSampler(Sampler[tuple[int, int]]):
    """The order of the images: a permutation keyed by (seed, epoch), or as they come. Lightning tells it the epoch."""

    def __init__(self, size: int, seed: int | None) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch, from 0, that the next pass belongs to."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the image numbers of this epoch, (size,)."""
        if self.seed is None:
            return torch.arange(self.size)
        stream = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        return torch.randperm(self.size, generator=stream)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, image) for image in self.order().tolist())


class Batches:
    """A data loader that can stop in the middle of an epoch and go on there: Lightning saves and restores its state.

    In training the images that do not fill a last batch sit an epoch out, a different few each time; fewer images
    than a batch make one batch.
    """

    batch_sampler = None  # Lightning asks whoever has a sampler for it

    def __init__(self, sampler: KeyedSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = min(batch_size, sampler.size)
        self.done = 0  # batches of this epoch that were handed out

    def __len__(self) -> int:
        full, rest = divmod(self.sampler.size, self.batch_size)
        return full + bool(rest and self.sampler.seed is None)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is drawn before the first batch is asked for, when the epoch is known.
        skip, self.done = self.done % len(self), self.done % len(self)
        for batch in self.load(skip):
            self.done += 1
            yield batch

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from number `skip` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Return how far this epoch is."""
        return {"done": self.done % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there at the next pass."""
        self.done = state["done"]


class TensorBatches(Batches):
    """Batches of a set that lies in memory, augmented a batch at a time."""

    def __init__(self, images: Tensor, labels: Tensor, sampler: KeyedSampler, batch_size: int, pad: int) -> None:
        super().__init__(sampler, batch_size)
        self.images, self.labels, self.pad = images, labels, pad

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield random crops of the zero-padded images, or the images themselves where `pad` is 0."""
        order = self.sampler.order()
        corners = None
        if self.pad:
            stream = torch.Generator().manual_seed(seed_of(self.sampler.seed or 0, "augment", self.sampler.epoch))
            corners = torch.randint(2 * self.pad + 1, (self.sampler.size, 2), generator=stream)  # row i is image i's
        for number in range(skip, len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            images = self.images[index]
            if corners is not None:
                images = crop(F.pad(images, [self.pad] * 4), corners[index], images.shape[-1])
            yield images, self.labels[index], index


def crop(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut a square out of each image, (N, C, H, W) -> (N, C, size, size), at its corner, (N, 2) rows and columns."""
    span = torch.arange(size)
    rows = corners[:, 0, None] + span
    columns = corners[:, 1, None] + span
    number = torch.arange(len(images))[:, None, None]
    return images[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


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
            image = self.transform(_open(self.files[number]).convert("RGB"))
        return image, self.labels[number], number


class ImageData(L.LightningDataModule):
    """A data set in three splits. The test split is looked at once, at the end, and decides nothing."""

    classes: list[str]
    in_chans: int
    image_size: int
    digest: str
    """Identifies the images: tables warn where trials of different digests meet."""
    sizes: dict[str, int]
    """Images of the train, val and test splits."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        super().__init__()
        self.spec, self.seed = spec, seed

    def test_keys(self) -> Sequence[str]:
        """Return a name for each test image, in order."""
        return [str(number) for number in range(self.sizes["test"])]

    def batches(self, split: str) -> Batches:
        """Return the loader of train, val or test."""
        raise NotImplementedError

    def train_dataloader(self) -> Batches:
        """Return the training batches, in the order of (seed, epoch)."""
        return self.batches("train")

    def val_dataloader(self) -> Batches | list[Any]:
        """Return the validation batches; none where no image is held out."""
        return self.batches("val") if self.sizes["val"] else []

    def test_dataloader(self) -> Batches:
        """Return the test batches."""
        return self.batches("test")

    def _sampler(self, split: str) -> KeyedSampler:
        return KeyedSampler(self.sizes[split], self.seed if split == "train" else None)


class DigitsData(ImageData):
    """scikit-learn's handwritten digits (UCI, 1,797 images of 8×8): a fifth is the test split."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        super().__init__(spec, seed)
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        labels = torch.from_numpy(digits.target).long()
        train, val, test = stratified_split(labels, (spec.val_fraction * 0.8, 0.2), spec.split_seed)
        # the test images have no say in the normalisation either
        images = (images - images[train].mean()) / images[train].std()
        if spec.image_size not in (None, images.shape[-1]):
            images = F.interpolate(images, size=spec.image_size, mode="bilinear", align_corners=False)
        self.images, self.labels = images, labels
        self.splits = {"train": train, "val": val, "test": test}
        self.sizes = {split: len(index) for split, index in self.splits.items()}
        self.classes = [str(digit) for digit in range(10)]
        self.in_chans, self.image_size = 1, images.shape[-1]
        self.digest = hashlib.sha256(digits.images.tobytes() + digits.target.tobytes()).hexdigest()[:16]

    def test_keys(self) -> Sequence[str]:
        """Return the test images' numbers in scikit-learn's set."""
        return [str(number) for number in self.splits["test"].tolist()]

    def batches(self, split: str) -> Batches:
        """Return the loader of a split; training images move by up to an eighth of their side."""
        index = self.splits[split]
        moves = split == "train" and self.spec.augment == "standard"
        pad = self.image_size // 8 if moves else 0
        return TensorBatches(self.images[index], self.labels[index], self._sampler(split), self.spec.batch_size, pad)


class FolderData(ImageData):
    """Folders in torchvision's ImageFolder layout: train/, and val/ or test/ or both, each with a folder a class.

    With both, val/ is the validation split; with one of them, that one is the test split, as ImageNet's val/ is in
    the paper, and `val_fraction` of the training images are held out for validation.
    """

    def __init__(self, spec: DataSpec, seed: int, root: str | Path, workers: int) -> None:
        super().__init__(spec, seed)
        self.workers = workers
        self.root = Path(root, spec.name.removeprefix("folder:")).expanduser()
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
        self.digest = hashlib.sha256("\n".join(sorted(listing)).encode()).hexdigest()[:16]
        _check_readable([path for images in self.splits.values() for path, _ in images])

    def test_keys(self) -> Sequence[str]:
        """Return the test images' paths under the root."""
        return [str(path.relative_to(self.root)) for path, _ in self.splits["test"]]

    def batches(self, split: str) -> Batches:
        """Return the loader of a split, with timm's transforms: random resized crop and flip in training."""
        from timm.data import create_transform

        augment = split == "train" and self.spec.augment == "standard"
        size = (3, self.image_size, self.image_size)
        transform = create_transform(size, is_training=augment, color_jitter=None, crop_pct=224 / 256)  # type: ignore[arg-type]
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


def create_data(spec: DataSpec, seed: int, *, root: str = ".", workers: int = 0) -> ImageData:
    """Open the data set of a spec.

    Args:
        spec: Which images.
        seed: Seeds the order and the augmentation of the training images.
        root: Where relative paths start.
        workers: Processes that read files.

    Raises:
        DataError: naming the folder or file that cannot be used.
    """
    if spec.name == "digits":
        return DigitsData(spec, seed)
    return FolderData(spec, seed, root, workers)


def data_shape(spec: DataSpec, *, root: str = ".") -> tuple[int, tuple[int, int, int], int]:
    """Return classes, (C, H, W) of an image, and training images, without opening a set where they are known."""
    if spec.name == "digits":
        return 10, (1, spec.image_size or 8, spec.image_size or 8), round(1797 * 0.8 * (1 - spec.val_fraction))
    data = create_data(spec, 0, root=root)
    return len(data.classes), (data.in_chans, data.image_size, data.image_size), data.sizes["train"]


def stratified_split(labels: Tensor, shares: tuple[float, float], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split images at random, class by class.

    Args:
        labels: (N,) class numbers.
        shares: Of the second and the third part; the first gets the rest.
        seed: Of the split.

    Returns:
        The image numbers of the three parts, rising.
    """
    stream = torch.Generator().manual_seed(seed_of(seed, "split"))
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=stream)]
        second, third = (round(share * len(members)) for share in shares)
        for part, index in zip(parts, members.split([len(members) - second - third, second, third]), strict=True):
            part.append(index)
    first, middle, last = (torch.cat(part).sort().values for part in parts)
    return first, middle, last


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
            with Image.open(path) as image:
                image.verify()
        except Exception as error:  # PIL raises whatever its decoders do
            unreadable.append(f"{path} ({error})")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(paths)} images cannot be read: {'; '.join(unreadable[:10])}")


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # PIL raises whatever its decoders do
        raise DataError(f"{path} cannot be read: {error}") from error
    return image


def check_split(spec: DataSpec, sizes: dict[str, int], needs: str) -> None:
    """Raise SpecError if no validation image is there for what needs one."""
    if not sizes["val"]:
        raise SpecError(f"{needs} looks at validation images and {spec.name} holds none out: set data.val_fraction")
