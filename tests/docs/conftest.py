"""The small study of the site, run once, and a folder in which its pages' commands run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from se_lab.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))  # MkDocs finds the modules of its hooks in their own folder


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Return the folder of the study that the site shows, with all trials finished."""
    from site_study import make_study

    folder = tmp_path_factory.mktemp("study")
    make_study(folder)
    return folder


@pytest.fixture(scope="session")
def workspace(study, tmp_path_factory):
    """Return a reader's folder: what init copies, the study as sweeps/demo.yaml, its store, images in folders."""
    folder = tmp_path_factory.mktemp("reader")
    main(["init", str(folder)])
    shutil.copyfile(DOCS / "study.yaml", folder / "sweeps" / "demo.yaml")
    shutil.copytree(study / "runs", folder / "runs")
    rng = np.random.default_rng(0)
    for split, images in (("train", 24), ("val", 4)):
        for label in ("cat", "dog"):
            place = folder / "photos" / split / label
            place.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder
