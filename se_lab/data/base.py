"""What all data sets share: three splits, and loaders that can stop in the middle of an epoch.

Order and augmentation come from streams keyed by (seed, epoch) and (seed, epoch, image): they do not depend on the
model, on the number of workers, or on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Sampler

from se_lab.spec import DataSpec, seed_of

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W), labels (N,), and the images' numbers in their split (N,)."""

SPLITS = ("train", "val", "test")


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


def digest_of(*parts: bytes) -> str:
    """Return 16 hexadecimal digits that identify a data set by its bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
