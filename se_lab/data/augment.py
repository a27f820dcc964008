"""Augment batches of tensors on their device, with random numbers keyed to each image."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from se_lab.spec import DataSpec, SpecError

TRIES = 10
"""Maximum number of rectangles that random erasing draws until one fits, as in timm."""
DRAWS = 2 + 2 + 4 * TRIES
"""Number of uniform random numbers for the cutout and random erasing of an image."""


def crop(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Crop a square from each image, (N, C, H, W), at its corner, (N, 2) rows and columns."""
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, rows, columns, size, size), a view
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def removes(spec: DataSpec) -> bool:
    """Return whether a spec has cutout or random erasing."""
    return bool(spec.cutout or spec.random_erasing)


def remove(images: Tensor, draws: Tensor, spec: DataSpec) -> Tensor:
    """Apply a spec's cutout and random erasing to images, (N, C, H, W).

    Args:
        images: Images, normalised to mean 0 and standard deviation 1.
        draws: Uniform random numbers in [0, 1), (N, DRAWS), on the CPU.
        spec: The data spec.
    """
    if spec.cutout:
        box = _cutout_boxes(draws[:, :2], images.shape[2:], spec.cutout)
        images = images.masked_fill(_inside(box, images), 0)
    if spec.random_erasing:
        boxes = _erasing_boxes(draws[:, 3:-1], images.shape[2:])
        boxes[draws[:, 2] >= spec.random_erasing] = 0
        noise = torch.zeros_like(images)
        for row in (boxes[:, 1] > boxes[:, 0]).nonzero()[:, 0].tolist():
            stream = torch.Generator(images.device).manual_seed(int(draws[row, -1] * 2**24))
            noise[row] = torch.randn(images.shape[1:], generator=stream, device=images.device)
        images = torch.where(_inside(boxes, images), noise, images)
    return images


def _cutout_boxes(draws: Tensor, size: torch.Size, side: int) -> Tensor:
    """Return squares centred on random pixels, (N, 4): top, bottom, left and right.

    Part of a square may lie outside the image (DeVries & Taylor 2017, section 3.2).
    """
    height, width = size
    centres = (draws * torch.tensor([height, width])).long()
    starts, ends = centres - side // 2, centres - side // 2 + side
    return torch.stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]], 1)


def _erasing_boxes(draws: Tensor, size: torch.Size) -> Tensor:
    """Return the boxes of Zhong et al. 2020, with timm's ranges of area and aspect ratio."""
    height, width = size
    tries = draws.view(len(draws), TRIES, 4)
    area = (0.02 + (1 / 3 - 0.02) * tries[..., 0]) * height * width
    aspect = torch.exp((1 - 2 * tries[..., 1]) * math.log(0.3))
    box_height, box_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_height < height) & (box_width < width)
    top, left = (tries[..., 2] * (height - box_height + 1)).floor(), (tries[..., 3] * (width - box_width + 1)).floor()
    boxes = torch.stack([top, top + box_height, left, left + box_width], -1) * fits[..., None]
    return boxes[torch.arange(len(draws)), fits.int().argmax(1)].long()


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Return a mask, (N, 1, H, W), of the pixels inside each image's box."""
    top, bottom, left, right = boxes.to(images.device, non_blocking=True)[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    row_mask, column_mask = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    return (row_mask[:, :, None] & column_mask[:, None, :])[:, None]


class Mixer:
    """timm's mixup and cutmix, with one mixing ratio for all micro-batches of a training step."""

    def __init__(self, spec: DataSpec, classes: int) -> None:
        self.mixup = Mixup(spec.mixup, spec.cutmix, label_smoothing=0.0, num_classes=classes)  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix each image with its mirror in the batch: image N - 1 - i with image i.

        Returns:
            The mixed images (N, C, H, W), in place, and class probabilities (N, classes).
        """
        with keyed_globals(seed):
            mixed_images, shares = self.mixup(images, labels)
        return mixed_images, shares


def check_mixing(micro_batch: int) -> None:
    """Raise SpecError for a micro-batch with an odd number of images."""
    if micro_batch % 2:
        raise SpecError(
            f"mixup and cutmix need micro-batches of an even number of images, and they have {micro_batch}; change "
            "data.batch_size"
        )


@contextlib.contextmanager
def keyed_globals(seed: int) -> Iterator[None]:
    """Seed the global random generators, which torchvision and timm use, inside the context."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
