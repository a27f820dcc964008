"""The report page: it works in a browser without a network, shows hostile data as text, and stays small."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from se_lab.report import write_report
from se_lab.report.page import PAGE_BYTES, repeat_command
from se_lab.spec import DataSpec, ModelSpec, OptimSpec, RunSpec, SESpec, TrainSpec
from se_lab.spec.flags import parse_trial
from se_lab.store import RunRecord, write_record

Make = Callable[..., pd.DataFrame]
HOSTILE = '</script><img src=x onerror="window.pwned=1"><b>'
TOP1 = "test/top1_error"


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    return dict(json.loads(found[1]))


def keep(folder: Path, **fields: Any) -> str:
    """Write a record of a trial as training does; returns its folder."""
    host = {"name": "here", "device": "cpu"}
    defaults: dict[str, Any] = {
        "trial_id": folder.name,
        "status": "finished",
        "spec": RunSpec().flat(),
        "execution": {},
    }
    write_record(folder, RunRecord(**{**defaults, "host": host, **fields}))
    return str(folder)


@pytest.fixture
def hostile(reduction_study: pd.DataFrame, with_curves: Callable, tmp_path: Path) -> pd.DataFrame:
    """Records with curves, whose backbone and traceback are markup; r=2, seed 2 failed."""
    records = with_curves(reduction_study).assign(**{"model.backbone": HOSTILE})
    failed = (records["model.se.reduction"] == 2) & (records["seed"] == 2)
    error = f"RuntimeError: {HOSTILE}"
    folder = keep(tmp_path / "failed", status="failed", error=f"Traceback of {HOSTILE}\n{error}")
    records.loc[failed, ["status", "error", TOP1, "folder"]] = ["failed", error, np.nan, folder]
    return records


def test_the_page_sorts_filters_and_shows_hostile_data_as_text(
    hostile: pd.DataFrame, browser: Any, tmp_path: Path
) -> None:
    page = write_report(hostile, tmp_path / "report.html", title=HOSTILE, question=[f"Why? {HOSTILE}"])
    browser.get(page.as_uri())

    def rows() -> list[str]:
        return [row.text.split()[0] for row in browser.find_elements("css selector", "#table tbody tr") if row.text]

    assert browser.title == HOSTILE
    assert HOSTILE in browser.find_element("id", "question").text
    heads = browser.find_elements("css selector", "#table th")
    error = next(head for head in heads if head.text.startswith("test top-1 error"))
    assert rows() == ["no", "2", "4", "8", "16"]
    error.click()
    assert rows() == ["4", "8", "no", "2", "16"]  # means 7.23, 7.87, 8.2, 8.2 (7.9 and 8.5) and 8.4
    error.click()
    assert rows()[0] == "16" and rows()[-1] == "4"

    browser.find_element("id", "filter").send_keys("r=4")
    assert rows() == ["4"]
    assert browser.find_element("id", "count").text == "1 of 5 variants"
    trials = [box.text for box in browser.find_elements("css selector", "#trials details[id]") if box.text]
    assert len(trials) == 3 and all(text.startswith("r=4, seed") for text in trials)
    visible = browser.execute_script(
        "return document.getElementById('curves-plot').data.filter(trace => trace.visible === true).length"
    )
    assert visible == 3 * 2  # three seeds, in validation and in training
    browser.find_element("id", "filter").clear()

    drawn = browser.execute_script("return [...document.querySelectorAll('.plot')].map(plot => plot.id)")
    assert drawn == ["tradeoff-plot", "differences-plot", "reduction-plot", "curves-plot", "parallel-plot"]
    behind = browser.execute_script(
        "return document.getElementById('tradeoff-plot').data.flatMap(trace => trace.hovertext ?? [])"
    )
    for trial in hostile.loc[hostile["status"] == "finished", "trial_id"]:
        assert any(trial in text for text in behind)
    failed = browser.find_element("id", "failed").text
    assert "r=2, seed 2" in failed and HOSTILE in failed
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    assert browser.save_screenshot(str(tmp_path / "page.png"))


def test_labels_of_points_on_the_right_stand_to_their_left_and_epochs_are_whole(
    reduction_study: pd.DataFrame, with_curves: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    page = write_report(with_curves(reduction_study), tmp_path / "report.html", title="t")
    figures = {figure["id"]: figure for figure in page_data(page)["figures"]}
    (labels,) = (trace for trace in figures["tradeoff"]["choices"][0]["traces"] if trace["mode"] == "text")
    middle = (min(labels["x"]) + max(labels["x"])) / 2
    assert set(labels["textposition"]) == {"top left", "top right"}
    for x, side in zip(labels["x"], labels["textposition"], strict=True):
        assert side == ("top left" if x > middle else "top right")
    assert figures["curves"]["choices"][0]["layout"]["xaxis"]["dtick"] == 1


def test_curves_that_are_all_shown_stand_in_the_tables_order(
    reduction_study: pd.DataFrame, with_curves: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    page = write_report(with_curves(reduction_study), tmp_path / "report.html", title="t")
    figures = {figure["id"]: figure for figure in page_data(page)["figures"]}
    shown = [trace["name"] for trace in figures["curves"]["choices"][0]["traces"] if trace["showlegend"]]
    assert shown == ["no SE", "r=2", "r=4", "r=8", "r=16"]


@pytest.fixture
def two_keys(study: Make) -> pd.DataFrame:
    """Records of a baseline and two ratios in each of two backbones, one of whose names is markup; b has no r=8."""
    errors = {"a": (9.0, 7.0, 7.5), f"b{HOSTILE}": (8.0, 6.0)}
    variants = ({"insertion": "none"}, {"reduction": 4}, {"reduction": 8})
    return study(
        [
            ({"model.backbone": name, **variant}, [error, error + 1])
            for name, several in errors.items()
            for variant, error in zip(variants, several, strict=False)
        ]
    )


def test_a_sweep_is_seen_at_a_glance_and_the_filter_chooses_from_it(
    two_keys: pd.DataFrame, browser: Any, tmp_path: Path
) -> None:
    browser.get_log("browser")
    browser.get(write_report(two_keys, tmp_path / "report.html").as_uri())

    def data(figure: str, what: str) -> Any:
        return browser.execute_script(f"return document.getElementById('{figure}-plot').data.map(t => {what})")

    (cells,) = data("heatmap", "({x: t.x, y: t.y, z: t.z, text: t.text})")
    assert cells["y"] == ["no SE", "4", "8"]
    assert cells["z"] == [[9.5, 8.5], [7.5, 6.5], [8.0, None]]  # means of error and error + 1
    assert cells["text"] == [["9.50", "8.50"], ["7.50", "6.50"], ["8.00", "–"]]
    shown = browser.find_elements("css selector", "#heatmap-plot .heatmap-label")
    assert [label.text for label in shown] == ["9.50", "8.50", "7.50", "6.50", "8.00", "–"]

    # backbone, reduction, params and the metric from 6.5 to 9.5; the best is drawn last, and darkest
    lines = data("parallel", "({y: t.y, color: t.line.color, text: t.hovertext})")
    assert [round(line["y"][-1], 3) for line in lines] == [1.0, 0.667, 0.5, 0.333, 0.0]
    assert "r=4" in lines[-1]["text"] and lines[-1]["color"] == "rgb(0, 34, 78)"  # cividis at 0
    assert [line["y"][1] for line in lines] == [0.0, 0.0, 1.0, 0.5, 0.5]  # no SE, 4, 8 evenly from the bottom
    ticks = browser.find_elements("css selector", "#parallel-plot .annotation")
    assert {"no SE", "4", "8", "9.50", "6.50"} <= {tick.text for tick in ticks}
    assert any(HOSTILE in tick.text for tick in ticks)

    browser.find_element("id", "filter").send_keys("r=4")
    assert data("heatmap", "t.z") == [[[None, None], [7.5, 6.5], [None, None]]]
    assert data("parallel", "t.visible") == [False, False, False, True, True]
    browser.find_element("id", "filter").send_keys("\ue003" * 3)  # Backspace
    assert data("heatmap", "t.z") == [cells["z"]]
    assert data("parallel", "t.visible") == [True] * 5
    browser.execute_script("document.getElementById('heatmap-plot').emit('plotly_click', {points: [{data: {}}]})")
    assert browser.execute_script("return window.pwned") is None
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_200_trials_of_100_epochs_take_less_than_6_mb(study: Make, tmp_path: Path) -> None:
    variants = [
        ({"reduction": r, "model.backbone": f"net{n}"}, np.linspace(7, 9, 5)) for n in range(4) for r in range(2, 12)
    ]
    records = study(variants)
    assert len(records) == 200
    rng = np.random.default_rng(0)
    folders = []
    for trial in records["trial_id"]:
        folder = tmp_path / trial
        failed = rng.random() < 0.1
        keep(folder, error="x" * 9000 + trial if failed else None, status="failed" if failed else "finished")
        pd.DataFrame(rng.random((100, 2)) * 100, columns=["train/top1_error", "val/top1_error"]).assign(
            epoch=range(100)
        ).to_csv(folder / "metrics.csv", index=False)
        (folder / "excitations").mkdir()
        (folder / "excitations/figure_6.png").write_bytes(rng.bytes(100_000))
        folders.append(str(folder))
    page = write_report(records.assign(folder=folders), tmp_path / "report.html")
    assert page.stat().st_size <= PAGE_BYTES + 20_000 < 6e6
    data = page_data(page)
    assert 1 <= len(data["excitations"]) < 40 and len(data["excitations"]) + len(data["left_out"]) == 40
    assert len(next(figure for figure in data["figures"] if figure["id"] == "curves")["choices"][0]["traces"]) == 400


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(),
        RunSpec(model=ModelSpec("cifar_resnet20", SESpec(insertion="none")), seed=3),
        RunSpec(
            model=ModelSpec("resnet50", SESpec(stages=[2, 3], bias=True), kwargs={"drop_path_rate": 0.1}),
            data=DataSpec(name="folder:/data/my images", image_size=64),
            optim=OptimSpec(schedule="multistep", milestones=[3, 5], lr=1e-3),
            train=TrainSpec(epochs=7),
        ),
    ],
)
def test_the_command_to_repeat_a_trial_is_that_trial(spec: RunSpec, tmp_path: Path) -> None:
    keep(tmp_path / "trial", spec=spec.flat(), trial_id=spec.trial_id)
    record = RunRecord(**json.loads((tmp_path / "trial/record.json").read_text()))
    verb, *flags = shlex.split(repeat_command(record))[1:]
    assert verb == "train" and parse_trial(flags)[0].trial_id == spec.trial_id


def test_a_study_of_which_every_trial_failed_still_says_why(study: Make, tmp_path: Path) -> None:
    records = study([({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0])])
    records = records.assign(status="failed", error="RuntimeError: boom").drop(columns=TOP1)
    data = page_data(write_report(records, tmp_path / "report.html"))
    assert [trial["error"] for trial in data["trials"]] == ["RuntimeError: boom"] * 2
    assert data["figures"] == [] and "table" not in data


def test_costs_stand_beside_the_papers_where_net_and_data_are_its_own(study: Make, tmp_path: Path) -> None:
    variants = [({"insertion": "none"}, [23.3]), ({"reduction": 16}, [22.3])]
    ours = {"model.backbone": "resnet50_v1", "data.name": "imagenet"}
    # counted, published.yaml: 28,071,976 parameters with r = 16, which Table 10 prints as 28.1 M
    data = page_data(write_report(study(variants, params=28_071_976, **ours), tmp_path / "report.html"))
    agree = next(column for column in data["paper"]["columns"] if column["label"] == "params agree")
    assert "yes" in agree["cells"]
    assert page_data(write_report(study(variants), tmp_path / "other.html"))["paper"] is None


def test_records_that_name_no_folder_give_a_page_without_curves_and_environments(
    reduction_study: pd.DataFrame, tmp_path: Path
) -> None:
    data = page_data(write_report(reduction_study.drop(columns="folder"), tmp_path / "report.html"))
    assert [figure["id"] for figure in data["figures"]] == ["tradeoff", "differences", "reduction", "parallel"]
    assert len(data["trials"]) == 15 and data["environments"] == []
