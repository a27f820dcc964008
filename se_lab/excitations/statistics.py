"""Streaming statistics of gates by class and channel.

A statistics file is a safetensors file with a JSON header:

    with safetensors.safe_open("excitations.safetensors", "numpy") as file:
        header, mean = json.loads(file.metadata()["header"]), file.get_tensor("mean")
    print(mean[header["classes"].index("7")])  # (T,), the channels of all units

Tensors, for K classes, U units with T channels in total, and B bins: count (K,), the number of images; mean, m2 (the
sum of squared deviations), minimum and maximum (K, T); zero (T,), the number of gates that are exactly 0; histograms
by_class (U, K, B) and by_channel (T, B); optionally top_value and top_image (2, M, T), the M images that excite a
channel most and least. Header: format, sites (name, stage, unit, channels, path, low, high, and first, the index of the
first channel), classes, images (their number), and about (net and data).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from se_lab.excitations.capture import ExcitationError, GateSite
from se_lab.spec.text import listed
from se_lab.store import write_bytes_whole
from se_lab.trained.manifest import tensors_digest

FORMAT = 2
BLOCK = {"cpu": 32, "cuda": 256}
"""Number of images merged at a time: small for a CPU's cache, large for a GPU."""
PER_UNIT = 40
BINS = 3 * PER_UNIT
Floats = NDArray[np.float64]


def bin_edges() -> Floats:
    """Return the bin edges (B + 1,) of the histograms.

    They have steps of 1/40 from −1 to 1, and then are 1/(1 − k/40), up to infinity. The first bin includes values below
    −1.
    """
    inner = np.arange(-PER_UNIT, PER_UNIT + 1) / PER_UNIT
    with np.errstate(divide="ignore"):
        outer = 1 / (1 - np.arange(1, PER_UNIT + 1) / PER_UNIT)
    return np.concatenate([inner, outer])


@dataclasses.dataclass(frozen=True)
class UnitStatistics:
    """Statistics of one unit's gates as NumPy arrays, with NaN for classes without images."""

    site: GateSite
    count: Floats
    """Number of images of each class, (K,)."""
    mean: Floats
    """Mean gate by class and channel, (K, C)."""
    std: Floats
    """Standard deviation over the images of a class, without Bessel's correction, (K, C)."""
    minimum: Floats
    """Smallest gate by class and channel, (K, C)."""
    maximum: Floats
    """Largest gate by class and channel, (K, C)."""
    by_class: NDArray[np.int64]
    """Number of gates by class and bin of `bin_edges`, (K, B)."""
    by_channel: NDArray[np.int64]
    """Number of gates by channel and bin, (C, B)."""
    zero: NDArray[np.int64]
    """Number of gates of each channel that are exactly 0, as with ReLU, (C,)."""


