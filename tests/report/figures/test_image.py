"""Images: every value where it is, no text over another or below six points, names as text, files that repeat."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from se_lab.report import KINDS, STYLES, Look, group_variants, save_figure
from se_lab.report.figures.chart import Axis, Cells, Chart, Panel, Series, Text
from se_lab.report.figures.gallery import CHARTS
from se_lab.report.figures.image import draw
from se_lab.report.figures.look import SMALLEST
from se_lab.report.figures.panels import MARKERS, _ticks
from se_lab.report.figures.tradeoff import tradeoff
from tests.report.conftest import trial
from tests.report.figures.reading import extent, overlaps, texts

LONG = (
    "seresnext101_32x8d.ah_in1k",
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
    "vit_so150m2_patch16_reg1_gap_448.sbb_e200_in12k_ft_in1k",
    "resnet50.a1_in1k",
    "US$ or C$",
    "__background__",
    "Ba$$in",
    "卷积网络 模型",
)
TOP1 = "test/top1_error"


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Records of forty variants with long and hard names, four ratios and a baseline in each of eight nets."""
    rng = np.random.default_rng(0)
    rows = []
    for number, name in enumerate(LONG):
        for se in ({"insertion": "none"}, *({"reduction": r} for r in (4, 8, 16, 32))):
            folder = tmp_path_factory.mktemp("trial")
            error = 20 + number + float(rng.normal(0, 0.4))
            pd.DataFrame({"epoch": [0, 1, 2], "val/top1_error": [90.0, 50.0, error]}).to_csv(folder / "metrics.csv")
            rows.append(trial({"model.backbone": name, **se}, 0, error, folder=str(folder)))
    return pd.DataFrame(rows)


def marked(axes: Any) -> set[tuple[float, float]]:
    """Where the markers of points are, read from Matplotlib."""
    signs = set(MARKERS.values())
    lines = [line for line in axes.lines if line.get_marker() in signs and line.get_gid() != "cut"]
    return {(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "classes"])  # which names classes, not variants
def test_forty_long_names_in_one_column_are_legible_and_every_marker_stands_at_its_value(
    forty: pd.DataFrame, kind: str
) -> None:
    study = group_variants(forty)
    chart = tradeoff(study, TOP1, "params") if kind == "tradeoff" else CHARTS[kind](study, TOP1)
    figure = draw(chart, Look("paper", 3.3))
    assert figure.get_size_inches()[0] == pytest.approx(3.3)
    shown = texts(figure)
    assert min(one.get_fontsize() for one in shown) >= SMALLEST
    assert list(overlaps(figure)) == []
    for one in shown:
        box = extent(one)
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, one
    for axes, panel in zip(figure.axes, chart.panels, strict=False):
        points = {(float(x), float(y)) for s in panel.series if s.marker for x, y in zip(s.x, s.y, strict=True)}
        assert marked(axes) == points
        for series in panel.series:
            corners = np.column_stack([series.x, series.y])
            assert not series.dash or any(np.array_equal(line.get_xydata(), corners) for line in axes.lines)
        if panel.cells:
            np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), panel.cells.values)


def line_chart(*names: str, **fields: Any) -> Chart:
    """A chart of one panel with a line a name."""
    lines = [Series(np.array([0.0, 1.0]), np.array([0.0, i]), name, dash="solid") for i, name in enumerate(names)]
    panel = Panel(Axis("epoch", (0, 1)), Axis("error", (0, len(names))), lines, title=names[0])
    return Chart(**{"key": "k", "title": "error by epoch", "note": "One seed.", "panels": [panel]} | fields)


def test_names_are_text_and_never_markup_or_mathematics(tmp_path: Path) -> None:
    names = ["__background__", "US$ or C$", "Ba$$in", "_x", "<b>&amp;", r"\frac{1}{2}", "a\nb", "x" * 300]
    figure = draw(line_chart(*names))
    (legend,) = figure.legends
    written = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert written == [*names[:6], "a b", names[7]]
    (file,) = save_figure(figure, tmp_path / "f", ["svg"])
    found = [text.text for text in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]
    assert {"__background__", "US$ or C$", "Ba$$in", "<b>&amp;", r"\frac{1}{2}"} <= set(found)


def test_characters_that_the_usual_font_lacks_come_from_another_or_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from se_lab.report.figures import look

    monkeypatch.setattr(look, "_installed_fonts", lambda: [("Wide", {"卷", "积"}), ("Other", {"網"})])
    assert look.fallback_fonts(["r=16 é ω² ±", "卷积"]) == (["Wide"], "")
    assert look.fallback_fonts(["卷 網 \N{FOX FACE}"]) == (["Wide", "Other"], "\N{FOX FACE}")
    monkeypatch.setattr(look, "_installed_fonts", list)
    figure = draw(line_chart("卷"))
    assert any("No installed font has the characters 卷" in text.get_text() for text in figure.texts)


def test_an_svg_keeps_text_as_text_and_says_what_it_shows(tmp_path: Path) -> None:
    chart = line_chart("r=4", "r=8")
    (file,) = save_figure(draw(chart), tmp_path / "f", ["svg"])
    root = ElementTree.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "Error by epoch"  # type: ignore[union-attr]
    described = root.find(f"{space}desc").text  # type: ignore[union-attr]
    assert described == "One seed. Across: epoch. Up: error. Shown: r=4, r=8."
    assert (root.get("role"), root.get("aria-label")) == ("img", "Error by epoch")
    assert {"r=4", "r=8", "epoch", "error", "Error by epoch"} <= {text.text for text in root.iter(f"{space}text")}


