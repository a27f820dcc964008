"""The test error of a trained net, or of a pretrained one of timm's, on the test images of a data set."""

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
from se_lab.store import RunRecord, read_record, replacing, write_whole
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
    """Of each error, in %: Wilson's 95 % interval of a binomial share, for other images of the same kind."""
    remarks: tuple[str, ...] = ()
    """Warnings for the reader, such as images that differ from those of the trial's record."""


@dataclass(frozen=True)
class Images:
    """Test images in batches, as they go into the net."""

    name: str
    classes: Sequence[str]
    batches: Iterable[Batch]
    keys: Sequence[str]
    digest: str | None = None


@dataclass(frozen=True)
class EvalOptions:
    """How a net is tested."""

    data_root: str | Path = "."
    """Where relative paths start."""
    batch_size: int | None = None
    """Images at a time; by default the trial's, else 64."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Processes that read files."""
    trust_plugins: bool = False
    """Import the modules that the trial's record names under plugins."""

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
    """Test a net; on its trial's own test images and machine, the results equal the trial's record.

    If `model.fused=auto` fused the trial's SE units, they are equal up to rounding: here they run unfused.

    Args:
        source: A trial's folder or checkpoint, or timm:NAME, which is fed as timm feeds it (its pretrained_cfg).
        data: A data set by the name that a spec would give it, or folder:PATH: the images of PATH/test, else of
            PATH/val, else of PATH itself, a folder a class. By default a trial's own.
        predictions: A file to write as trials write theirs (.npz): key, label, top5, correct.
        overwrite: Replace a file of predictions that SE-Lab did not write.
        options: Where relative paths start, batch size, device, workers, whether plugins are trusted.

    Raises:
        SpecError: for a net that cannot be loaded, one whose outputs are not the images' classes, or no data.
        DataError: naming the folder or file that cannot be used.
    """
    if predictions is not None and Path(predictions).suffix != ".npz":
        raise SpecError(f"--predictions is {str(predictions)!r}; NumPy's files end in .npz")
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
        with replacing([predictions], overwrite=overwrite):
            write_whole(Path(predictions), lambda file: np.savez_compressed(file, **arrays))
    count = len(results["label"])
    intervals = {key: _wilson(value, count) for key, value in metrics.items() if key.endswith("_error")}
    return Evaluation(text, images.name, count, metrics, intervals, tuple(_remarks(record, images)))


def output_numbers(model: nn.Module, classes: Sequence[str], label: str) -> Tensor:
    """Return the number of the net's output for each class, (K,): its own order, or by WordNet id for ImageNet nets.

    Raises:
        SpecError: where the net's outputs are not these classes.
    """
    outputs = int(getattr(model, "num_classes", len(classes)))
    if outputs == len(classes):
        return torch.arange(outputs)
    ids = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    if outputs == len(ids) and all(name in ids for name in classes):
        return torch.tensor([ids.index(name) for name in classes])
    raise SpecError(
        f"{label} tells {outputs} classes apart, and the images have {len(classes)} ({', '.join(classes[:3])} …); "
        "some of ImageNet's classes do for a net of all 1,000, in folders called by their WordNet ids"
    )


def _refuse_in_memory(net: str, data: str) -> None:
    if is_opened(data):
        raise SpecError(f"{net} was not trained on {data}: its images would be prepared otherwise; test on folder:PATH")


def _pretrained(label: str, data: str | None, options: EvalOptions) -> tuple[nn.Module, Images]:
    """Return a pretrained net of timm's, and images prepared as its pretrained_cfg has it."""
    if data is None:
        raise SpecError(f"{label} is not a trial's: say what to test it on, such as --data folder:PATH")
    _refuse_in_memory(label, data)
    model, config = open_pretrained(label.removeprefix("timm:"))
    return model, _from_folder(data, config, options.batch_size or 64, options)


def _images_for(spec: RunSpec, label: str, data: str | None, options: EvalOptions) -> Images:
    """Open a trial's own test images, or others prepared as those of the trial."""
    batch_size = options.batch_size or spec.data.batch_size
    if data is not None and data != spec.data.name:
        _refuse_in_memory(label, data)
        return _from_folder(data, trial_config(spec, options.data_root), batch_size, options)
    data_spec = dataclasses.replace(spec.data, batch_size=batch_size)
    module = create_data(data_spec, spec.seed, root=options.data_root, workers=options.workers)
    return Images(spec.data.name, module.classes, module.batches("test"), module.test_keys(), module.digest)


def _from_folder(name: str, config: dict[str, Any], batch_size: int, options: EvalOptions) -> Images:
    """Open the images of a folder, prepared as a data config of timm's has it."""
    DataSpec(name)  # fails at once if no data set has the name
    if name.startswith(("wds:", "hf:")):
        raise SpecError(f"--data is {name!r}: shards can be tested on by the trial that was trained on them")
    folder = expand_path(name.removeprefix("folder:"), options.data_root)
    folder = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), folder)
    listing = scan(folder) if folder.is_dir() else Scan([], [], [])
    files = Files(str(folder), listing.paths, listing.labels)
    if not files.paths:
        raise DataError(f"{folder} is no folder of images: it needs a folder a class, with images in them")
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
        except Exception as error:  # PIL raises whatever its decoders do
            raise DataError(f"{self.files.root}/{self.files.names[number]} cannot be read: {error}") from error
        return self.transform(image), label, number


def _test(
    model: nn.Module, batches: Iterable[Batch], outputs: Tensor, device: torch.device, spec: RunSpec | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics, and image, label, top5 and probability of each image, as the trial computes them."""
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
        raise DataError("there is no test image")
    arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return scores.compute("test"), dict(zip(("image", "label", "top5", "probability"), arrays, strict=True))


@contextlib.contextmanager
def _threads(record: RunRecord | None) -> Iterator[None]:
    """Take the trial's number of CPU threads: sums of floats depend on it."""
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
        yield f"these are not the images that the trial was tested on: their digest is {images.digest}, it was {digest}"
