"""What all tests share: one thread, no network, and specs that train in about a second."""

from __future__ import annotations

import os
import signal

# a CPU's are the numbers they expect; and who has asked for a GPU can fork no worker that trains on one
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch

from se_lab.spec import DataSpec, ExecSpec, ModelSpec, OptimSpec, RunSpec, SESpec, TrainSpec

# a shell's background job and nohup ignore them, and so would all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def quick():
    """Return a maker of specs of two epochs on digits."""

    def make(se: SESpec | None = None, *, seed: int = 0, epochs: int = 2, **sections) -> RunSpec:
        return RunSpec(
            model=sections.get("model", ModelSpec("cifar_resnet20", se or SESpec(reduction=4))),
            data=sections.get("data", DataSpec(batch_size=256)),
            optim=sections.get("optim", OptimSpec(schedule="cosine")),
            train=sections.get("train", TrainSpec(epochs=epochs)),
            seed=seed,
        )

    return make


@pytest.fixture
def here(tmp_path) -> ExecSpec:
    """Return a store of the test's own, without W&B."""
    return ExecSpec(store=str(tmp_path / "store"), wandb=False)
