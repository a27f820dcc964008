"""What all data sets have in common: three splits, and loaders that can stop within an epoch.

Order and augmentation come from streams keyed by (seed, epoch) and (seed, epoch, image): they do not depend on the
model, on the number of workers, or on where a run was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
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
labels are fractions of the classes, (N, classes)."""

SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """A data set that cannot be trained on; the message names the folder or file."""


class KeyedSampler(Sampler[tuple[int, int, int]]):
    """The order of the images: a permutation keyed by (seed, epoch), or as they come. Lightning sets the epoch.

    With repeats, each image comes `repeats` times in a row, and an epoch has as many images as without.
    """

    def __init__(self, size: int, seed: int | None, repeats: int = 1, *, fixed: bool = False) -> None:
        """Take the number of images and the seed; `fixed` repeats the first epoch, to overfit a few batches."""
        self.size, self.seed, self.repeats, self.fixed, self.epoch = size, seed, repeats, fixed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch, from 0, that the next pass belongs to."""
        self.epoch = 0 if self.fixed else epoch

    def order(self) -> Tensor:
        """Return the image numbers of this epoch, (size,)."""
        if self.seed is None:
            return torch.arange(self.size)
        stream = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        return torch.randperm(self.size, generator=stream).repeat_interleave(self.repeats)[: self.size]

    def turns(self) -> Tensor:
        """Return each place's repetition number of its image, from 0, (size,)."""
        return torch.arange(self.size) % self.repeats

    def key(self, stream: str, turn: int) -> int:
        """Return the seed of a stream in this epoch, for repetition `turn` of the images."""
        return seed_of(self.seed or 0, stream, self.epoch, *([turn] if turn else []))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        pairs = zip(self.order().tolist(), self.turns().tolist(), strict=True)
        return ((self.epoch, image, turn) for image, turn in pairs)


@dataclass(frozen=True)
class Portion:
    """The part of every training step that one rank takes: a step is `accumulate` micro-batches on each rank."""

    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    def micro_batch(self, batch_size: int) -> int:
        """Return the number of images in a micro-batch, for a step of `batch_size` images.

        Raises:
            SpecError: where a step cannot be divided evenly, naming the nearest sizes that can.
        """
        parts = self.ranks * self.accumulate
        if batch_size % parts:
            multiple = batch_size - batch_size % parts
            sizes = " or ".join(str(size) for size in (multiple, multiple + parts) if size)
            raise SpecError(
                f"data.batch_size is {batch_size}, the images of a training step on all devices; "
                f"{counted(self.ranks, 'device')} with {counted(self.accumulate, 'accumulation step')} each need a "
                f"multiple of {parts}: {sizes}"
            )
        return batch_size // parts


