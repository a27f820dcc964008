"""The names of overlaid variants, and the figures that are left out with a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from se_lab.excitations import inspection
from se_lab.excitations.capture import GateSite
from se_lab.excitations.collect import CaptureOptions, collect
from se_lab.excitations.figures import class_similarity
from se_lab.excitations.inspection import Inspection, inspect_sweep
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.report.figures.image import draw
from se_lab.report.figures.look import Look
from se_lab.store import read_records
from tests.excitations.excitation_nets import driven_images, driven_net, write_trial
from tests.report.figures.reading import texts


@pytest.mark.parametrize("with_baseline", [False, True])
def test_an_only_variant_has_the_name_of_its_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_baseline: bool
) -> None:
    def one(*parts):  # the figures of single nets take seconds
        path = parts[4] / "figure_6.png"
        Image.new("L", (8, 8)).save(path)
        return [path]

    charts = []
    monkeypatch.setattr(inspection, "_figures_of_one", one)
    monkeypatch.setattr(inspection, "_save", lambda made, *_: charts.extend(made) or [])
    for se in ({"reduction": 2}, {"insertion": "none"})[: 1 + with_baseline]:
        write_trial(tmp_path / "store", **se)
    inspect_sweep(read_records(tmp_path / "store"), Inspection(output=tmp_path / "out"))
    names = {series.name for chart in charts for panel in chart.panels for series in panel.series if series.name}
    assert names == {"cifar_resnet20 standard r=2"}


def test_a_figure_that_needs_more_classes_is_left_out_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    net, images = driven_net(), driven_images()  # of three classes
    request = Inspection(capture=CaptureOptions(say=said.append))
    statistics = collect(net, images, tmp_path / "x.safetensors", request.capture)
    said.clear()
    assert inspection._unit_similarity(request, statistics) == []
    assert said == ["unit_similarity skipped: the images have 3 classes; the similarity of units needs at least 4"]


def test_more_classes_than_a_matrix_can_name_are_drawn_and_counted() -> None:
    filled = ExcitationStatistics([GateSite("SE_2_1", 2, 1, 8, "a")], [f"class {k}" for k in range(31)])
    filled.count += 5
    filled.mean.copy_(torch.rand(filled.mean.shape, generator=torch.Generator().manual_seed(0)))
    figure = draw(class_similarity(filled), Look("paper"))
    assert "31 classes, clustered" in [text.get_text() for text in texts(figure)]
