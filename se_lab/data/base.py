"""Base classes of data sets with three splits, and of resumable loaders.

Order and augmentation use random streams keyed by (seed, epoch) and (seed, epoch, image), so that they do not depend
on the model, the number of workers or interruptions.
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
from se_lab.spec.text import counted

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W), labels (N,), and the images' numbers in their split (N,). With mixup or cutmix, training labels
are class probabilities, (N, classes)."""

SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """A data set is unusable; the message names the folder or file."""


class KeyedSampler(Sampler[tuple[int, int, int]]):
    """The order of the images: a permutation keyed by (seed, epoch), or ascending.

    With `repeats`, each image occurs `repeats` times in a row, while the size of an epoch stays the same. Lightning
    sets the epoch.
    """

    def __init__(self, size: int, seed: int | None, repeats: int = 1, *, fixed: bool = False) -> None:
        """Order `size` images; with `fixed`, all epochs have the order of the first."""
        self.size, self.seed, self.repeats, self.fixed, self.epoch = size, seed, repeats, fixed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the next pass."""
        self.epoch = 0 if self.fixed else epoch

    def order(self) -> Tensor:
        """Return the image numbers of this epoch, (size,)."""
        if self.seed is None:
            return torch.arange(self.size)
        stream = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        return torch.randperm(self.size, generator=stream).repeat_interleave(self.repeats)[: self.size]

    def turns(self) -> Tensor:
        """Return the repetition number, from 0, of the image at each place, (size,)."""
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
    """A rank's part of each training step: `accumulate` micro-batches."""

    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    def micro_batch(self, batch_size: int) -> int:
        """Return the number of images in a micro-batch, for a step of `batch_size` images.

        Raises:
            SpecError: if a step cannot be divided evenly.
        """
        parts = self.ranks * self.accumulate
        if batch_size % parts:
            multiple = batch_size - batch_size % parts
            sizes = " or ".join(str(size) for size in (multiple, multiple + parts) if size)
            raise SpecError(
                f"data.batch_size is {batch_size}, the global batch size; {counted(self.ranks, 'device')} with "
                f"{counted(self.accumulate, 'accumulation step')} each need a multiple of {parts}, such as {sizes}"
            )
        return batch_size // parts


class Batches:
    """A data loader whose state can be saved and restored within an epoch, as Lightning does.

    In training, step k of an epoch has the images batch_size * k to batch_size * (k + 1) of the epoch's order, for any
    number of ranks and micro-batches: rank r of R takes images r, r + R, … of the first half, and their mirror images
    in the second. This separates the repeats of an image, and keeps the pairs of mixup together. Images that do not
    fill the last batch are left out of the epoch; if there are fewer images than a batch, they are one batch. In
    evaluation all ranks have the same number of batches, and each image is in exactly one.
    """

    batch_sampler = None  # Lightning expects this attribute of loaders with a sampler

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
        self.position = 0  # micro-batches yielded in this epoch
        self._skip = 0  # micro-batches to skip in the next pass, which resumes an epoch
        self.mixer: Mixer | None = None

    @property
    def training(self) -> bool:
        """Whether the images are shuffled."""
        return self.sampler.seed is not None

    def __len__(self) -> int:
        """Return the number of micro-batches of an epoch on this rank."""
        count, rest = divmod(self.sampler.size, self.micro_batch * self.portion.ranks)
        if self.training:
            return count // self.portion.accumulate * self.portion.accumulate
        return count + (rest >= self.portion.ranks or not count)  # a smaller rest joins the last batch

    def places(self, number: int) -> Tensor:
        """Return the places in the epoch's order of micro-batch `number` of this rank."""
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
        # a generator, since the epoch is known only when the first batch is requested
        skip, self.position, self._skip = self._skip, self._skip, 0
        for images, labels, numbers in self.load(skip):
            if self.mixer is not None:
                step = self.position // self.portion.accumulate
                key = seed_of(self.sampler.seed or 0, "mix", self.sampler.epoch, step)
                images, labels = self.mixer(images, labels, key)
            self.position += 1
            yield images, labels, numbers

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from number `skip` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Return the number of micro-batches yielded in this epoch."""
        return {"done": self.position % len(self), "accumulate": self.portion.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume the epoch in the next pass; the number of ranks may differ.

        Raises:
            DataError: if the number of accumulation steps differs.
        """
        accumulate = state.get("accumulate", 1)
        if state["done"] and accumulate != self.portion.accumulate:
            raise DataError(
                f"the epoch was started with {counted(accumulate, 'accumulation step')} and cannot be resumed with "
                f"{self.portion.accumulate}"
            )
        self.position = self._skip = state["done"] % len(self)


