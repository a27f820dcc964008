"""Loading of data: `python benchmarks/data.py --images 10000`.

Compares an epoch of a data set in memory, augmented in batches, with PIL images and torchvision's transforms in a
DataLoader with two workers; both return cropped, flipped and normalised float batches, in turn. Also compares the time
to open a folder of 105,000 files with torchvision's scan, and the JPEGs/s of two workers with torchvision and timm.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import interleave, ratio, table
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageDataset, create_loader
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from se_lab.data import create_data
from se_lab.data.memory import MemoryData
from se_lab.data.rand_augment import posterize_all
from se_lab.spec import DataSpec

LIMIT = 5
"""Required speed-up of data in memory."""
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


class Cifar(MemoryData):
    """Random images with the shape and augmentation of CIFAR."""

    pad, flips = 4, True

    def __init__(self, spec: DataSpec, images: int) -> None:
        pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(images) % 10
        super().__init__(spec, 0, dict.fromkeys(("train", "val", "test"), (pixels, labels)))
        self.classes = [str(number) for number in range(10)]


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images (N, H, W, [C]) of bytes, converted to PIL images as in torchvision's CIFAR10."""

    def __init__(self, pixels: np.ndarray, labels: list[int], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[number])), self.labels[number]


def sides(data: MemoryData, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return functions that load an epoch from memory, and with PIL and a DataLoader."""
    pixels, labels = data.splits["train"]
    steps = [v2.RandomCrop(pixels.shape[-1], padding=data.pad)]
    steps += [v2.RandomHorizontalFlip()] * data.flips
    if data.spec.rand_augment:
        bilinear = {"interpolation": Image.Resampling.BILINEAR}
        steps.append(posterize_all(rand_augment_transform(data.spec.rand_augment, bilinear)))
    mean, std = (values.flatten().tolist() for values in (data.mean / 255, data.std / 255))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    arrays = pixels.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
    pictures = Pictures(arrays, labels.tolist(), v2.Compose(steps))
    workers = DataLoader(pictures, batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    memory = data.train_dataloader()

    def epoch(loader: object) -> Callable[[], object]:
        return lambda: [batch[0].shape for batch in loader]

    return {"memory": epoch(memory), "PIL, 2 workers": epoch(workers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="number of images in CIFAR's shape")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=105_000, help="number of files to open, a multiple of 21,000")
    parser.add_argument("--pictures", type=int, default=512, help="number of JPEGs to load")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = DataSpec(batch_size=options.batch_size)
    cifar = DataSpec("cifar10", batch_size=options.batch_size)
    sets = {
        f"digits, {len(load_digits().images)} images of 8×8": create_data(spec, 0),
        f"CIFAR's shape, {options.images} images": Cifar(cifar, options.images),
        f"the same, {RAND_AUGMENT}": Cifar(
            DataSpec("cifar10", batch_size=options.batch_size, rand_augment=RAND_AUGMENT), options.images
        ),
    }
    rows = []
    for name, data in sets.items():
        times = interleave(sides(data, options.batch_size), options.rounds)
        seconds = [sorted(values)[len(values) // 2] for values in times.values()]
        limit = f"at least {LIMIT}" if not data.spec.rand_augment else ""
        rows.append(
            (name, *(f"{1000 * value:.0f}" for value in seconds), ratio(times, "PIL, 2 workers", "memory"), limit)
        )
    columns = ("set", "memory (ms an epoch)", "PIL + DataLoader (ms)", "times faster (quartiles)", "limit")
    print(table(columns, rows), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        print(opening(Path(folder, "many"), options.files, options.rounds), end="\n\n")
        print(loading(Path(folder, "pictures"), options.pictures, options.rounds))


def opening(root: Path, files: int, rounds: int) -> str:
    """Return a table of the time to open 1,000 class folders, and of torchvision's scan."""
    for split, number in (("train", files // 1050), ("val", files // 21_000)):
        for label in range(1000):
            place = root / split / f"n{label:08}"
            place.mkdir(parents=True)
            for image in range(number):
                (place / f"{image:06}.jpg").touch()

    def theirs() -> None:
        for split in ("train", "val"):
            ImageFolder(str(root / split))

    spec = DataSpec(f"folder:{root}", batch_size=64)
    times = interleave({"ours": lambda: create_data(spec, 0), "torchvision": theirs}, rounds)
    row = [f"{1000 * statistics.median(times[side]):.0f}" for side in ("ours", "torchvision")]
    columns = (f"{files:,} files", "open (ms)", "torchvision's scan (ms)", "ratio (quartiles)", "limit")
    return table(columns, [("1,000 classes", *row, ratio(times, "ours", "torchvision"), "2")])


def loading(root: Path, pictures: int, rounds: int) -> str:
    """Return a table of images/s of three loaders, for JPEGs of 500×375 cropped to 224."""
    draw = np.random.default_rng(0)
    for split, label in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        place = root / split / label
        place.mkdir(parents=True)
        for number in range(pictures // 2 if split == "train" else 1):
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps += [transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
    train, keep = str(root / "train"), {"num_workers": 2, "persistent_workers": True}
    images = ImageFolder(train, transforms.Compose(steps))
    of_timm = {"is_training": True, "color_jitter": None, "use_prefetcher": False, "device": torch.device("cpu")}
    loaders = {
        "ours": create_data(DataSpec(f"folder:{root}", batch_size=64), 0, workers=2).train_dataloader(),
        "torchvision": DataLoader(images, 64, shuffle=True, drop_last=True, **keep),
        "timm": create_loader(ImageDataset(train), (3, 224, 224), 64, **of_timm, **keep),
    }

    def epoch(loader: object) -> Callable[[], object]:
        return lambda: [batch[0].shape for batch in loader]

    times = interleave({name: epoch(loader) for name, loader in loaders.items()}, rounds)
    rows = []
    for name in loaders:
        pace = f"{pictures // 64 * 64 / statistics.median(times[name]):.0f}"
        rows.append((name, pace, "–" if name == "ours" else ratio(times, name, "ours")))
    return table(("JPEGs of 500×375, 2 workers", "images/s", "time over ours (quartiles)"), rows)


if __name__ == "__main__":
    main()
