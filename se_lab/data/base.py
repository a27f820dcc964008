"""What all data sets share: three splits, and loaders that can stop in the middle of an epoch.

Order and augmentation come from streams keyed by (seed, epoch) and (seed, epoch, image): they do not depend on the
model, on the number of workers, or on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Sampler

from se_lab.data.augment import Mixer, check_mixing
from se_lab.spec import DataSpec, SpecError, seed_of

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W), labels (N,), and the images' numbers in their split (N,). In training with mixup or cutmix the
labels are shares of the classes, (N, classes)."""

SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """A data set that cannot be trained on; the message names the folder or file."""


class KeyedSampler(Sampler[tuple[int, int, int]]):
    """The order of the images: a permutation keyed by (seed, epoch), or as they come. Lightning tells it the epoch.

    With repeats, each image comes so many times in a row, and as many images as before in all.
    """

    def __init__(self, size: int, seed: int | None, repeats: int = 1) -> None:
        self.size, self.seed, self.repeats, self.epoch = size, seed, repeats, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch, from 0, that the next pass belongs to."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the image numbers of this epoch, (size,)."""
        if self.seed is None:
            return torch.arange(self.size)
        stream = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        return torch.randperm(self.size, generator=stream).repeat_interleave(self.repeats)[: self.size]

    def turns(self) -> Tensor:
        """Return which repetition of its image each place of the order is, from 0, (size,)."""
        return torch.arange(self.size) % self.repeats

    def key(self, stream: str, turn: int) -> int:
        """Return the seed of what is drawn in this epoch for repetition `turn` of the images."""
        return seed_of(self.seed or 0, stream, self.epoch, *([turn] if turn else []))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        pairs = zip(self.order().tolist(), self.turns().tolist(), strict=True)
        return ((self.epoch, image, turn) for image, turn in pairs)


@dataclass(frozen=True)
class Share:
    """The part of every training step that one process takes: step = accumulate micro-batches on each of the ranks."""

    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    def micro_batch(self, batch_size: int) -> int:
        """Return the images of a micro-batch, of the `batch_size` that a training step sees in all.

        Raises:
            SpecError: where they cannot be dealt out evenly, naming the nearest sizes that can.
        """
        parts = self.ranks * self.accumulate
        if batch_size % parts:
            below = batch_size - batch_size % parts
            nearest = " or ".join(str(size) for size in (below, below + parts) if size)
            raise SpecError(
                f"data.batch_size is {batch_size}, the images of a training step in all; {self.ranks} device(s) with "
                f"{self.accumulate} accumulation step(s) each need a multiple of {parts}: {nearest}"
            )
        return batch_size // parts


