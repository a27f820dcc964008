"""Inspect trained nets: write statistics, figures and explorer pages, and compare nets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from se_lab.excitations import comparisons as compare
from se_lab.excitations import figures
from se_lab.excitations.capture import ExcitationError
from se_lab.excitations.collect import CaptureOptions, TrainedNet, collect, open_data, open_net
from se_lab.excitations.images import LabelledImages, choose_classes
from se_lab.excitations.maps import map_figure
from se_lab.excitations.measures import closed_histogram
from se_lab.excitations.page import write_page
from se_lab.excitations.statistics import ExcitationStatistics, is_statistics_file
from se_lab.report.figures.chart import Chart
from se_lab.report.figures.image import draw
from se_lab.report.figures.look import Look, save_figure
from se_lab.report.to_wandb import wandb_run
from se_lab.report.variants import INSERTION, group_variants
from se_lab.spec import variant_name
from se_lab.store import guard_outputs, is_trial

FILE = "excitations.safetensors"
PAGE = "explorer.html"
FIGURES = ("figure_6", "figure_7", "distribution", "saturation", "selectivity", "class_similarity", "unit_similarity",
           "redundancy", "maps", "training")  # fmt: skip
"""Names of all figures, without suffix."""


@dataclass(frozen=True)
class Inspection:
    """Options of an inspection."""

    data: str | None = None
    """digits or folder:PATH; by default the test images of the trial."""
    classes: Sequence[str] = ()
    """Classes of the figures by name, WordNet id, folder or number; by default the paper's, or four evenly spaced."""
    output: str | Path | None = None
    """Output folder; by default excitations/, in a trial's folder for a single trial."""
    overwrite: bool = False
    """Replace files that SE-Lab did not write."""
    batch_size: int = 64
    root: str = "."
    """Folder that relative data paths start from."""
    workers: int = 2
    """Number of processes that read files."""
    wandb: str | None = None
    """W&B project in which histograms and figures are added to the trials' runs, if any."""
    look: Look = field(default_factory=Look)
    """Style and width of the figures."""
    capture: CaptureOptions = field(default_factory=CaptureOptions)


def inspect_nets(sources: Sequence[str | Path], request: Inspection) -> list[Path]:
    """Write statistics and figures of each net, comparisons of nets, and an explorer page.

    Args:
        sources: Checkpoints, folders of trials, or timm:NAME. The explorer shows the first two side by side. For
            several checkpoints of one trial, there is a figure of changes over training.
        request: The options.

    Returns:
        The paths of the files.

    Raises:
        SpecError, DataError: if a net, class or image is missing, or a file exists that SE-Lab did not write.
    """
    nets = [open_net(source, trust_plugins=request.capture.trust_plugins) for source in sources]
    images = [_images(net, request) for net in nets]
    class_numbers = [_class_numbers(request, image_set) for image_set in images]
    folders = [_folder_of(net, request, is_single=len(nets) == 1) for net in nets]
    common_folder = folders[0] if len(nets) == 1 else Path(request.output or "excitations")
    with _writing({*folders, common_folder}, request):
        pass  # raises before running any image if files must not be replaced
    pairs, paths, figure_paths = [], [], []
    for net, image_set, classes, folder in zip(nets, images, class_numbers, folders, strict=True):
        with _writing([folder], request):
            statistics = collect(net, image_set, folder / FILE, request.capture)
            pairs.append((net.label, statistics))
            figure_paths.append(_figures_of_one(net, image_set, statistics, classes, folder, request))
            paths += [folder / FILE, *figure_paths[-1]]
        if request.wandb:
            _send(net, statistics, folder, request.wandb)
    same_classes = all(image_set.classes == images[0].classes for image_set in images[1:])
    unit = figures.paper_units(pairs[0][1].sites)[-1]
    subset = pairs[: 2 if same_classes else 1]
    picture = images[0].picture if request.capture.extremes else None
    with _writing([common_folder], request):
        if len(nets) > 1:
            paths += _comparisons(nets, pairs, same_classes, common_folder, request)
        stills = _static(figure_paths[0])
        page = common_folder / PAGE
        paths.append(write_page(subset, page, unit=unit, classes=class_numbers[0], picture=picture, figures=stills))
    return paths


