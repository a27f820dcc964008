"""A few images and a tiny net, on which an epoch takes a fraction of a second."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from se_lab.data import DATASETS, Splits
from se_lab.spec import DataSpec, ModelSpec, OptimSpec, RunSpec, SESpec, TrainSpec


def a_few_images(root):
    """Return 12, 6 and 6 images of 8 × 8 pixels in 6 classes."""
    noise = torch.Generator().manual_seed(0)
    train, val, test = (
        TensorDataset(
            torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=noise), torch.arange(size) % 6
        )
        for size in (12, 6, 6)
    )
    return Splits(train, val, test, [str(label) for label in range(6)], 8, pad=1)


@pytest.fixture
def few(monkeypatch):
    """Return a maker of specs of two epochs of three steps on a few images."""
    monkeypatch.setitem(DATASETS, "few", a_few_images)

    def make(*, data=None, **sections) -> RunSpec:
        sections = {
            "model": ModelSpec("cifar_resnet20", SESpec(reduction=4), kwargs={"units": 1}),
            "data": DataSpec("few", **({"batch_size": 4} | (data or {}))),
            "optim": OptimSpec(lr=0.05, schedule="cosine"),
            "train": TrainSpec(epochs=2),
        } | sections
        return RunSpec(**sections)

    return make