class Batches:
    """A data loader that can stop in the middle of an epoch and resume there: Lightning saves and restores its state.

    In training, step k of an epoch has the images batch_size * k to batch_size * (k + 1) of the epoch's order, however
    many ranks and micro-batches share it: rank r of R takes images r, r + R, … of the step's first half, and their
    mirror images in the second. This separates the repeats of an image and keeps the pairs of mixup together. Images
    that do not fill a last batch are left out of the epoch, other ones in each epoch; fewer images than a batch make
    one batch. In evaluation all ranks have the same number of batches, and every image is in exactly one.
    """

    batch_sampler = None  # Lightning reads it from every loader with a sampler

    def __init__(self, sampler: KeyedSampler, batch_size: int, portion: Portion = Portion()) -> None:
        self.sampler, self.portion = sampler, portion
        self.micro_batch = portion.micro_batch(batch_size)
        parts = portion.ranks * (portion.accumulate if self.training else 1)
        if self.training and sampler.size < batch_size:
            self.micro_batch = sampler.size // parts
        if sampler.size < parts or (self.training and sampler.size < batch_size and self.micro_batch < 2):
            raise DataError(
                f"{counted(sampler.size, 'training image' if self.training else 'image')} cannot be divided into a "
                f"batch of two or more for each of {counted(parts, 'device or accumulation step')}"
            )
        self.done = 0  # micro-batches of this epoch that have been yielded
        self._skip = 0  # of the next pass, which resumes an epoch
        self.mixer: Mixer | None = None

    @property
    def training(self) -> bool:
        """Whether the order is a shuffled one."""
        return self.sampler.seed is not None

    def __len__(self) -> int:
        """Return the micro-batches of an epoch on this rank."""
        count, rest = divmod(self.sampler.size, self.micro_batch * self.portion.ranks)
        if self.training:
            return count // self.portion.accumulate * self.portion.accumulate
        return count + (rest >= self.portion.ranks or not count)  # fewer join the batch before

    def places(self, number: int) -> Tensor:
        """Return the places in the epoch's order that micro-batch `number` of this rank takes."""
        rank, ranks, accumulate = self.portion.rank, self.portion.ranks, self.portion.accumulate
        first = number * self.micro_batch * ranks
        if not self.training:
            last = self.sampler.size if number == len(self) - 1 else first + self.micro_batch * ranks
            return torch.arange(first + (last - first) * rank // ranks, first + (last - first) * (rank + 1) // ranks)
        step_size = self.micro_batch * ranks * accumulate
        step, part = divmod(number, accumulate)
        if self.micro_batch % 2:
            return step * step_size + torch.arange(step_size).view(accumulate, -1, ranks)[part, :, rank]
        half = torch.arange(step_size // 2).view(accumulate, -1, ranks)[part, :, rank]
        return step * step_size + torch.cat([half, (step_size - 1 - half).flip(0)])

    def __iter__(self) -> Iterator[Batch]:
        # A generator: it draws no random number before the first batch is asked for, when the epoch is known.
        skip, self.done, self._skip = self._skip, self._skip, 0
        for images, labels, numbers in self.load(skip):
            if self.mixer is not None:
                step = self.done // self.portion.accumulate
                key = seed_of(self.sampler.seed or 0, "mix", self.sampler.epoch, step)
                images, labels = self.mixer(images, labels, key)
            self.done += 1
            yield images, labels, numbers

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from number `skip` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Return how many micro-batches of this epoch have been yielded."""
        return {"done": self.done % len(self), "accumulate": self.portion.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume the epoch at the next pass; the number of ranks may differ, that of accumulation steps may not.

        Raises:
            DataError: for another number of accumulation steps.
        """
        accumulate = state.get("accumulate", 1)
        if state["done"] and accumulate != self.portion.accumulate:
            raise DataError(
                f"the epoch began with {counted(accumulate, 'accumulation step')} and can only be resumed with as "
                f"many, not with {self.portion.accumulate}"
            )
        self.done = self._skip = state["done"] % len(self)


class ImageData(L.LightningDataModule):
    """A data set in three splits. The test split is evaluated once, at the end, and decides nothing."""

    classes: list[str]
    in_chans: int
    image_size: int
    sizes: dict[str, int]
    """Images of the train, val and test splits."""
    accumulate: int = 1
    """Micro-batches of a training step on each device; with a trainer, its own number counts."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        super().__init__()
        self.spec, self.seed = spec, seed
        self.skipped: list[str] = []
        """Images left out so far, with the reason (data.on_error=skip)."""
        self._digest: str | None = None
        self.left_out: Counter[str] = Counter()
        """How many entries of each kind are no images, such as {"hidden": 2, ".gif": 3}."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the images left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the images left out."""
        self.skipped = list(dict.fromkeys([*state_dict["skipped"], *self.skipped]))

    @property
    def digest(self) -> str:
        """Identifies the images: tables warn where they mix trials of different digests."""
        if self._digest is None:
            self._digest = self.identify()
        return self._digest

    def identify(self) -> str:
        """Return the digest of the images' bytes, names and labels (se_lab.data.digests)."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """Return the names of the classes, as people call them."""
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

    def predict_dataloader(self) -> Batches:
        """Return the test batches."""
        return self.batches("test")

    @property
    def batch_size(self) -> int:
        """Images of a training step on all devices. Lightning's Tuner sets it (scale_batch_size)."""
        return self.spec.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.spec = dataclasses.replace(self.spec, batch_size=value)

    def summary(self) -> str:
        """Return one line: the images of each split, their size, the classes, and how many were left out."""
        splits = [f"{self.sizes[split]:,} {split}" for split in SPLITS if self.sizes[split]]
        line = (
            f"{self.spec.name}: {', '.join(splits)} images of {self.image_size}×{self.image_size} pixels in "
            f"{counted(len(self.classes), 'class', 'classes')}"
        )
        kinds = [f"{number:,} {kind}" for kind, number in sorted(self.left_out.items())]
        kinds += [f"{len(self.skipped):,} unreadable"] if self.skipped else []
        return line + (f"; left out: {', '.join(kinds)}" if kinds else "")

    def portion(self) -> Portion:
        """Return the part of a step that this process takes: of the trainer's ranks, or all of it without a trainer."""
        if self.trainer is None:
            return Portion(accumulate=self.accumulate)
        return Portion(self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches)

    def _sampler(self, split: str) -> KeyedSampler:
        if split == "train":
            fixed = bool(getattr(self.trainer, "overfit_batches", 0))
            return KeyedSampler(self.sizes[split], self.seed, self.spec.repeats, fixed=fixed)
        return KeyedSampler(self.sizes[split], None)

    def device(self) -> torch.device:
        """Return the trainer's device."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")


def stratified_split(labels: Tensor, shares: tuple[float, float], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split images at random, class by class.

    Args:
        labels: (N,) class numbers.
        shares: The second and the third part, as fractions; the first gets the rest.
        seed: Seed of the split.

    Returns:
        The image numbers of the three parts, in ascending order.
    """
    stream = torch.Generator().manual_seed(seed_of(seed, "split"))
    parts: tuple[list[Tensor], ...] = ([], [], [])
    ends = torch.unique(labels, return_counts=True)[1].cumsum(0)
    by_class = labels.argsort(stable=True).tensor_split(ends[:-1].tolist())
    for members in by_class:
        members = members[torch.randperm(len(members), generator=stream)]
        second, third = (round(share * len(members)) for share in shares)
        cuts = [len(members) - second - third, len(members) - third]
        for part, index in zip(parts, members.tensor_split(cuts), strict=True):
            part.append(index)
    first, middle, last = (torch.cat(part).sort().values for part in parts)
    return first, middle, last


def counted(number: int, what: str, plural: str = "") -> str:
    """Return '1 image' or '1,234 images'."""
    return f"{number:,} {what if number == 1 else plural or f'{what}s'}"
