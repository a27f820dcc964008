"""Small sets, in the files and layouts that the real ones have."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from se_lab.spec import DataSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def trainer():
    """Return a maker of what a data module asks of Lightning's Trainer."""

    def make(rank=0, ranks=1, accumulate=1):
        return SimpleNamespace(
            global_rank=rank,
            world_size=ranks,
            accumulate_grad_batches=accumulate,
            overfit_batches=0,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )

    return make


@pytest.fixture
def noise():
    """Return a maker of random pictures, each of its number."""

    def make(number, size=20, mode="RGB"):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 255, (size, size + number % 7, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return make


@pytest.fixture
def folders(tmp_path, noise):
    """Return a maker of splits of class folders, and of the spec that reads them."""

    def make(name="set", splits=("train", "val"), classes=("cat", "dog"), images=6, **spec):
        number = 0
        for split in splits:
            for label in classes:
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for image in range(images):
                    noise(number := number + 1).save(folder / f"{image}.png")
        return DataSpec(f"folder:{tmp_path / name}", **{"image_size": 16, "batch_size": 4, "val_fraction": 0.5} | spec)

    return make


@pytest.fixture
def batches():
    """Return what a loader yields in an epoch."""

    def all_of(loader, epoch=0):
        loader.sampler.set_epoch(epoch)
        return list(loader)

    return all_of
