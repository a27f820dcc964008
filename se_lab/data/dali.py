"""Images decoded by NVIDIA DALI (data.decoder=dali), on the GPU that a trial runs on, else in threads of the CPU.

The worker processes of the loader read the files and draw each image's window and flip from the streams that the PIL
path draws them from, so that both see the same parts of the same images in the same order, whatever the batch, the
number of workers, or where an epoch was interrupted. DALI decodes the windows, resizes and flips them. What is no
ordinary JPEG of 8 bits, PIL decodes in the workers, so that it becomes RGB as without DALI. Pixels differ by a level of
255 or less on average, by more at the edge of a window in a JPEG with few chroma samples; on a GPU, which of its
decoders takes an image, and so its last bit, may depend on the batch.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import itertools
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from se_lab.data.base import DataError
from se_lab.data.pictures import decode, open_picture, random_crop, short_side, why_unreadable
from se_lab.spec import DataSpec, SpecError

AHEAD = 2
"""Batches that DALI decodes before they are asked for."""


class Cut(NamedTuple):
    """An encoded image, and the part of it that is wanted."""

    encoded: bytes
    window: tuple[int, int, int, int]
    """Top, left, height and width of what is decoded."""
    resized: tuple[int, int]
    """Height and width that it is brought to."""
    corner: tuple[int, int]
    """Top and left, in that, of the square that is the image."""
    mirror: bool


class Cuts(NamedTuple):
    """A batch of them, in few tensors, as they come from a worker process."""

    encoded: Tensor
    """The images' bytes in a row."""
    ends: list[int]
    """Where in it each image ends."""
    parts: Tensor
    """(N, 9) integers: window, resized, corner and mirror."""


def check_installed() -> None:
    """Raise SpecError where DALI is missing."""
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        found = None
    if found is None:
        raise SpecError(
            "data.decoder is 'dali', and NVIDIA DALI is not installed: pip install 'se-lab[dali]' on Linux "
            "(nvidia-dali-cuda120 in its place for drivers older than CUDA 13); data.decoder=pil does without"
        )