class ExcitationStatistics:
    """Count, mean, M2, minimum, maximum and histograms of gates by unit, class and channel.

    Moments are merged by the method of Chan, Golub and LeVeque (1979), with means in float64, so that a standard
    deviation of 1e-5 around 0.9999 is preserved. Results depend on batches and their order by less than 1e-5.

    Args:
        sites: The units, from `Capture.sites`.
        classes: Names of the classes; labels are indices into this list.
        device: Device of the statistics, preferably that of the net.
        extremes: Number of images to keep that excite each channel most, and least.

    Examples:
        >>> model = create_model(ModelSpec("cifar_resnet20"), num_classes=10).eval()
        >>> with torch.inference_mode(), capture_excitations(model) as captured:
        ...     logits = model(torch.randn(8, 3, 32, 32))
        >>> statistics = ExcitationStatistics(captured.sites, classes=["cat", "dog"])
        >>> statistics.update(captured.excitations, torch.arange(8) % 2)
        >>> statistics.unit("SE_4_3").mean.shape  # a row per class, a column per channel
        (2, 64)
    """

    def __init__(
        self,
        sites: Sequence[GateSite],
        classes: Sequence[str],
        *,
        device: torch.device | str = "cpu",
        extremes: int = 0,
    ) -> None:
        self.sites, self.classes = list(sites), list(classes)
        self.first = dict(zip([s.name for s in sites], np.cumsum([0, *(s.channels for s in sites)]).tolist()))  # noqa: B905
        self.images = 0
        self.about: dict[str, Any] = {}
        units, kinds, channels = len(self.sites), len(self.classes), sum(site.channels for site in sites)
        shape = (kinds, channels)
        self.count = torch.zeros(kinds, dtype=torch.float64, device=device)
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(shape, device=device)
        self.minimum = torch.full(shape, math.inf, device=device)
        self.maximum = torch.full(shape, -math.inf, device=device)
        self.by_class = torch.zeros(units, kinds, BINS, dtype=torch.int32, device=device)
        self.by_channel = torch.zeros(channels, BINS, dtype=torch.int32, device=device)
        self.zero = torch.zeros(channels, dtype=torch.int64, device=device)
        self.top_value = torch.full((2, extremes, channels), -math.inf, device=device)
        self.top_image = torch.full((2, extremes, channels), -1, dtype=torch.int64, device=device)
        unit_of = torch.repeat_interleave(torch.arange(units), torch.tensor([site.channels for site in sites]))
        self._class_row = (unit_of * kinds * BINS).int().to(device)  # offset of a channel's histograms
        self._channel_row = torch.arange(0, channels * BINS, BINS, dtype=torch.int32, device=device)

    def update(self, excitations: Mapping[str, Tensor], labels: Tensor, images: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            excitations: Gates (N, C) by site name, from `Capture.excitations`.
            labels: Class numbers (N,), on the CPU to avoid waiting for a GPU.
            images: Image numbers (N,), needed for `extremes`.
        """
        block = BLOCK.get(self.m2.device.type, BLOCK["cpu"])
        for start in range(0, len(labels), block):
            part = slice(start, start + block)
            gates = torch.cat([excitations[site.name][part] for site in self.sites], dim=1).to(self.m2)
            self._merge_block(gates, labels[part])
            if self.top_value.shape[1] and images is not None:
                self._keep_extremes(gates, images[part].to(self.mean.device))
        self.images += len(labels)

    def _merge_block(self, gates: Tensor, labels: Tensor) -> None:
        class_numbers, row = torch.unique(labels, return_inverse=True)
        first = torch.full_like(class_numbers, len(row)).scatter_reduce_(0, row, torch.arange(len(row)), "amin")
        cpu_tensors = (torch.bincount(row).double()[:, None], class_numbers, row, first, labels)
        n, class_numbers, row, first, label = (t.to(self.mean.device, non_blocking=True) for t in cpu_tensors)
        old_count = self.count[class_numbers][:, None]
        # Deviations from the previous mean, or from the first image of a class, are small enough for float32.
        mean = torch.where(old_count > 0, self.mean[class_numbers], gates[first].double())
        deviation = (gates - mean[row]).float()
        shift = torch.zeros(len(class_numbers), gates.shape[1], device=gates.device).index_add_(0, row, deviation)
        shift /= n.float()
        squares = deviation.sub_(shift[row]).square_()
        self.m2.index_add_(0, label, squares)
        self.mean.index_copy_(0, class_numbers, mean.add_(shift * (n / (old_count + n))))
        self.m2.index_add_(0, class_numbers, shift.square_().mul_((old_count * n / (old_count + n)).float()))
        self.count.index_add_(0, class_numbers, n[:, 0])
        index = label[:, None].expand_as(gates)
        self.minimum.scatter_reduce_(0, index, gates, "amin")
        self.maximum.scatter_reduce_(0, index, gates, "amax")
        self.zero += (gates == 0).sum(0)
        bins = torch.where(gates > 1, 2 - 1 / gates, gates).add_(1).mul_(PER_UNIT).floor_().int().clamp_(0, BINS - 1)
        increments = torch.ones((), dtype=torch.int32, device=gates.device).expand(gates.numel())
        self.by_channel.view(-1).index_add_(0, (bins + self._channel_row).view(-1), increments)
        bins.add_(self._class_row).add_((label * BINS).int()[:, None])
        self.by_class.view(-1).index_add_(0, bins.view(-1), increments)

    def _keep_extremes(self, gates: Tensor, images: Tensor) -> None:
        numbers = images[:, None].expand_as(gates)
        for side, sign in enumerate((1, -1)):
            values = torch.cat([self.top_value[side], sign * gates])
            best = values.topk(self.top_value.shape[1], dim=0)
            self.top_value[side] = best.values
            self.top_image[side] = torch.cat([self.top_image[side], numbers]).gather(0, best.indices)

    def merge(self, other: ExcitationStatistics) -> None:
        """Add the statistics of other images for the same units and classes.

        Raises:
            ExcitationError: if units or classes differ.
        """
        if (self.sites, self.classes) != (other.sites, other.classes):
            raise ExcitationError(f"the statistics have different units or classes: {_difference(self, other)}")
        device = self.mean.device
        a, b = self.count[:, None], other.count.to(device)[:, None]
        n = (a + b).clamp(min=1)
        shift = other.mean.to(device) - self.mean
        self.m2 += other.m2.to(device) + (shift.square() * (a * b / n)).float()
        self.mean += shift * (b / n)
        self.count += b[:, 0]
        self.minimum = torch.minimum(self.minimum, other.minimum.to(device))
        self.maximum = torch.maximum(self.maximum, other.maximum.to(device))
        self.zero += other.zero.to(device)
        self.by_class += other.by_class.to(device)
        self.by_channel += other.by_channel.to(device)
        values = torch.cat([self.top_value, other.top_value.to(device)], dim=1)
        best = values.topk(self.top_value.shape[1], dim=1)
        self.top_image = torch.cat([self.top_image, other.top_image.to(device)], dim=1).gather(1, best.indices)
        self.top_value = best.values
        self.images += other.images

    def merge_ranks(self) -> None:
        """Merge the statistics of all ranks of torch.distributed, in every rank."""
        states: list[dict[str, Any] | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, self._state())
        total = ExcitationStatistics(
            self.sites, self.classes, device=self.mean.device, extremes=self.top_value.shape[1]
        )
        for state in states:  # in rank order, so that the results are identical in all ranks
            part = ExcitationStatistics(self.sites, self.classes, extremes=self.top_value.shape[1])
            part.__dict__.update(state or {})
            total.merge(part)
        self.__dict__.update(total.__dict__ | {"about": self.about})

    def check_finite(self) -> None:
        """Raise ExcitationError if a gate is NaN or infinite, with the units and classes."""
        mask = ~torch.isfinite(self.mean)
        if not mask.any():
            return
        units = [site.name for site in self.sites if mask[:, self._channels(site)].any()]
        classes = [name for name, is_bad in zip(self.classes, mask.any(1).tolist(), strict=True) if is_bad]
        raise ExcitationError(
            f"gates of {listed(units, 6)} are NaN or infinite, for images of {listed(classes, 6)}: training "
            "diverged, or half precision overflows; check the training loss, or run the net in float32"
        )

    def unit(self, name: str) -> UnitStatistics:
        """Return the statistics of the unit with a given site name."""
        site = next(site for site in self.sites if site.name == name)
        part = self._channels(site)
        count = self.count.cpu().numpy()
        is_empty = count[:, None] == 0

        def read(values: Tensor) -> Floats:
            numbers = values[:, part].double().cpu().numpy()
            return np.where(is_empty, np.nan, numbers)

        variance = read(self.m2) / np.maximum(count, 1)[:, None]
        by_class = self.by_class[self.sites.index(site)].cpu().numpy().astype(np.int64)
        by_channel = self.by_channel[part].cpu().numpy().astype(np.int64)
        moments = (read(self.mean), np.sqrt(variance), read(self.minimum), read(self.maximum))
        return UnitStatistics(site, count, *moments, by_class, by_channel, self.zero[part].cpu().numpy())

    def save(self, path: str | Path) -> Path:
        """Write a statistics file atomically."""
        from safetensors.torch import save

        header = {
            "format": FORMAT,
            "sites": [dataclasses.asdict(site) | {"first": self.first[site.name]} for site in self.sites],
            "classes": self.classes,
            "images": self.images,
            "about": self.about,
        }
        path, text, tensors = Path(path), json.dumps(header), self._tensors()
        write_bytes_whole(path, save(tensors, metadata={"header": text, "checksum": _checksum(text, tensors)}))
        return path

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> ExcitationStatistics:
        """Load a statistics file.

        Raises:
            ExcitationError: if the file is corrupt, or not a statistics file of this format.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                text = metadata["header"]
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, KeyError) as error:
            raise ExcitationError(f"{path} is not a statistics file of excitations: {error}") from None
        if metadata.get("checksum") not in (None, _checksum(text, tensors)):  # None: an earlier version's file
            raise ExcitationError(f"{path} is corrupt: its checksum does not match its content")
        header = json.loads(text)
        if header.get("format") != FORMAT:
            raise ExcitationError(f"{path} has format {header.get('format')}; this version of SE-Lab reads {FORMAT}")
        for site in header["sites"]:
            del site["first"]
        sites = [GateSite(**site) for site in header["sites"]]
        statistics = cls(sites, header["classes"], device=device, extremes=tensors["top_value"].shape[1])
        statistics.__dict__.update(tensors, images=header["images"], about=header["about"])
        return statistics

    def _channels(self, site: GateSite) -> slice:
        return slice(self.first[site.name], self.first[site.name] + site.channels)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor) and name[0] != "_"}

    def _state(self) -> dict[str, Any]:
        return {name: tensor.cpu() for name, tensor in self._tensors().items()} | {"images": self.images}


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    typed = {f"{name} {value.dtype} {tuple(value.shape)}": value for name, value in sorted(tensors.items())}
    return tensors_digest(typed, header.encode())


def is_statistics_file(path: str | Path) -> bool:
    """Return whether `ExcitationStatistics.save` wrote a file, in any format version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return "sites" in json.loads((file.metadata() or {})["header"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return False


def _difference(a: ExcitationStatistics, b: ExcitationStatistics) -> str:
    if a.classes != b.classes:
        return f"{len(a.classes)} and {len(b.classes)} classes, {listed(sorted(set(a.classes) ^ set(b.classes)), 6)}"
    sites = sorted({*a.sites} ^ {*b.sites}, key=lambda s: (s.name, s.channels))
    return listed((f"{s.name} ({s.channels} channels)" for s in sites), 6)