class ImageData(L.LightningDataModule):
    """Base class of data sets in three splits."""

    classes: list[str]
    in_chans: int
    image_size: int
    sizes: dict[str, int]
    """The numbers of images in the train, val and test splits."""
    accumulate: int = 1
    """Micro-batches of a training step on each device; a trainer's own number takes precedence."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        super().__init__()
        self.spec, self.seed = spec, seed
        self.skipped: list[str] = []
        """The skipped images, each with the reason (data.on_error=skip)."""
        self._digest: str | None = None
        self.left_out: Counter[str] = Counter()
        """The number of entries of each kind that are not images, such as {"hidden": 2, ".gif": 3}."""

    def state_dict(self) -> dict[str, Any]:
        """Return the skipped images, for a checkpoint."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the skipped images."""
        self.skipped = list(dict.fromkeys([*state_dict["skipped"], *self.skipped]))

    @property
    def digest(self) -> str:
        """The digest of the images; tables refuse trials of one data set with different digests."""
        if self._digest is None:
            self._digest = self.identify()
        return self._digest

    def identify(self) -> str:
        """Return the digest of the images' bytes, names and labels (se_lab.data.digests)."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """Return readable names of the classes."""
        return self.classes

    def test_keys(self) -> Sequence[str]:
        """Return a name for each test image, in order."""
        return [str(number) for number in range(self.sizes["test"])]

    def batches(self, split: str) -> Batches:
        """Return the loader of train, val or test."""
        raise NotImplementedError

    def train_dataloader(self) -> Batches:
        """Return the training batches, with the spec's mixup or cutmix."""
        batches = self.batches("train")
        if self.spec.mixup or self.spec.cutmix:
            check_mixing(batches.micro_batch)
            batches.mixer = Mixer(self.spec, len(self.classes))
        return batches

    def val_dataloader(self) -> Batches | list[Any]:
        """Return the validation batches, or an empty list if there are no validation images."""
        return self.batches("val") if self.sizes["val"] else []

    def test_dataloader(self) -> Batches:
        """Return the test batches."""
        return self.batches("test")

    def predict_dataloader(self) -> Batches:
        """Return the test batches."""
        return self.batches("test")

    @property
    def batch_size(self) -> int:
        """The global batch size of a training step, which Lightning's Tuner can set."""
        return self.spec.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.spec = dataclasses.replace(self.spec, batch_size=value)

    def summary(self) -> str:
        """Return a line with the numbers of images, classes and skipped files, and the image size."""
        splits = [f"{self.sizes[split]:,} {split}" for split in SPLITS if self.sizes[split]]
        line = (
            f"{self.spec.name}: {', '.join(splits)} images of {self.image_size}×{self.image_size} pixels in "
            f"{counted(len(self.classes), 'class', 'classes')}"
        )
        kinds = [f"{number:,} {kind}" for kind, number in sorted(self.left_out.items())]
        kinds += [f"{len(self.skipped):,} unreadable"] if self.skipped else []
        return line + (f"; left out: {', '.join(kinds)}" if kinds else "")

    def portion(self) -> Portion:
        """Return this process's part of each step, which is the whole step without a trainer."""
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
        shares: The fractions of the second and the third part; the first gets the rest.
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
