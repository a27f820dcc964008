"""Decode images to bytes of the net's input size, by PIL and torchvision's transforms v2.

Images are converted to RGB as torchvision does: CMYK, palette and grey images are converted, transparency is dropped,
and EXIF rotation is ignored, as in the training of the published nets. Images of 16 bits per channel keep their upper 8
bits; torchvision would clip them to white.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from se_lab.data.rand_augment import posterize_all
from se_lab.spec import DataSpec, SpecError

Raw = bytes | Image.Image | Tensor | Exception
"""An image from its source: encoded, a PIL image, a uint8 tensor (1 or 3, H, W), or the error of reading it."""


class PictureTransform:
    """The transform of PIL images: random crop, flip and RandAugment, or the centre crop."""

    def __init__(self, spec: DataSpec, size: int, training: bool, flips: bool = True) -> None:
        """Create the transform of a spec.

        Args:
            spec: The data spec, for RandAugment and the size of the centre crop.
            size: Side of the images in pixels.
            training: Whether images are augmented.
            flips: Whether half of the training images are mirrored.

        Raises:
            SpecError: for a RandAugment that timm cannot parse.
        """
        steps: list[Callable[[Any], Any]]
        if training:
            steps = [v2.RandomResizedCrop(size), *([v2.RandomHorizontalFlip()] if flips else [])]
            if spec.rand_augment:
                steps.append(_rand_augment(spec.rand_augment, size))
        else:
            steps = [v2.Resize(short_side(spec, size)), v2.CenterCrop(size)]
        self._steps = v2.Compose([*steps, v2.PILToTensor()])

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return an RGB image as bytes, (3, size, size), using the global random generators."""
        return cast(Tensor, self._steps(picture))


def short_side(spec: DataSpec, size: int) -> int:
    """Return the short side before the centre crop, such as 256 for images of 224 pixels."""
    return math.floor(size / spec.crop_pct)


def decode(raw: Raw) -> Image.Image:
    """Return an image as RGB; its format is detected from its content.

    Raises:
        Exception: any exception of PIL's decoders, or ValueError.
    """
    if isinstance(raw, Exception):
        raise raw
    if isinstance(raw, Tensor):
        if raw.dtype != torch.uint8 or raw.dim() != 3 or raw.shape[0] not in (1, 3):
            kind = str(raw.dtype).removeprefix("torch.")
            raise ValueError(f"it is a {kind} tensor {tuple(raw.shape)}; it must be a uint8 tensor (1 or 3, H, W)")
        return cast(Image.Image, v2.functional.to_pil_image(raw)).convert("RGB")
    image = raw if isinstance(raw, Image.Image) else _open(raw)
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}; they must have 8 or 16 bits per channel")
    return image.convert("RGB")


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise ValueError("it is empty")
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:
        raise ValueError(f"it is not an image: it starts with {encoded[:12]!r}") from None


def why_unreadable(raw: Raw) -> str:
    """Return why an image cannot be decoded, or an empty string."""
    try:
        decode(raw)
    except Exception as error:  # PIL's decoders can raise any exception
        return str(error) or type(error).__name__
    return ""


def normaliser(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that normalises bytes (…, 3, H, W) by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return lambda images: images.float().div_(255).sub_(mean).div_(std)


def _rand_augment(config: str, size: int) -> Callable[[Image.Image], Image.Image]:
    colour = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)  # for pixels from outside the image
    bilinear = Image.Resampling.BILINEAR
    try:
        draw = rand_augment_transform(
            config, {"translate_const": int(size * 0.45), "img_mean": colour, "interpolation": bilinear}
        )
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"data.rand_augment is {config!r}, which timm cannot parse ({error}); an example is rand-m9-mstd0.5-inc1"
        ) from error
    return cast(Callable[[Image.Image], Image.Image], posterize_all(draw))