def test_files_repeat_to_the_byte_and_carry_the_title(tmp_path: Path) -> None:
    formats = ("png", "svg", "pdf")
    first, second = (
        save_figure(draw(line_chart("a", "b")), tmp_path / name / "new" / "figure.v1", formats) for name in "ab"
    )
    assert [path.name for path in first] == ["figure.v1.png", "figure.v1.svg", "figure.v1.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"Error by epoch" in first[0].read_bytes() and b"Error by epoch" in first[2].read_bytes()


def test_width_style_and_title_are_what_is_asked_for() -> None:
    sizes = {}
    for style in STYLES:
        figure = draw(line_chart("a"), Look(style, 5.0, "My title"))
        assert figure.get_size_inches()[0] == 5.0
        assert figure.texts[0].get_text() == "My title"
        sizes[style] = max(one.get_fontsize() for one in texts(figure))
    assert sizes["paper"] < sizes["page"] < sizes["talk"]
    assert "Error by epoch" not in [one.get_text() for one in draw(line_chart("a"), Look(title="")).texts]
    with pytest.raises(ValueError, match=r"Unknown style 'papr'; did you mean 'paper'"):
        Look("papr")
    with pytest.raises(ValueError, match=r"width is 0\.5 inches; it must be from 2 to 60"):
        Look(width=0.5)


def test_an_interval_that_leaves_the_panel_ends_in_an_arrow_at_its_edge() -> None:
    points = Series(np.array([1.0, 2.0]), np.array([5.0, 6.0]), marker="circle", y_half=np.array([1.0, 50.0]))
    chart = line_chart("a", panels=[Panel(Axis("x", (0, 3)), Axis("y", (0, 10)), [points])])
    (axes,) = draw(chart).axes
    arrows = {
        (line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in axes.lines if line.get_gid() == "cut"
    }
    assert arrows == {(2.0, 0, "v"), (2.0, 10, "^")}
    (bars,) = axes.collections
    np.testing.assert_array_equal([path.vertices[:, 1] for path in bars.get_paths()], [[4, 6], [0, 10]])


def test_a_matrix_has_numbers_that_stand_out_where_they_fit_and_a_note_where_not() -> None:
    values = np.array([[6.0, 9.0], [7.0, np.nan]])
    chart = line_chart(
        "a",
        panels=[
            Panel(
                Axis("x", (-0.5, 1.5)),
                Axis("y", (1.5, -0.5)),
                cells=Cells(values, "error", [["6.00", "9.00"], ["7.00", "–"]]),
            )
        ],
    )
    axes = draw(chart).axes[0]
    assert {one.get_text(): one.get_color() for one in axes.texts} == {
        "6.00": "white",
        "9.00": "black",
        "7.00": "white",
        "–": "black",
    }
    wide = np.arange(400.0).reshape(4, 100)
    cells = Cells(wide, "error", [[f"{value:.2f}" for value in row] for row in wide])
    figure = draw(line_chart("a", panels=[Panel(Axis("x", (-0.5, 99.5)), Axis("y", (3.5, -0.5)), cells=cells)]))
    assert not figure.axes[0].texts
    assert "Numbers are omitted" in figure.texts[1].get_text()


def test_more_rows_or_columns_than_can_be_named_are_thinned_and_the_note_says_so() -> None:
    count = 300
    ticks = [(i, f"class {i}") for i in range(count)]
    cells = Cells(np.eye(count), "correlation")
    side = Axis("", (-0.5, count - 0.5), ticks=ticks, names=True)
    figure = draw(line_chart("a", panels=[Panel(side, side, cells=cells)]))
    assert "Some names of rows are omitted" in figure.texts[1].get_text()
    assert "Some names of columns are omitted" in figure.texts[1].get_text()
    assert list(overlaps(figure)) == []


def test_no_global_state_of_matplotlib_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    draw(line_chart("a"))
    assert dict(matplotlib.rcParams) == before


def test_whole_numbers_are_written_without_decimals():
    ticks = _ticks(Axis("channel", (-1.0, 16.0), whole=True), 1000.0, len)
    assert [text for _, text in ticks] == [str(int(value)) for value, _ in ticks] and len(ticks) > 2


def test_numbers_beside_a_panel_keep_clear_of_the_arrows_of_cut_intervals() -> None:
    points = Series(np.array([1.0, 2.0]), np.array([0.0, 1.0]), marker="square", x_half=np.array([50.0, 1.0]))
    numbers = [Text(0, y, "−1.00 ± 50.00", at_edge=True) for y in (0.0, 1.0)]
    panel = Panel(Axis("Δ", (-3, 3)), Axis("", (1.6, -0.6)), [points], texts=numbers)
    for style in STYLES:
        figure = draw(line_chart("a", panels=[panel]), Look(style))
        (axes,) = figure.axes
        tips = [
            axes.transData.transform(line.get_xydata())[0, 0] + line.get_markersize() / 2 * figure.dpi / 72
            for line in axes.lines
            if line.get_gid() == "cut"
        ]
        assert len(tips) == 2 and max(tips) < min(text.get_window_extent().x0 for text in axes.texts)


def test_rotated_names_take_their_height_from_the_figure_and_not_from_the_panel() -> None:
    heights = []
    for names in (["a", "b", "c"], ["learning rate", "b", "c"]):
        axis = Axis(limits=(-0.5, 8.5), ticks=list(enumerate([*names, *"defghi"])), names=True)
        line = Series(np.arange(9.0), np.arange(9.0), dash="solid")
        figure = draw(line_chart("a", panels=[Panel(axis, Axis("y", (0, 9)), [line])]), Look("paper"))
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.95 * heights[0]
