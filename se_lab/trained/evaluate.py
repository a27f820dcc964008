"""Test error of a trained net, or of a pretrained timm net, on a data set."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from timm.data import ImageNetInfo, create_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from se_lab.data import Batch, DataError, create_data, scan
from se_lab.data.files import Files, printable
from se_lab.data.folders import Scan
from se_lab.spec import DataSpec, RunSpec, SpecError, expand_path
from se_lab.store import RunRecord, guard_outputs, read_record, write_whole
from se_lab.trained.inputs import is_opened, open_pretrained, pick_device, trial_config
from se_lab.trained.load import load_trained
from se_lab.training.metrics import Scores

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """The results of a net on test images."""

    net: str
    data: str
    images: int
    metrics: dict[str, float]
    """test/loss in nats, test/top1_error and test/top5_error in %, as in a trial's record."""
    intervals: dict[str, tuple[float, float]]
    """Wilson's 95 % binomial confidence interval of each error, in %."""
    remarks: tuple[str, ...] = ()
    """Warnings, such as images that differ from those of the trial's record."""


@dataclass(frozen=True)
class Images:
    """Preprocessed test images in batches."""

    name: str
    classes: Sequence[str]
    batches: Iterable[Batch]
    keys: Sequence[str]
    digest: str | None = None