class DaliTransform:
    """Draws the window and the flip of an image as PilTransform does, and leaves the rest to DALI."""

    def __init__(self, spec: DataSpec, size: int, training: bool) -> None:
        self.size, self.short_side = size, short_side(spec, size)
        self.crop = random_crop(size) if training else None

    def open(self, encoded: bytes) -> tuple[Image.Image, bytes | None]:
        """Return an image's header and its bytes, or, if DALI is not to decode it, the decoded image and None."""
        picture = open_picture(encoded)
        return (picture, encoded) if _ordinary(picture, encoded) else (decode(encoded), None)

    def __call__(self, opened: tuple[Image.Image, bytes | None]) -> Cut:
        """Return what DALI is to make of an image; what is drawn comes from the global streams."""
        picture, encoded = opened
        width, height = picture.size
        if self.crop is not None:
            found = self.crop.make_params([picture])
            top, left, height, width = (found[name] for name in ("top", "left", "height", "width"))
            resized, corner, mirror = (self.size, self.size), (0, 0), bool(torch.rand(1) < 0.5)
        else:
            top, left, short = 0, 0, min(picture.size)
            resized = (self.short_side * height // short, self.short_side * width // short)
            corner, mirror = (_middle(resized[0], self.size), _middle(resized[1], self.size)), False
        if encoded is None:
            window = picture.crop((left, top, left + width, top + height))
            encoded, top, left = b"P6 %d %d 255\n" % window.size + window.tobytes(), 0, 0  # a PPM, which loses nothing
        return Cut(encoded, (top, left, height, width), resized, corner, mirror)


def _ordinary(picture: Image.Image, encoded: bytes) -> bool:
    """Tell whether an image is a whole JPEG, grey or of luma and chroma, which every decoder reads alike."""
    if picture.format != "JPEG" or picture.mode not in ("L", "RGB"):
        return False
    rgb = "jfif" not in picture.info and picture.info.get("adobe_transform", 1) == 0
    return not rgb and b"\xff\xd9" in encoded[-64:]  # its end, which a truncated one lacks


def _middle(whole: int, part: int) -> int:
    """Return where the central part begins, rounded as torchvision's CenterCrop rounds it."""
    return round((whole - part) / 2)


def collate(cuts: Sequence[Cut]) -> Cuts:
    """Return the cuts as a batch."""
    parts = [(*cut.window, *cut.resized, *cut.corner, cut.mirror) for cut in cuts]
    return Cuts(
        torch.frombuffer(bytearray().join(cut.encoded for cut in cuts), dtype=torch.uint8),
        list(itertools.accumulate(len(cut.encoded) for cut in cuts)),
        torch.tensor(parts, dtype=torch.int32),
    )


class Decoder:
    """A DALI pipeline, which lives as long as its loader."""

    def __init__(self, size: int, batch_size: int, threads: int, device: torch.device) -> None:
        """Take the side of the images, the most images of a batch, and where they go."""
        _leave_to_this_process()
        self.device = device
        self._pipeline = _pipeline(size, batch_size, threads, device)

    def ahead(self, batches: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield batches whose first part was Cuts, and is now images (N, 3, size, size) of bytes on the device.

        The last part of a batch names its images. A batch without images passes.

        Raises:
            DataError: for a batch that DALI refuses.
        """
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        waiting: deque[tuple[Future[Tensor | None], tuple[Any, ...]]] = deque()
        with ThreadPoolExecutor(1) as thread:  # so that this one trains in the meantime
            for cuts, *rest in batches:
                waiting.append((thread.submit(self._decode, cuts, rest[-1], stream), tuple(rest)))
                if len(waiting) > AHEAD:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)

    def _decode(self, cuts: Cuts | None, names: Sequence[str], stream: Any) -> Tensor | None:
        if cuts is None:
            return None
        encoded = np.split(cuts.encoded.numpy(), cuts.ends[:-1])
        start, shape, resized, corner, mirror = np.split(cuts.parts.numpy(), [2, 4, 6, 8], axis=1)
        inputs = {"start": start, "shape": shape, "resized": resized, "corner": corner, "mirror": mirror[:, 0]}
        try:
            (images,) = self._pipeline.run(
                stream, encoded=encoded, **{name: np.ascontiguousarray(values) for name, values in inputs.items()}
            )
        except (RuntimeError, ValueError, IndexError) as error:  # DALI's, by what went wrong
            raise DataError(_refusal(encoded, names, str(error))) from error
        return from_dlpack(images.as_tensor()).to(self.device)


def _first(waiting: deque[tuple[Future[Tensor | None], tuple[Any, ...]]]) -> tuple[Any, ...]:
    decoded, rest = waiting.popleft()
    return decoded.result(), *rest


def _refusal(encoded: Sequence[np.ndarray[Any, Any]], names: Sequence[str], message: str) -> str:
    """Say which images of a batch DALI refuses: those that it numbers, else those that PIL refuses too, else any."""
    numbered = [number for text in re.findall(r"sample #(\d+)", message) if (number := int(text)) < len(names)]
    reasons = {number: why_unreadable(encoded[number].tobytes()) for number in numbered or range(len(names))}
    bad = [f"{names[number]} ({reason})" for number, reason in reasons.items() if reason]
    bad = bad or [names[number] for number in numbered] or [f"one of {', '.join(names)}"]
    said = [line for line in message.splitlines() if line and not line.startswith(("Critical", "Current", "C++"))]
    return f"DALI cannot decode {', '.join(bad)}: {(said or [message])[-1]} (data.decoder=pil may)"


@functools.cache
def _leave_to_this_process() -> None:
    """Let forks, such as a loader's workers, collect nothing that they inherit: to take a pipeline down hangs them."""
    os.register_at_fork(after_in_child=gc.freeze)


def _pipeline(size: int, batch_size: int, threads: int, device: torch.device) -> Any:
    dali: Any = importlib.import_module("nvidia.dali")
    fn: Any = importlib.import_module("nvidia.dali.fn")
    types = dali.types
    gpu = device.type == "cuda"
    # One batch is given and taken at a time: DALI's own queue would want several before it begins, and at the end.
    pipeline = dali.Pipeline(batch_size, threads, device.index or 0 if gpu else None, prefetch_queue_depth=1)

    def given(name: str, dimensions: int, kind: Any = types.INT32) -> Any:
        return fn.external_source(name=name, ndim=dimensions, dtype=kind)

    with pipeline:
        images = fn.decoders.image_slice(
            given("encoded", 1, types.UINT8),
            start=given("start", 1),
            shape=given("shape", 1),
            axes=(0, 1),
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,  # as PIL
        )
        resized = fn.cast(given("resized", 1), dtype=types.FLOAT)
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.slice(images, start=given("corner", 1), shape=(size, size), axes=(0, 1))
        mirror = given("mirror", 0)
        pipeline.set_outputs(
            fn.crop_mirror_normalize(
                images, dtype=types.UINT8, output_layout="CHW", mirror=mirror, mean=[0.0], std=[1.0]
            )
        )
    pipeline.build()
    return pipeline
