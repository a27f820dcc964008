"""The small study that the site shows: its trials, one figure of each kind, a report page and an explorer."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from se_lab import ExecSpec, SESpec, load_records, run
from se_lab.cli import main
from se_lab.excitations.collect import CaptureOptions, collect, open_data, open_net
from se_lab.excitations.comparisons import training
from se_lab.report import KINDS, draw_figures, save_figure
from se_lab.report.figures.image import draw
from se_lab.sweep.grammar import read_sweep

SPEC = Path(__file__).with_name("study.yaml")

STUDY_FIGURES = {
    "tradeoff": "Error against a cost, one mark per variant, with 95 % intervals. Marks to the lower left are better.",
    "curves": "The metric epoch by epoch, one panel per variant over the baseline.",
    "differences": "The difference of each variant from the baseline, with simultaneous 95 % intervals.",
    "reduction": "The metric over the reduction ratio, one curve per setting of the other fields.",
    "heatmap": "The metric by two fields, where a study varies exactly two.",
    "classes": "The difference of two variants' errors in each class (`--contrast A B`), with Holm's correction.",
    "parallel": "All fields and the metric on parallel axes, one line per variant; darker means lower error.",
}
"""Each kind of `se-lab plot`, and what it shows."""

EXCITATION_FIGURES = {
    "figure_6": "The paper's Figure 6: the mean gate of each channel, one line per class, one panel per unit.",
    "figure_7": "The paper's Figure 7: mean and standard deviation of the gates within a class.",
    "distribution": "The distribution of the gates of each unit over all images and channels, stage by stage.",
    "saturation": "The share of gates near the bounds of the excitation; for ReLU the share of zeros.",
    "selectivity": "How strongly each unit's gates depend on the class: variance between classes (ω²) and selectivity "
    "index, each beside what chance gives.",
    "class_similarity": "How alike classes excite a unit: correlation of the class means over the channels.",
    "unit_similarity": "How alike units tell classes apart: debiased CKA, with the quantile that chance reaches.",
    "redundancy": "The test error when a unit's gate is held at its mean (`--redundancy`).",
    "maps": "The spatial gates of units that have them (CBAM, coordinate attention, …), drawn over pictures.",
    "training": "How units change over training, from several checkpoints of one trial.",
}
"""Each figure of `se-lab excitations`, and what it shows."""


@dataclass(frozen=True)
class Drawn:
    """A figure of the gallery."""

    name: str
    shows: str
    call: str
    """The command that draws it."""
    file: Path


def make_study(folder: Path) -> Path:
    """Run the trials of the study that have not run yet, and return the store."""
    store = folder / "runs"
    with contextlib.redirect_stderr(io.StringIO()):
        for trial in read_sweep(SPEC).trials:
            run(trial, ExecSpec(store=str(store), device="cpu", logger="none"))
        spatial = replace(trial, model=replace(trial.model, se=SESpec(unit="cbam", reduction=4)))
        run(spatial, ExecSpec(store=str(folder / "spatial"), device="cpu", logger="none"))
    return store


def draw_study(store: Path, folder: Path) -> Iterator[Drawn]:
    """Draw each kind of figure of the study."""
    records = load_records(SPEC, store)
    for name, figure in draw_figures(records):
        if isinstance(figure, str):
            raise RuntimeError(f"the study of the site cannot give the figure {name}: {figure}")
        kind = max((kind for kind in KINDS if name.startswith(kind)), key=len)
        (file,) = save_figure(figure, folder / name, ["png"])
        yield Drawn(name, STUDY_FIGURES[kind], f"se-lab plot sweeps/demo.yaml --kind {kind}", file)


def draw_excitations(store: Path, folder: Path) -> Iterator[Drawn]:
    """Draw each kind of figure of excitations, from the first trial with SE units."""
    records = load_records(SPEC, store)
    trial = Path(records.loc[records["model.se.insertion"] != "none", "folder"].iloc[0])
    _quietly("excitations", str(trial), "--redundancy", "--thumbnails", "-o", str(folder / "one"))
    for file in sorted((folder / "one").glob("*.png")):
        flags = " --redundancy" if file.stem == "redundancy" else ""
        yield Drawn(file.stem, EXCITATION_FIGURES[file.stem], f"se-lab excitations runs/TRIAL{flags}", file)
    spatial = load_records(store.parent / "spatial")["folder"].iloc[0]
    _quietly("excitations", spatial, "-o", str(folder / "spatial"))
    yield Drawn("maps", EXCITATION_FIGURES["maps"], "se-lab excitations runs/TRIAL", folder / "spatial" / "maps.png")
    by_epoch = []
    for name in ("previous.ckpt", "last.ckpt"):
        net = open_net(trial / name)
        statistics = collect(net, open_data(net, None), folder / "epochs" / f"{name}.safetensors", CaptureOptions())
        by_epoch.append((net.about["epoch"] + 1, statistics))
    (file,) = save_figure(draw(training(by_epoch)), folder / "training", ["png"])
    call = "se-lab excitations runs/TRIAL/previous.ckpt runs/TRIAL/last.ckpt"
    yield Drawn("training", EXCITATION_FIGURES["training"], call, file)


def live_pages(store: Path, folder: Path) -> dict[str, Path]:
    """Write the report page of the study, and return it with the explorer that `draw_excitations` has made."""
    _quietly("report", str(SPEC), "--store", str(store), "-o", str(folder / "report.html"), "--overwrite")
    return {"report.html": folder / "report.html", "explorer.html": folder / "one" / "explorer.html"}


def _quietly(*arguments: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(arguments)
    if status:
        raise RuntimeError(f"se-lab {' '.join(arguments)} left with {status}:\n{said.getvalue()}")


def study_folder() -> Path:
    """Return where the study of the site is kept: SE_LAB_DOCS, else build/docs."""
    return Path(os.environ.get("SE_LAB_DOCS") or Path(__file__).parents[1] / "build" / "docs")


def fresh(folder: Path) -> Path:
    """Return a folder, emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