@dataclass(frozen=True)
class EvalOptions:
    """Options of `evaluate`."""

    data_root: str | Path = "."
    """Folder that relative paths start from."""
    batch_size: int | None = None
    """Images per batch; by default the trial's batch size, or 64 for a timm net."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Number of processes that load images."""
    trust_plugins: bool = False
    """Import the plugins that the trial's record names."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise SpecError(f"--batch_size is {self.batch_size}; it must be at least 1")


def evaluate(
    source: str | Path,
    data: str | None = None,
    *,
    predictions: str | Path | None = None,
    overwrite: bool = False,
    options: EvalOptions | None = None,
) -> Evaluation:
    """Evaluate a net on test images; a trial's own images give the results of its record.

    This holds on the trial's machine, and only up to rounding if the trial's SE units were fused (`model.fused`).

    Args:
        source: A trial's folder or checkpoint, or timm:NAME, whose pretrained_cfg determines the preprocessing.
        data: The name of a data set as in a spec, or folder:PATH for the images of PATH/test, PATH/val or PATH itself,
            with one folder per class. By default the trial's data set.
        predictions: A file (.npz) for predictions in the format of a trial: key, label, top5, probability, correct.
        overwrite: Replace a file of predictions that SE-Lab did not write.
        options: Data root, batch size, device, workers, and whether plugins are trusted.

    Raises:
        SpecError: if the net cannot be loaded, its classes are not those of the images, or no data set is given.
        DataError: if a folder or file cannot be used.
    """
    if predictions is not None and Path(predictions).suffix != ".npz":
        raise SpecError(f"--predictions is {str(predictions)!r}; the file name must end in .npz")
    options = options or EvalOptions()
    device, text = pick_device(options.device), str(source)
    spec: RunSpec | None = None
    record: RunRecord | None = None
    if text.startswith("timm:"):
        model, images = _pretrained(text, data, options)
    else:
        model, spec = load_trained(source, trust_plugins=options.trust_plugins)
        record = read_record(Path(source) if Path(source).is_dir() else Path(source).parent)
        images = _images_for(spec, text, data, options)
    outputs = output_numbers(model, images.classes, text)
    with _threads(record):
        metrics, results = _test(model, images.batches, outputs, device, spec)
    if predictions is not None:
        arrays = {"key": np.array(images.keys)[results["image"]], "label": results["label"], "top5": results["top5"]}
        arrays["probability"] = results["probability"]
        arrays["correct"] = results["top5"][:, 0] == results["label"]
        with guard_outputs([predictions], overwrite=overwrite):
            write_whole(Path(predictions), lambda file: np.savez_compressed(file, **arrays))
    count = len(results["label"])
    intervals = {key: _wilson(value, count) for key, value in metrics.items() if key.endswith("_error")}
    return Evaluation(text, images.name, count, metrics, intervals, tuple(_remarks(record, images)))


def output_numbers(model: nn.Module, classes: Sequence[str], label: str) -> Tensor:
    """Return the index of the net's output for each class (K,), for ImageNet by WordNet id.

    Raises:
        SpecError: if the net does not have these classes.
    """
    outputs = int(getattr(model, "num_classes", len(classes)))
    if outputs == len(classes):
        return torch.arange(outputs)
    ids = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    if outputs == len(ids) and all(name in ids for name in classes):
        return torch.tensor([ids.index(name) for name in classes])
    raise SpecError(
        f"{label} has {outputs} classes, and the images have {len(classes)} ({', '.join(classes[:3])} …); "
        "a net of ImageNet's 1,000 classes can be tested on some of them, in folders named by WordNet id"
    )


def _refuse_in_memory(net: str, data: str) -> None:
    if is_opened(data):
        raise SpecError(f"{net} was not trained on {data}, whose preprocessing differs; use folder:PATH")


def _pretrained(label: str, data: str | None, options: EvalOptions) -> tuple[nn.Module, Images]:
    """Return a pretrained timm net, and test images preprocessed as in its pretrained_cfg."""
    if data is None:
        raise SpecError(f"{label} is not a trial and has no test images; give --data, such as --data folder:PATH")
    _refuse_in_memory(label, data)
    model, config = open_pretrained(label.removeprefix("timm:"))
    return model, _from_folder(data, config, options.batch_size or 64, options)


def _images_for(spec: RunSpec, label: str, data: str | None, options: EvalOptions) -> Images:
    """Return a trial's test images, or other images with the trial's preprocessing."""
    batch_size = options.batch_size or spec.data.batch_size
    if data is not None and data != spec.data.name:
        _refuse_in_memory(label, data)
        return _from_folder(data, trial_config(spec, options.data_root), batch_size, options)
    data_spec = dataclasses.replace(spec.data, batch_size=batch_size)
    module = create_data(data_spec, spec.seed, root=options.data_root, workers=options.workers)
    return Images(spec.data.name, module.classes, module.batches("test"), module.test_keys(), module.digest)


def _from_folder(name: str, config: dict[str, Any], batch_size: int, options: EvalOptions) -> Images:
    """Return the images of a folder, preprocessed as in a timm data config."""
    DataSpec(name)  # raises for an unknown data set
    if name.startswith(("wds:", "hf:")):
        raise SpecError(f"--data is {name!r}; shards can be used only for trials that were trained on them")
    folder = expand_path(name.removeprefix("folder:"), options.data_root)
    folder = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), folder)
    listing = scan(folder) if folder.is_dir() else Scan([], [], [])
    files = Files(str(folder), listing.paths, listing.labels)
    if not files.paths:
        raise DataError(f"{folder} has no images; expected one folder of images per class")
    loader = DataLoader(_Prepared(files, create_transform(**config)), batch_size, num_workers=options.workers)
    keys = [f"{folder.name}/{name}" for name in files.names]
    return Images(f"folder:{folder}", [printable(name) for name in listing.classes], loader, keys)


class _Prepared(Dataset[tuple[Tensor, int, int]]):
    def __init__(self, files: Files, transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        try:
            image, label = self.files[number]
        except DataError:
            raise
        except Exception as error:  # PIL's decoders raise many types of errors
            raise DataError(f"{self.files.root}/{self.files.names[number]} cannot be read: {error}") from error
        return self.transform(image), label, number


def _test(
    model: nn.Module, batches: Iterable[Batch], outputs: Tensor, device: torch.device, spec: RunSpec | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of a trial's test, and arrays of image, label, top5 and probability."""
    precision = spec.train.precision if spec else "fp32"
    layout = torch.channels_last if spec and spec.train.channels_last else torch.contiguous_format
    kind = torch.float64 if precision == "fp64" else torch.float32
    model, outputs = model.to(device, kind).to(memory_format=layout).eval(), outputs.to(device)
    scores = Scores(int(getattr(model, "num_classes", len(outputs))))
    if device.type == "mps":
        scores.loss.single()
    scores.to(device)
    parts = []
    autocast = torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else contextlib.nullcontext()
    with torch.inference_mode(), autocast:
        for batch in batches:
            images, labels, numbers = (part.to(device, non_blocking=True) for part in batch)
            labels = outputs[labels]
            logits = model(images.to(kind).contiguous(memory_format=layout))
            guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices
            scores.update(F.cross_entropy(logits, labels, reduction="none"), guesses, labels)
            probabilities = logits.float().softmax(1).gather(1, guesses)
            parts.append([part.cpu().numpy() for part in (numbers, labels, guesses, probabilities)])
    if not parts:
        raise DataError("there are no test images")
    arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return scores.compute("test"), dict(zip(("image", "label", "top5", "probability"), arrays, strict=True))


@contextlib.contextmanager
def _threads(record: RunRecord | None) -> Iterator[None]:
    """Use the trial's number of CPU threads, since floating-point sums depend on the number."""
    threads = torch.get_num_threads()
    if record is not None and "threads" in record.execution:
        torch.set_num_threads(record.execution["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _wilson(error: float, images: int) -> tuple[float, float]:
    interval = binomtest(round(error / 100 * images), images).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def _remarks(record: RunRecord | None, images: Images) -> Iterator[str]:
    if record is None or images.digest is None:
        return
    if images.digest != (digest := record.data.get("digest")):
        yield f"the images have changed since the trial: digest {images.digest}, was {digest}"