class Batches:
    """A data loader that can stop in the middle of an epoch and go on there: Lightning saves and restores its state.

    In training, step k of an epoch sees the images batch_size * k to batch_size * (k + 1) of the epoch's order, on
    however many ranks and in however many micro-batches: each takes every so-manieth image of the step's first half
    and those that mirror them in its second, so that repeats of an image part and the pairs of mixup stay together.
    The images that do not fill a last batch sit an epoch out, a different few each time; fewer images than a batch
    make one batch. In evaluation every rank has as many batches as the others, and every image is in just one.
    """

    batch_sampler = None  # Lightning asks whoever has a sampler for it

    def __init__(self, sampler: KeyedSampler, batch_size: int, share: Share = Share()) -> None:
        self.sampler, self.share = sampler, share
        self.micro_batch = share.micro_batch(batch_size)
        parts = share.ranks * (share.accumulate if self.training else 1)
        if self.training and sampler.size < batch_size:
            self.micro_batch = sampler.size // parts
        if sampler.size < parts or (self.training and sampler.size < batch_size and self.micro_batch < 2):
            raise DataError(
                f"{sampler.size} {'training ' if self.training else ''}image(s) do not make a batch of two or more for "
                f"each of {parts} device(s) or accumulation step(s)"
            )
        self.done = 0  # micro-batches of this epoch that were handed out
        self.mixer: Mixer | None = None

    @property
    def training(self) -> bool:
        """Whether the order is a shuffled one."""
        return self.sampler.seed is not None

    def __len__(self) -> int:
        """Return the micro-batches of an epoch on this rank."""
        full, rest = divmod(self.sampler.size, self.micro_batch * self.share.ranks)
        if self.training:
            return full // self.share.accumulate * self.share.accumulate
        return full + (rest >= self.share.ranks or not full)  # fewer are dealt out with the batch before

    def places(self, number: int) -> Tensor:
        """Return the places in the epoch's order that micro-batch `number` of this rank takes."""
        rank, ranks, accumulate = self.share.rank, self.share.ranks, self.share.accumulate
        first = number * self.micro_batch * ranks
        if not self.training:
            last = self.sampler.size if number == len(self) - 1 else first + self.micro_batch * ranks
            return torch.arange(first + (last - first) * rank // ranks, first + (last - first) * (rank + 1) // ranks)
        whole = self.micro_batch * ranks * accumulate
        step, part = divmod(number, accumulate)
        if self.micro_batch % 2:
            return step * whole + torch.arange(whole).view(accumulate, -1, ranks)[part, :, rank]
        left = torch.arange(whole // 2).view(accumulate, -1, ranks)[part, :, rank]
        return step * whole + torch.cat([left, (whole - 1 - left).flip(0)])

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is drawn before the first batch is asked for, when the epoch is known.
        skip, self.done = self.done % len(self), self.done % len(self)
        for images, labels, numbers in self.load(skip):
            if self.mixer is not None:
                step = self.done // self.share.accumulate
                key = seed_of(self.sampler.seed or 0, "mix", self.sampler.epoch, step)
                images, labels = self.mixer(images, labels, key)
            self.done += 1
            yield images, labels, numbers

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from number `skip` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Return how far this epoch is."""
        return {"done": self.done % len(self), "accumulate": self.share.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there at the next pass; on other ranks, but in as many accumulation steps."""
        accumulate = state.get("accumulate", 1)
        if state["done"] and accumulate != self.share.accumulate:
            raise DataError(
                f"the epoch was begun with {accumulate} accumulation step(s), and can be ended with them alone, not "
                f"with {self.share.accumulate}"
            )
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
    accumulate: int = 1
    """Micro-batches of a training step on each device."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        super().__init__()
        self.spec, self.seed = spec, seed
        self.skipped: list[str] = []
        """Images left out so far, with the reason (data.on_error=skip)."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the images left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.skipped = list(dict.fromkeys([*state_dict["skipped"], *self.skipped]))

    def class_names(self) -> list[str]:
        """Return what a person calls the classes."""
        return self.classes

    def test_keys(self) -> Sequence[str]:
        """Return a name for each test image, in order."""
        return [str(number) for number in range(self.sizes["test"])]

    def batches(self, split: str) -> Batches:
        """Return the loader of train, val or test."""
        raise NotImplementedError

    def train_dataloader(self) -> Batches:
        """Return the training batches, in the order of (seed, epoch), mixed if the spec says so."""
        batches = self.batches("train")
        if self.spec.mixup or self.spec.cutmix:
            check_mixing(batches.micro_batch)
            batches.mixer = Mixer(self.spec, len(self.classes))
        return batches

    def val_dataloader(self) -> Batches | list[Any]:
        """Return the validation batches; none where no image is held out."""
        return self.batches("val") if self.sizes["val"] else []

    def test_dataloader(self) -> Batches:
        """Return the test batches."""
        return self.batches("test")

    def share(self) -> Share:
        """Return the part of a step that this process takes: of the trainer's ranks, or all of it without one."""
        if self.trainer is None:
            return Share(accumulate=self.accumulate)
        return Share(self.trainer.global_rank, self.trainer.world_size, self.accumulate)

    def _sampler(self, split: str) -> KeyedSampler:
        if split == "train":
            return KeyedSampler(self.sizes[split], self.seed, self.spec.repeats)
        return KeyedSampler(self.sizes[split], None)

    def device(self) -> torch.device:
        """Return the trainer's device."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")


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
