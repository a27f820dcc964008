"""Small data sets, kept in memory on the training device and augmented in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from se_lab.data.augment import DRAWS, crop, remove, removes
from se_lab.data.base import SPLITS, Batch, Batches, ImageData, KeyedSampler, stratified_split
from se_lab.data.digests import digest_of
from se_lab.data.rand_augment import RandAugment
from se_lab.spec import DataSpec, SpecError, seed_of


class TensorBatches(Batches):
    """Batches of a data set in memory, augmented and normalised on the images' device."""

    def __init__(self, data: MemoryData, split: str, sampler: KeyedSampler) -> None:
        super().__init__(sampler, data.spec.batch_size, data.portion())
        self.data, self.split = data, split
        self.augment = split == "train" and data.spec.augment == "standard"

    def load(self, skip: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from batch `skip` on, augmented in training."""
        images, labels = self.data.tensors(self.split)
        pad, flips, size = self.data.pad, self.data.flips, images.shape[-1]
        order = self.sampler.order()
        rows = order + self.sampler.turns() * self.sampler.size  # row numbers in the tables below
        corners, mirrors, removals = (
            torch.cat(parts) for parts in zip(*map(self.draws, range(self.sampler.repeats)), strict=True)
        )
        places = [self.places(number) for number in range(skip, len(self))]
        positions, lengths = torch.cat(places), [len(part) for part in places]
        # one copy for all batches, since each copy waits for the GPU
        tables = (order[positions], corners[rows[positions]], mirrors[rows[positions]])
        per_batch = [torch.split(table.to(images.device), lengths) for table in tables]
        for numbers, corner, mirror, row in zip(*per_batch, torch.split(rows[positions], lengths), strict=True):
            batch = images[numbers]
            if self.augment:
                batch = crop(F.pad(batch, [pad] * 4), corner, size)
                if flips:
                    batch = torch.where(mirror[:, None, None, None], batch.flip(3), batch)
            if self.augment and self.data.rand_augment is not None:
                seed, epoch = self.sampler.seed or 0, self.sampler.epoch
                keys = [seed_of(seed, "rand_augment", epoch, place) for place in row.tolist()]
                batch = self.data.rand_augment(batch, keys)
            batch = self.data.normalise(batch)
            if self.augment:
                batch = remove(batch, removals[row], self.data.spec)
            yield batch, labels[numbers], numbers

    def draws(self, turn: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return an epoch's crop corners, flips and random numbers for `remove`, a row per image."""
        size = self.sampler.size
        stream = torch.Generator().manual_seed(self.sampler.key("augment", turn))
        corners = torch.randint(2 * self.data.pad + 1, (size, 2), generator=stream)
        mirrors = torch.rand(size, generator=stream) < 0.5
        stream.manual_seed(self.sampler.key("remove", turn))
        spec = self.data.spec
        return corners, mirrors, torch.rand(size, DRAWS if removes(spec) else 0, generator=stream)


class MemoryData(ImageData):
    """A data set kept in memory as bytes on the training device, without worker processes."""

    pad: int
    """Zero padding of training images in pixels, before crops of the original size are taken."""
    flips: bool
    """Whether a mirrored image shows the same class."""

    def __init__(self, spec: DataSpec, seed: int, splits: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Create the data set from {split: (images (N, C, H, W) of bytes, labels (N,))}."""
        super().__init__(spec, seed)
        images = splits["train"][0].float()
        self.mean, self.std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
        self.splits = splits
        self.sizes = {split: len(labels) for split, (_, labels) in splits.items()}
        self.rand_augment = None
        if spec.rand_augment:
            if images.shape[1] != 3:
                raise SpecError(f"data.rand_augment is {spec.rand_augment!r}, but {spec.name} has no colour images")
            self.rand_augment = RandAugment(spec.rand_augment, self.mean[0, :, 0, 0].round())
        self.in_chans, self.image_size = images.shape[1], spec.image_size or images.shape[-1]

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        """Return images and labels of a split on the trainer's device."""
        device = self.device()
        images, labels = self.splits[split]
        if images.device != device:
            self.splits[split] = images, labels = images.to(device), labels.to(device)
        return images, labels

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images by the mean and deviation of the training images, and resize them."""
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        images = images.float().sub_(self.mean).div_(self.std)
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bilinear", align_corners=False)
        return images

    def batches(self, split: str) -> Batches:
        """Return the loader of a split."""
        return TensorBatches(self, split, self._sampler(split))


class DigitsData(MemoryData):
    """scikit-learn's 1,797 handwritten digits (UCI, 8×8); half of each class is the test split.

    With a smaller test split, too few images are misclassified to distinguish variants.
    """

    pad, flips = 1, False

    def __init__(self, spec: DataSpec, seed: int) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()
        parts = stratified_split(labels, (spec.val_fraction * 0.5, 0.5), spec.split_seed)
        super().__init__(
            spec, seed, {s: (images[index], labels[index]) for s, index in zip(SPLITS, parts, strict=True)}
        )
        self._test_numbers = parts[2].tolist()
        self.classes = [str(digit) for digit in range(10)]
        self._digest = digest_of(digits.images.tobytes(), digits.target.tobytes())

    def test_keys(self) -> Sequence[str]:
        """Return the numbers of the test images in scikit-learn's data set."""
        return [str(number) for number in self._test_numbers]
