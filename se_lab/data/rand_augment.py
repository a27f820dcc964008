"""RandAugment (Cubuk et al. 2020) for batches of tensors; timm chooses the operations."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.nn import functional as F

from se_lab.data.augment import keyed_globals
from se_lab.spec import SpecError

Choice = list[tuple[str, tuple[float, ...]]]
"""Operations, in order, with their arguments."""


def posterize_all(draw: Any) -> Any:
    """Let timm's RandAugment posterize to 0 bits (black), which PIL rejects from version 12 on."""
    for operation in draw.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize_picture
    return draw


def _posterize_picture(picture: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(picture, bits) if bits else Image.new(picture.mode, picture.size)


class RandAugment:
    """timm's RandAugment for images (N, 3, H, W) of bytes."""

    def __init__(self, config: str, fill: Tensor) -> None:
        """Create a RandAugment from timm's configuration and a fill colour, (3,).

        Raises:
            SpecError: for a configuration that timm cannot parse, or with an operation that is not in OPERATIONS.
        """
        try:
            self.draw = rand_augment_transform(config, {"img_mean": (128, 128, 128)})
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"data.rand_augment is {config!r}, which timm cannot parse ({error}); an example is "
                "rand-m9-mstd0.5-inc1"
            ) from error
        for operation in self.draw.ops:
            name = operation.name.removesuffix("Increasing")
            if name not in OPERATIONS:
                raise SpecError(f"data.rand_augment is {config!r}; {name} is not available for data sets in memory")
            operation.aug_fn = functools.partial(_note, name)
        self.fill = fill

    def __call__(self, images: Tensor, keys: list[int]) -> Tensor:
        """Return the augmented images; keys[n] seeds the operations of image n."""
        choices: list[Choice] = []
        with keyed_globals(0):
            for key in keys:  # timm uses the global generators
                random.seed(key)
                np.random.seed(key % 2**32)
                choices.append(self.draw([]))
        names: list[str] = []
        sizes: list[int] = []
        places: list[int] = []
        arguments: list[tuple[float, ...]] = []
        for turn in range(self.draw.num_layers):
            groups: dict[str, list[int]] = {}
            for row, operations in enumerate(choices):
                if turn < len(operations):
                    groups.setdefault(operations[turn][0], []).append(row)
            for name, rows in groups.items():
                names.append(name)
                sizes.append(len(rows))
                places += rows
                arguments += [choices[row][turn][1][:1] or (0.0,) for row in rows]
        device = images.device
        # one copy for all operations, since each copy would wait for the GPU
        indices = torch.tensor(places, dtype=torch.long).to(device, non_blocking=True).split_with_sizes(sizes)
        values = (
            torch.tensor(arguments).view(len(places), 1, 1, 1).to(device, non_blocking=True).split_with_sizes(sizes)
        )
        images, fill = images.float(), self.fill.to(device, non_blocking=True)
        for name, index, argument in zip(names, indices, values, strict=True):
            images[index] = OPERATIONS[name](images[index], argument, fill)
        return images.to(torch.uint8)


def _note(name: str, before: Choice, *arguments: float, **_: Any) -> Choice:
    return [*before, (name, arguments)]


# the operations take images (N, 3, H, W) with integer values from 0 to 255, one argument per image (N, 1, 1, 1) and the
# fill colour (3,), and return the same integers as PIL


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.double().unbind(1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768).div(65536).floor()
    return grey[:, None].to(images.dtype)


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return (base + factor * (images - base)).clamp(0, 255).trunc()


def _color(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return _blend(_grey(images), images, factor)


def _contrast(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return _blend((_grey(images).mean((1, 2, 3), keepdim=True) + 0.5).floor(), images, factor)


def _brightness(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, factor)


def _sharpness(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    kernel = images.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(images, kernel, groups=3) / 13 + 0.5).floor()
    return _blend(smooth, images, factor)


def _desaturate(images: Tensor, factor: Tensor, fill: Tensor) -> Tensor:
    return _color(images, (1 - factor).clamp(0, 1), fill)


def _autocontrast(images: Tensor, _: Tensor, __: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    scale = 255 / (high - low).double()
    result = (images * scale - low * scale).clamp(0, 255).trunc()
    return torch.where(high > low, result.to(images.dtype), images)


def _equalize(images: Tensor, _: Tensor, __: Tensor) -> Tensor:
    planes = images.flatten(2).long()
    counts = torch.zeros(*planes.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, planes, torch.ones_like(planes))
    step = (planes.shape[2] - counts.gather(2, planes.amax(2, keepdim=True))) // 255
    table = ((step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)).clamp(max=255)
    result = table.gather(2, planes).view_as(images).to(images.dtype)
    return torch.where(step[..., None] > 0, result, images)


def _invert(images: Tensor, _: Tensor, __: Tensor) -> Tensor:
    return 255 - images


def _posterize(images: Tensor, bits: Tensor, _: Tensor) -> Tensor:
    size = 2 ** (8 - bits)
    return (images / size).floor() * size


def _solarize(images: Tensor, threshold: Tensor, _: Tensor) -> Tensor:
    return torch.where(images < threshold, images, 255 - images)


def _solarize_add(images: Tensor, added: Tensor, _: Tensor) -> Tensor:
    return torch.where(images < 128, (images + added).clamp(max=255), images)


def _affine(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Sample images at matrix (N, 2, 3) · (x, y, 1), in pixels, bilinearly as in PIL."""
    height, width = images.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=images.device) + 0.5, torch.arange(width, device=images.device) + 0.5, indexing="ij"
    )
    points = torch.stack([columns, rows, torch.ones_like(rows)], -1)
    positions = torch.einsum("nij,hwj->nhwi", matrix, points)
    x, y = positions.unbind(-1)
    mask = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    grid = torch.stack([x * (2 / width), y * (2 / height)], -1) - 1
    result = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    result = (result + 1e-3).floor().clamp(0, 255)  # PIL truncates, in double precision
    colour = fill.to(images)[None, :, None, None]
    return torch.where(mask[:, None], result, colour)


def _matrix(entries: dict[tuple[int, int], Tensor], like: Tensor) -> Tensor:
    matrix = torch.eye(2, 3, device=like.device).repeat(len(like), 1, 1)
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    return matrix


def _shear_x(images: Tensor, factor: Tensor, fill: Tensor) -> Tensor:
    return _affine(images, _matrix({(0, 1): factor.flatten()}, images), fill)


def _shear_y(images: Tensor, factor: Tensor, fill: Tensor) -> Tensor:
    return _affine(images, _matrix({(1, 0): factor.flatten()}, images), fill)


def _translate_x(images: Tensor, share: Tensor, fill: Tensor) -> Tensor:
    return _affine(images, _matrix({(0, 2): share.flatten() * images.shape[3]}, images), fill)


def _translate_y(images: Tensor, share: Tensor, fill: Tensor) -> Tensor:
    return _affine(images, _matrix({(1, 2): share.flatten() * images.shape[2]}, images), fill)


def _rotate(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    angle = -torch.deg2rad(degrees.flatten())
    cos, sin = angle.cos(), angle.sin()
    x, y = images.shape[3] / 2, images.shape[2] / 2
    entries = {
        (0, 0): cos,
        (0, 1): sin,
        (0, 2): x - cos * x - sin * y,
        (1, 0): -sin,
        (1, 1): cos,
        (1, 2): y + sin * x - cos * y,
    }
    return _affine(images, _matrix(entries, images), fill)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
    "Desaturate": _desaturate,
}
"""Operations by timm's names without the suffix Increasing, which only affects their arguments."""