def inspect_sweep(records: pd.DataFrame, request: Inspection) -> list[Path]:
    """Inspect every finished trial with SE units in its own folder, and compare the variants.

    Args:
        records: Trials from `load_records`.
        request: The options; the output is the folder of comparisons.

    Raises:
        ExcitationError: if no finished trial has SE units.
        SpecError: if a file exists that SE-Lab did not write.
    """
    study = group_variants(records)
    trials = study.trials
    finished_trials = trials[(trials["status"] == "finished") & (trials[INSERTION] != "none")]
    if finished_trials.empty:
        raise ExcitationError(
            f"none of {len(trials)} trials has finished and has SE units; run the sweep, or select other trials"
        )
    names = study.variants["variant"].reindex(finished_trials["variant"])
    is_single = names.nunique() == 1  # the name in a study with one variant may be too short
    folder = Path(request.output or "excitations")
    with _writing([folder], request):
        pass  # raises before running any image if files must not be replaced
    pairs, paths = [], []
    variants: dict[str, tuple[ExcitationStatistics, LabelledImages]] = {}  # the first seed of each
    for name, row in zip(names, finished_trials.to_dict("records"), strict=True):
        net = open_net(row["folder"], trust_plugins=request.capture.trust_plugins)
        if is_single and net.spec is not None:
            name = variant_name(net.spec)
        images = _images(net, request)
        classes = _class_numbers(request, images)
        request.capture.say(f"{name}, seed {row['seed']:.0f} ({net.label})")
        trial_folder = Path(row["folder"]) / "excitations"
        statistics = collect(net, images, trial_folder / FILE, request.capture)
        pairs.append((name, statistics))
        variants.setdefault(name, (statistics, images))
        figure_paths = _figures_of_one(net, images, statistics, classes, trial_folder, request)
        paths += [trial_folder / FILE, *figure_paths]
        picture = images.picture if request.capture.extremes else None
        unit = figures.paper_units(statistics.sites)[-1]
        nets = [(name, statistics)]
        page = trial_folder / PAGE
        paths.append(write_page(nets, page, unit=unit, classes=classes, picture=picture, figures=_static(figure_paths)))
        if request.wandb:
            _send(net, statistics, trial_folder, request.wandb)
    with _writing([folder], request):
        paths += _save([compare.selectivity(pairs), compare.overlay(pairs)], folder, request)
        if len(variants) > 1:
            paths.append(_explorer_of_two(variants, folder / PAGE, request))
    return paths


def _explorer_of_two(
    variants: dict[str, tuple[ExcitationStatistics, LabelledImages]], path: Path, request: Inspection
) -> Path:
    """Write the explorer of the first and last variant, or only the first if classes differ."""
    (first, (statistics, images)), *_, (last, (last_statistics, last_images)) = variants.items()
    nets = [(first, statistics)]
    if images.classes == last_images.classes:
        nets.append((last, last_statistics))
    unit, picture = figures.paper_units(statistics.sites)[-1], images.picture if request.capture.extremes else None
    return write_page(nets, path, unit=unit, classes=_class_numbers(request, images), picture=picture)


