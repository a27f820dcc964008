"""The page's figures: the points of the images, as Plotly has them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from se_lab.report import group_variants
from se_lab.report.figures.chart import Axis, Chart, Panel, Series, Text
from se_lab.report.figures.differences import differences
from se_lab.report.figures.gallery import page_sections
from se_lab.report.figures.page import plot
from se_lab.report.figures.parallel import parallel
from se_lab.report.figures.reduction import reduction
from se_lab.report.figures.tradeoff import tradeoff

TOP1 = "test/top1_error"


def at(trace: dict[str, Any]) -> list[tuple[float, float]]:
    return list(zip(trace["x"], trace["y"], strict=True))


def test_every_point_of_an_image_is_on_the_page_at_the_same_value(reduction_study: pd.DataFrame) -> None:
    study = group_variants(reduction_study)
    charts = [
        tradeoff(study, TOP1, "params"),
        *(make(study, TOP1) for make in (differences, reduction, parallel)),
    ]
    for chart in charts:
        traces = plot(chart)["traces"]
        for number, panel in enumerate(chart.panels):
            own = [trace for trace in traces if trace.get("xaxis", "x") == ("x" if number == 0 else f"x{number + 1}")]
            for series in panel.series:
                points = np.column_stack([series.x, series.y])
                same = [
                    t
                    for t in own
                    if len(t["x"]) == len(points) and None not in t["x"] and np.allclose(at(t), points, rtol=1e-5)
                ]
                assert same, (chart.key, series.name)
                half = series.y_half if series.y_half is not None else series.x_half
                if half is not None:
                    bars = [t.get("error_y", t.get("error_x")) for t in same if "error_y" in t or "error_x" in t]
                    drawn = bars[0]["arrayminus"], bars[0]["array"]
                    np.testing.assert_allclose(drawn, np.broadcast_to(np.nan_to_num(half), np.shape(drawn)), rtol=1e-5)


def test_axes_have_the_range_scale_and_ticks_of_the_image(reduction_study: pd.DataFrame) -> None:
    study = group_variants(reduction_study)
    chart, layout = (made := tradeoff(study, TOP1, "step_ms")), plot(made)["layout"]
    np.testing.assert_allclose(layout["yaxis"]["range"], chart.panels[0].y.limits)
    layout = plot(reduction(study, TOP1))["layout"]
    assert layout["xaxis"]["type"] == "log" and layout["xaxis"]["ticktext"] == ["2", "4", "8", "16"]
    np.testing.assert_allclose(10 ** np.array(layout["xaxis"]["range"]), reduction(study, TOP1).panels[0].x.limits)
    assert layout["yaxis2"]["domain"][1] < layout["yaxis"]["domain"][0]  # the parameters stand below


def test_points_lines_and_names_know_their_variant_and_trial(reduction_study: pd.DataFrame) -> None:
    study = group_variants(reduction_study)
    made = plot(tradeoff(study, TOP1, "params"))
    front, small, means, *arrows = made["traces"]
    assert front["meta"] == {"front": 1}
    assert small["customdata"] == [[i // 3, i] for i in range(15)]
    assert means["customdata"] == [[i, -1] for i in range(5)]
    assert all(isinstance(arrow["meta"], list) for arrow in arrows)
    assert all(reduction_study["trial_id"][i] in text for i, text in enumerate(small["hovertext"]))
    assert sorted(note["name"] for note in made["layout"]["annotations"]) == ["v0", "v1", "v2", "v3", "v4"]
    lines = [trace for trace in plot(parallel(study, TOP1))["traces"] if "meta" in trace]
    assert sorted(trace["meta"] for trace in lines) == [[i, -1] for i in range(5)]


def test_what_a_user_chose_is_no_markup() -> None:
    name = "</script><b>&$x$"
    series = Series(np.array([1.0]), np.array([2.0]), name, marker="circle", hover=[f"{name}\n7 %"])
    ticks = [(1.0, name)]
    panel = Panel(Axis(name, (0, 2), ticks=ticks), Axis(name, (0, 3)), [series], title=name, names=[Text(1, 2, name)])
    text = json.dumps(plot(Chart("k", name, name, [panel], legend=name)) | {"note": "", "label": "", "description": ""})
    assert "<b>&lt;/script&gt;&lt;b&gt;&amp;$x$</b><br>7 %" in text
    assert "</script>" not in text and text.count("<b>") == 1


def test_names_of_points_do_not_cover_each_other_on_a_page() -> None:
    names = [Text(1.0 + i / 50, 2.0, f"variant {i}") for i in range(6)]
    points = Series(np.array([n.x for n in names]), np.array([n.y for n in names]), marker="circle", y_half=np.ones(6))
    notes = plot(Chart("k", "t", "n", [Panel(Axis("x", (0, 3)), Axis("y", (0, 4)), [points], names=names)]))["layout"][
        "annotations"
    ]
    assert len(notes) == 6
    middles = [(n["x"] / 3 * 820 + n["ax"], n["y"] / 4 * 370 - n["ay"]) for n in notes]
    for i, (x, y) in enumerate(middles):
        for other_x, other_y in middles[:i]:
            assert abs(x - other_x) > 55 or abs(y - other_y) > 14  # 9 characters of 7 pixels, lines of 15


def test_a_study_gives_the_sections_that_its_trials_allow(reduction_study: pd.DataFrame) -> None:
    study = group_variants(reduction_study)
    sections = page_sections(study, TOP1, [study, study])
    assert [section["id"] for section in sections] == ["tradeoff", "differences", "reduction", "parallel"]
    assert [choice["label"] for choice in sections[0]["choices"]] == ["params", "MACs", "step"]
    assert len(sections[1]["choices"]) == 2  # one a baseline
    json.dumps(sections, allow_nan=False)
