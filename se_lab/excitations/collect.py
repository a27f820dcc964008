"""Collect statistics of the gates of a checkpoint or a pretrained timm net."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from se_lab.excitations.capture import ExcitationError, capture_excitations, gate_sites, replace_gate
from se_lab.excitations.images import LabelledImages, open_images
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.spec import DataSpec, RunSpec, SpecError, label
from se_lab.trained.evaluate import output_numbers
from se_lab.trained.inputs import check_pretrained, open_pretrained
from se_lab.trained.load import load_trained
from se_lab.trained.manifest import tensors_digest

SAVE_SECONDS = 30.0
"""Interval for saving statistics, which limits the loss by an interruption."""
EXTREMES = 4
"""Number of images to keep that excite a channel most, and least."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class TrainedNet:
    """A net to inspect."""

    label: str
    model: nn.Module
    spec: RunSpec | None
    """Spec of the trial, or None for a pretrained timm net."""
    about: dict[str, Any] = field(default_factory=dict)
    """source, and for a checkpoint also trial_id, variant (with backbone and seed) and epoch."""
    data_config: dict[str, Any] | None = None
    """timm's data config of a pretrained net."""


@dataclass(frozen=True)
class CaptureOptions:
    """Options of `collect`."""

    images_per_class: int | None = None
    """Number of random images of each class, the same in every call; by default all."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    extremes: bool = False
    """Keep the images that excite each channel most and least."""
    redundancy: bool = False
    """Measure the error with each unit's gate replaced by its mean, with one pass over the images per unit."""
    trust_plugins: bool = False
    """Import the plugins that a trial's record names, if they are not imported yet."""
    say: Say = lambda text: None
    """Called with progress messages."""


def open_net(source: str | Path, *, trust_plugins: bool = False) -> TrainedNet:
    """Load the net of a checkpoint, a trial's folder, or timm:NAME.

    Raises:
        SpecError: if the checkpoint is missing or does not match, timm does not know the name, the weights cannot be
            loaded, or the net has no SE units.
    """
    text = str(source)
    if text.startswith("timm:"):
        return _pretrained(text.removeprefix("timm:"))
    model, spec = load_trained(source, trust_plugins=trust_plugins)
    gate_sites(model)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    epoch = None
    if path.is_file():
        epoch = torch.load(path, map_location="meta", weights_only=True).get("epoch")
    about = {"source": text, "trial_id": folder.name, "variant": label(spec), "epoch": epoch}
    name = folder.name if path.is_dir() else f"{folder.name}/{path.stem}"
    return TrainedNet(name, model, spec, about)


def _pretrained(name: str) -> TrainedNet:
    check_pretrained(name)
    arch = name.split(".")[0]
    with torch.device("meta"):
        gate_sites(timm.create_model(arch))  # raises for a net without units before downloading weights
    model, config = open_pretrained(name)
    return TrainedNet(f"timm:{name}", model, None, {"source": f"timm:{name}", "variant": arch}, config)


def open_data(
    net: TrainedNet, data: str | None = None, *, batch_size: int = 64, root: str = ".", workers: int = 2
) -> LabelledImages:
    """Open the images to run through a net: the data set `data`, or the trial's test images.

    Raises:
        SpecError, DataError: if there are no images, or they do not match the net.
    """
    if data is None and net.spec is None:
        raise ExcitationError(f"{net.label} is not a trial and has no images; give --data, such as --data folder:PATH")
    base = net.spec.data if net.spec else DataSpec()  # defines normalisation and crop
    spec = dataclasses.replace(base, name=data or base.name, batch_size=batch_size)
    images = open_images(spec, root=root, workers=workers, config=net.data_config)
    expected = next(p.shape[1] for p in net.model.parameters() if p.dim() == 4)
    actual = 1 if spec.name == "digits" else 3
    if expected != actual:
        raise ExcitationError(f"{net.label} needs images with {expected} channels; images of {spec.name} have {actual}")
    return images