def _writing(folders: Iterable[Path], request: Inspection) -> AbstractContextManager[None]:
    """Return a context for writing into folders, in which only files of SE-Lab may be replaced.

    All files in the folder of a trial may be replaced, and statistics files, which are recognised by their header.
    """
    names = [PAGE, *(f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg"))]
    outside_folders = [folder for folder in folders if not any(map(is_trial, folder.absolute().parents))]
    files = [folder / name for folder in outside_folders for name in names]
    statistics = [
        (folder / FILE).with_suffix(suffix) for folder in outside_folders for suffix in (".safetensors", ".part")
    ]
    files += [path for path in statistics if not is_statistics_file(path)]
    return guard_outputs(files, overwrite=request.overwrite)


def _images(net: TrainedNet, request: Inspection) -> LabelledImages:
    return open_data(net, request.data, batch_size=request.batch_size, root=request.root, workers=request.workers)


def _class_numbers(request: Inspection, images: LabelledImages) -> list[int]:
    numbers = choose_classes(request.classes, images.classes)
    empty = [images.classes[label] for label in numbers if not (images.labels == label).any()]
    if empty and request.classes:
        raise ExcitationError(f"{images.name} has no image of class {', '.join(empty)}; choose other classes")
    return [label for label in numbers if images.classes[label] not in empty]


def _folder_of(net: TrainedNet, request: Inspection, *, is_single: bool) -> Path:
    if request.output is not None:
        return Path(request.output) if is_single else Path(request.output, _file_name(net.label))
    if net.spec is None:
        return Path("excitations", _file_name(net.label))
    source = Path(net.about["source"])
    return source / "excitations" if source.is_dir() else source.parent / "excitations" / source.stem


def _file_name(label: str) -> str:
    return label.removeprefix("timm:").replace("/", "_")


def _figures_of_one(
    net: TrainedNet,
    images: LabelledImages,
    statistics: ExcitationStatistics,
    classes: Sequence[int],
    folder: Path,
    request: Inspection,
) -> list[Path]:
    charts = [
        figures.activations(statistics, classes),
        figures.deviations(statistics, classes),
        figures.distribution(statistics),
        compare.saturation(statistics),
        compare.selectivity([("", statistics)]),
        figures.class_similarity(statistics),
        *_unit_similarity(request, statistics),
    ]
    if "redundancy" in statistics.about:
        charts.append(compare.redundancy(statistics))
    paths = _save(charts, folder, request)
    maps = map_figure(net.model, images, classes, request.look)
    return paths + (save_figure(maps, folder / "maps") if maps is not None else [])


def _unit_similarity(request: Inspection, *statistics: ExcitationStatistics) -> list[Chart]:
    """Return the similarity chart of the units of one or two nets, or none with a message."""
    try:
        return [compare.unit_similarity(*statistics)]
    except ExcitationError as error:
        request.capture.say(f"unit_similarity skipped: {error}")
        return []


def _static(paths: Sequence[Path]) -> list[Path]:
    """Return the paths of the images that a page shows without JavaScript."""
    return [path for path in paths if path.suffix == ".png" and path.stem in ("figure_6", "figure_7", "distribution")]


def _save(charts: Sequence[Chart], folder: Path, request: Inspection) -> list[Path]:
    """Draw charts and save them to a folder."""
    return [path for chart in charts for path in save_figure(draw(chart, request.look), folder / chart.key)]


def _comparisons(
    nets: Sequence[TrainedNet], pairs: compare.LabelledStatistics, same_classes: bool, folder: Path, request: Inspection
) -> list[Path]:
    charts = [compare.selectivity(pairs), compare.overlay(pairs)]
    if same_classes:
        charts += _unit_similarity(request, pairs[0][1], pairs[1][1])
    epochs = [net.about.get("epoch") for net in nets]
    if len({net.about.get("trial_id", net.label) for net in nets}) == 1 and len({*epochs} - {None}) > 1:
        by_epoch = [(epoch + 1, pair[1]) for epoch, pair in zip(epochs, pairs, strict=True) if epoch is not None]
        charts.append(compare.training(by_epoch))
    return _save(charts, folder, request)


def _send(net: TrainedNet, statistics: ExcitationStatistics, folder: Path, project: str) -> None:
    """Log histograms and figures to a trial's W&B run, as excitations/…; offline by default."""
    import wandb

    values: dict[str, Any] = {
        f"excitations/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))
    }
    for site in statistics.sites:
        histogram = closed_histogram(statistics.unit(site.name))
        values[f"excitations/{site.name}"] = wandb.Histogram(np_histogram=histogram)
    label = None if "trial_id" in net.about else net.label
    with wandb_run(project, folder, id=net.about.get("trial_id"), name=label, resume="allow") as run:
        run.log(values)
