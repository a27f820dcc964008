"""A store of two finished trials, for the tests that read, tidy or damage one."""

from __future__ import annotations

import pytest

from se_lab.spec import DataSpec, ExecSpec, ModelSpec, RunSpec, SESpec, TrainSpec
from se_lab.training.run import run


def spec(seed: int = 0, select: str = "last", epochs: int = 2) -> RunSpec:
    model = ModelSpec("cifar_resnet20", SESpec(reduction=8))
    return RunSpec(model, DataSpec(batch_size=512), train=TrainSpec(epochs=epochs, select=select), seed=seed)


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """Return a store of two finished trials, tested with their last and their best weights."""
    folder = tmp_path_factory.mktemp("ran")
    for trial in (spec(0), spec(1, "best")):
        run(trial, ExecSpec(store=str(folder), logger="none"))
    return folder
