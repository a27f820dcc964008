"""What all tests share: one thread, no network, and specs that train in about a second."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# a CPU's are the numbers they expect; and who has asked for a GPU can fork no worker that trains on one
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch
import wandb

from se_lab.spec import DataSpec, ExecSpec, ModelSpec, OptimSpec, RunSpec, SESpec, TrainSpec

# a shell's background job and nohup ignore them, and so would all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def quick():
    """Return a maker of specs of two epochs of a net of three units on digits."""

    def make(se: SESpec | None = None, *, seed: int = 0, epochs: int = 2, **sections) -> RunSpec:
        return RunSpec(
            model=sections.get("model", ModelSpec("cifar_resnet20", se or SESpec(reduction=4), kwargs={"units": 1})),
            data=sections.get("data", DataSpec(batch_size=256)),
            optim=sections.get("optim", OptimSpec(schedule="cosine")),
            train=sections.get("train", TrainSpec(epochs=epochs)),
            seed=seed,
        )

    return make


@pytest.fixture
def here(tmp_path) -> ExecSpec:
    """Return a store of the test's own, without W&B."""
    return ExecSpec(store=str(tmp_path / "store"), logger="none")


def end_service() -> None:
    """End W&B's service; give up after a minute.

    The client waits for ever if the service answers, for example an agent, while the client disconnects. A service that
    is left running ends with this process.
    """
    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(60)
    if ending.is_alive():
        warnings.warn("W&B's client does not end its service", stacklevel=2)


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set nothing of W&B's, as for most users, in a session of the test's own.

    The client reads its environment once in a process, so a test before or after this one would share it.
    """
    end_service()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    yield
    end_service()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start headless Chromium with a profile of its own, which keeps what pages write to the console."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium with chromedriver to open the page in")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    quiet = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking")
    for flag in (*quiet, "window-size=1500,1700", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_script_timeout(600)  # a busy machine is slow, and no failure
    yield opened
    opened.quit()