def collect(net: TrainedNet, images: LabelledImages, path: Path, options: CaptureOptions) -> ExcitationStatistics:
    """Run images through a net, and return the statistics of its gates, saved to `path`.

    A file for the same net and images is reused, and an interrupted run is resumed.

    Raises:
        ExcitationError: if a gate is NaN or infinite.
    """
    numbers = images.choose(options.images_per_class)
    key = _fingerprint(net.model, images, numbers, options)
    device = _device(options.device)
    model = net.model.to(device).eval()
    storage = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    part = path.with_suffix(".part")
    finished_statistics = _load_matching(path, key, storage)
    statistics = finished_statistics or _load_matching(part, key, storage)
    if statistics is None:
        extremes = EXTREMES if options.extremes else 0
        statistics = ExcitationStatistics(gate_sites(model), images.classes, device=storage, extremes=extremes)
    previous_about = statistics.about
    statistics.about = net.about | {"label": net.label, "data": images.name, "digest": images.digest, "key": key}
    if "redundancy" in previous_about:
        statistics.about["redundancy"] = previous_about["redundancy"]
    if statistics.images < len(numbers):
        if statistics.images:
            options.say(f"resuming after {statistics.images} images")
        _run(model, images, numbers, statistics, part, options.say)
    statistics.check_finite()
    if options.redundancy and "redundancy" not in statistics.about:
        statistics.about["redundancy"] = redundancy(model, images, numbers, statistics, options.say)
    if finished_statistics is None or statistics.about != previous_about:
        statistics.save(path)
    part.unlink(missing_ok=True)
    return statistics


def redundancy(
    model: nn.Module, images: LabelledImages, numbers: Tensor, statistics: ExcitationStatistics, say: Say
) -> dict[str, float]:
    """Return the top-1 error in % of the net (key "") and with each unit's gate at its mean.

    This shows whether units can be removed (section 7.2), since a unit with a constant gate can be folded into its
    convolution.

    Raises:
        ExcitationError: if the net does not have the classes of the images.
    """
    outputs = output_of_class(model, images.classes).to(next(model.parameters()).device)
    weight = statistics.count / statistics.count.sum()

    def error() -> float:
        mistakes = torch.zeros((), dtype=torch.int64, device=outputs.device)
        with torch.inference_mode():
            for batch, labels, _ in images.batches(numbers):
                guess = model(batch.to(outputs.device, non_blocking=True)).argmax(1)
                mistakes += (guess != outputs[labels.to(outputs.device)]).sum()
        return 100 * float(mistakes) / len(numbers)

    errors = {"": error()}
    for site in statistics.sites:
        first = statistics.first[site.name]
        mean = weight @ statistics.mean[:, first : first + site.channels]
        with replace_gate(model, site, mean):
            errors[site.name] = error()
        say(f"{site.name} with mean gate: {errors[site.name]:.2f} % error, {errors['']:.2f} % unchanged")
    return errors


def output_of_class(model: nn.Module, classes: Sequence[str]) -> Tensor:
    """Return the index of the net's output for each class, (K,), as `evaluate.output_numbers`.

    Raises:
        ExcitationError: if the net does not have these classes.
    """
    try:
        return output_numbers(model, classes, "the net")
    except SpecError as error:
        raise ExcitationError(f"{error}; remove --redundancy, which needs the error on these classes") from None


def _run(
    model: nn.Module,
    images: LabelledImages,
    numbers: Tensor,
    statistics: ExcitationStatistics,
    part: Path,
    say: Say,
) -> None:
    device = next(model.parameters()).device
    last_save = time.perf_counter()
    try:
        with torch.inference_mode(), capture_excitations(model) as capture:
            for batch, labels, batch_numbers in images.batches(numbers[statistics.images :]):
                model(batch.to(device, non_blocking=True))
                statistics.update(capture.excitations, labels, batch_numbers)
                if time.perf_counter() - last_save > SAVE_SECONDS:
                    statistics.check_finite()
                    statistics.save(part)
                    say(f"{statistics.images} of {len(numbers)} images")
                    last_save = time.perf_counter()
    except KeyboardInterrupt:
        statistics.save(part)
        raise


def _load_matching(path: Path, key: str, device: torch.device) -> ExcitationStatistics | None:
    if not path.is_file():
        return None
    try:
        statistics = ExcitationStatistics.load(path, device)
    except ExcitationError:
        return None  # an older format, or corrupt
    return statistics if statistics.about.get("key") == key else None


def _fingerprint(model: nn.Module, images: LabelledImages, numbers: Tensor, options: CaptureOptions) -> str:
    """Return a hash of weights, images and options, to recognise matching statistics."""
    start = f"{images.name} {images.digest} {options.extremes}".encode() + numbers.numpy().tobytes()
    return tensors_digest(model.state_dict(), start)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
