"""The report page: it works in a browser without a network, shows hostile data as text, and stays small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from se_lab.report import write_report
from se_lab.report.page.report import PAGE_BYTES
from tests.pages import axe_findings
from tests.report.page.conftest import keep, page_data

Make = Callable[..., pd.DataFrame]
Show = Callable[..., Any]
HOSTILE = '</script><img src=x onerror="window.pwned=1"><b>'
TOP1 = "test/top1_error"


@pytest.fixture
def hostile(reduction_study: pd.DataFrame, with_curves: Callable, tmp_path: Path) -> pd.DataFrame:
    """Records with curves, whose backbone and traceback are markup; r=2, seed 2 failed."""
    records = with_curves(reduction_study).assign(**{"model.backbone": HOSTILE})
    failed = (records["model.se.reduction"] == 2) & (records["seed"] == 2)
    error = f"RuntimeError: {HOSTILE}"
    folder = keep(tmp_path / "failed", status="failed", error=f"Traceback of {HOSTILE}\n{error}")
    records.loc[failed, ["status", "error", TOP1, "folder"]] = ["failed", error, np.nan, folder]
    return records


def shown(browser: Any, table: str, column: int) -> list[str]:
    """The texts of a column of the rows that are shown."""
    script = (
        f"return [...document.querySelectorAll('#{table} tbody tr:not([hidden]):not(.details)')]"
        f".map(row => row.children[{column}].textContent)"
    )
    return list(browser.execute_script(script))


def test_the_page_sorts_filters_and_shows_hostile_data_as_text(
    hostile: pd.DataFrame, show: Show, tmp_path: Path
) -> None:
    page = write_report(hostile, tmp_path / "report.html", title=HOSTILE, question=[f"Why? {HOSTILE}"])
    browser = show(page)
    assert browser.title == HOSTILE
    assert HOSTILE in browser.find_element("id", "question").text
    heads = browser.find_elements("css selector", "#table thead th")
    error = next(head for head in heads if head.text.startswith("test top-1 error"))
    assert shown(browser, "table", 2) == ["no SE", "2", "4", "8", "16"]
    error.find_element("css selector", "button").click()
    assert error.get_attribute("aria-sort") == "ascending"
    assert shown(browser, "table", 2) == ["4", "8", "no SE", "2", "16"]  # means 7.23, 7.87, 8.2, 8.2 and 8.4
    error.find_element("css selector", "button").send_keys("\n")
    assert error.get_attribute("aria-sort") == "descending"
    assert shown(browser, "table", 2) == ["16", "no SE", "2", "8", "4"] or shown(browser, "table", 2)[0] == "16"

    drawn = browser.execute_script("return [...document.querySelectorAll('.plot')].map(plot => plot.id)")
    assert drawn == ["tradeoff-plot", "differences-plot", "reduction-plot", "parallel-plot", "curves-plot"]
    behind = browser.execute_script(
        "return document.getElementById('tradeoff-plot').data.flatMap(trace => trace.hovertext ?? [])"
    )
    for trial in hostile.loc[hostile["status"] == "finished", "trial_id"]:
        assert any(trial in text for text in behind)
    assert "failed" in shown(browser, "trial-table", 3)
    failed = hostile.index[hostile["status"] == "failed"][0]
    browser.execute_script(f"openTrial({failed})")
    assert f"Traceback of {HOSTILE}" in browser.find_element("css selector", f"#trial-{failed} + tr").text
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_the_filter_takes_whole_words_and_comparisons_and_hides_all_of_a_variant(
    hostile: pd.DataFrame, show: Show, tmp_path: Path
) -> None:
    browser = show(write_report(hostile, tmp_path / "report.html"))

    def kept(text: str) -> list[str]:
        browser.execute_script("at('filter').value = arguments[0]; onFilter()", text)
        return shown(browser, "table", 2)

    assert kept("r=1") == []  # not r=16
    assert kept("r=16") == kept("16") == kept("reduction:16") == ["16"]
    assert kept("r<=8") == ["2", "4", "8"]
    assert kept("r<=8 r!=4") == ["2", "8"]
    assert kept("status:failed") == ["2"] and len(shown(browser, "trial-table", 1)) == 1
    assert kept("params<=280k seed=0") == ["no SE", "16"]  # 272,474 and 4,096 more with r=16
    assert kept("non*") == ["no SE"]  # its insertion
    assert kept('"no SE"') == ["no SE"]
    kept("paramz<3")
    assert "unknown column paramz" in browser.find_element("id", "message").text

    assert kept("r=4") == ["4"]
    assert browser.find_element("id", "message").text == ""
    assert browser.find_element("id", "count").text == "1 of 5 variants, 3 of 15 trials"
    assert shown(browser, "trial-table", 1) == ["r=4"] * 3
    browser.execute_script("redrawAll(true)")
    points = browser.execute_script(
        "return at('tradeoff-plot').data.map(t => [t.name, t.mode, t.x.length, t.error_y?.array?.length ?? null])"
    )
    # the front of one point, its three trials, the mean with its bar, its label; nothing of other variants
    assert [(mode, count) for _, mode, count, _ in points] == [
        ("lines", 1),
        ("markers", 3),
        ("markers", 1),
    ]
    assert points[2][3] == 1
    assert browser.execute_script("return at('tradeoff-plot').layout.annotations.map(note => note.text)") == ["r=4"]
    assert browser.execute_script("return at('reduction-plot').data.map(t => t.x.length)") == [1, 1]  # error, params
    assert browser.execute_script("return at('differences-plot').layout.yaxis.ticktext") == ["r=4"]


def test_legend_choices_outlive_the_filter(hostile: pd.DataFrame, show: Show, tmp_path: Path) -> None:
    browser = show(write_report(hostile, tmp_path / "report.html"))
    names = "return at('curves-plot').data.filter(t => t.visible === 'legendonly').map(t => t.name)"
    browser.execute_script(
        "const all = at('curves-plot').data.map((t, i) => i).filter(i => at('curves-plot').data[i].name === 'r=8');"
        "return Plotly.restyle('curves-plot', {visible: 'legendonly'}, all)"
    )
    before = browser.execute_script(names)
    assert before and set(before) == {"r=8"}
    browser.execute_script("at('filter').value = 'r=4'; onFilter(); redrawAll(true)")
    assert browser.execute_script(names) == []
    browser.execute_script("at('filter').value = ''; onFilter(); redrawAll(true)")
    assert browser.execute_script(names) == before


def test_selection_baseline_and_all_else_are_in_the_address(
    reduction_study: pd.DataFrame, with_curves: Callable, show: Show, tmp_path: Path
) -> None:
    page = write_report(with_curves(reduction_study), tmp_path / "report.html")
    browser = show(page)
    browser.find_element("css selector", "[aria-label='select r=4']").click()
    browser.execute_script("at('tradeoff-plot').emit('plotly_click', {points: [{data: {}, customdata: [3, -1]}]})")
    browser.find_element("css selector", "[aria-label='compare with r=16']").click()
    browser.find_element("id", "filter").send_keys("r>=4")
    browser.execute_script("table.sort(4, true); state.log = true; save(); redrawAll(true)")

    def seen() -> dict[str, Any]:
        return {
            "selected": [row.text.split()[0] for row in browser.find_elements("css selector", "#table tr.selected")],
            "rows": shown(browser, "table", 2),
            "delta": shown(browser, "table", 5),
            "beside": browser.find_element("id", "compared").text,
            "log": browser.execute_script("return at('curves-plot').layout.yaxis.type"),
            "faded": browser.execute_script("return at('tradeoff-plot').data.some(t => t.opacity === 0.15)"),
            "axis": browser.execute_script("return at('differences-plot').layout.xaxis.title.text"),
        }  # fmt: skip

    first = seen()
    assert sorted(first["selected"]) == ["4", "8"] and first["log"] == "log" and first["faded"]
    # by hand: 7.23 − 8.40 and 7.87 − 8.40 points; the variant that the others are compared with has none
    assert [text.split(" ")[0] for text in first["delta"]] == ["", "−0.53", "−1.17"]
    assert "to r=16" in first["axis"]
    assert first["beside"].splitlines()[-1] == "model.se.reduction 4 8"
    address = browser.execute_script("return location.hash")
    assert seen() == first
    browser = show(page, address)
    assert seen() == first


def test_what_is_copied_is_what_is_shown(reduction_study: pd.DataFrame, show: Show, tmp_path: Path) -> None:
    browser = show(write_report(reduction_study, tmp_path / "report.html"))
    browser.execute_script("table.sort(2, false); at('filter').value = 'r<=8'; onFilter()")
    markdown, latex, csv = (
        browser.execute_script(f"return tableText('{name}')").splitlines() for name in ("Markdown", "LaTeX", "CSV")
    )
    assert [line.split("|")[1].strip() for line in markdown if line.startswith("| ")][2:] == ["4", "8", "2"]
    assert [line.split(" & ")[0].strip() for line in latex if line.endswith(r"\\")][-3:] == ["4", "8", "2"]
    assert len(csv) == 4 and csv[1].startswith("r=4,")
    rows = browser.execute_script("return dataRows(plots[0].build())")
    assert ["r=4", "", 288.858, 7.23333] in [row[:4] for row in rows]  # 272,474 + 65,536 / 4 parameters; 21.7 / 3


def test_by_keyboard_and_by_address_a_trial_opens_and_nothing_is_under_the_bar(
    reduction_study: pd.DataFrame, show: Show, tmp_path: Path
) -> None:
    page = write_report(reduction_study, tmp_path / "report.html")
    browser = show(page, "#trial-3")
    assert browser.find_element("css selector", "#trial-3 + tr.details").is_displayed()
    opener = browser.find_element("css selector", "#trial-3 button.open")
    assert opener.get_attribute("aria-expanded") == "true"
    opener.send_keys("\n")
    assert not browser.find_element("css selector", "#trial-3 + tr.details").is_displayed()
    for link in browser.find_elements("css selector", "#nav a"):
        link.send_keys("\n")
        section = link.get_attribute("href").split("#")[1].split("?")[0]
        top, bar, bottom = browser.execute_script(
            "const box = element => element.getBoundingClientRect();"
            f"return [box(at('{section}').querySelector('h2')).top, box(at('bar')).bottom, innerHeight]"
        )
        assert bar <= top < bottom


def test_without_javascript_the_table_and_static_figures_stand_there(
    reduction_study: pd.DataFrame, browser: Any, tmp_path: Path
) -> None:
    page = write_report(reduction_study, tmp_path / "report.html", title="A study")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert "7.23 (6.63–7.88)" in browser.find_element("css selector", "table.ablation").text
        assert browser.find_element("css selector", "main h1").text == "A study"
        images = browser.find_elements("css selector", "main img")
        titles = [str(one.get_attribute("alt")).splitlines()[0] for one in images]
        assert titles == [
            "Test top-1 error against params",
            "Difference of test top-1 error to no SE",
            "Test top-1 error over the reduction ratio",
            "5 variants at a glance",
        ]
        assert all(one.size["height"] > 100 for one in images)
        assert not browser.find_element("id", "filter").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_paper_all_is_unfolded_and_nothing_is_wider_than_the_sheet(
    hostile: pd.DataFrame, show: Show, tmp_path: Path
) -> None:
    browser = show(write_report(hostile, tmp_path / "report.html"))
    size = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert browser.find_element("css selector", "#trial-0 + tr.details").is_displayed()
        assert not browser.find_element("id", "bar").is_displayed()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 720
        widths = browser.execute_script(
            "return [...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().right)"
        )
        assert widths and max(widths) <= 720
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        assert not browser.find_element("css selector", "#trial-0 + tr.details").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    hostile: pd.DataFrame, write_predictions: Callable, show: Show, tmp_path: Path, scheme: str
) -> None:
    folders = [write_predictions(f"p{i}", np.arange(40) % (i + 2) > 0) for i in range(2)]
    records = hostile.copy()
    records.loc[[0, 3], "folder"] = folders
    page = write_report(records, tmp_path / "report.html", title="A study")
    browser = show(page, "#trial-5?selected=1,2&filter=seed<=2")
    assert axe_findings(browser, scheme) == []


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
    two_keys: pd.DataFrame, show: Show, tmp_path: Path
) -> None:
    browser = show(write_report(two_keys, tmp_path / "report.html"))

    def data(figure: str, what: str) -> Any:
        return browser.execute_script(f"return document.getElementById('{figure}-plot').data.map(t => {what})")

    (cells,) = data("heatmap", "({z: t.z, text: t.text})")
    assert browser.execute_script("return at('heatmap-plot').layout.yaxis.ticktext") == ["no SE", "4", "8"]
    assert cells["z"] == [[9.5, 8.5], [7.5, 6.5], [8.0, None]]  # means of error and error + 1
    assert cells["text"] == [["9.50", "8.50"], ["7.50", "6.50"], ["8.00", "–"]]
    labels = browser.find_elements("css selector", "#heatmap-plot .heatmap-label")
    assert [label.text for label in labels] == ["9.50", "8.50", "7.50", "6.50", "8.00", "–"]

    # backbone, reduction, params and the metric from 6.5 to 9.5; the best is drawn last, and darkest
    every = data("parallel", "({y: t.y, color: t.line?.color, text: t.hovertext, of: t.meta})")
    lines = [line for line in every if line["of"]]  # the others are the axes and the colour key
    assert [round(line["y"][-1], 3) for line in lines] == [1.0, 0.667, 0.5, 0.333, 0.0]
    assert "r=4" in lines[-1]["text"] and lines[-1]["color"] == "#00224e"  # cividis at 0
    assert [line["y"][1] for line in lines] == [0.0, 0.0, 1.0, 0.5, 0.5]  # no SE, 4, 8 evenly from the bottom
    ticks = browser.find_elements("css selector", "#parallel-plot .annotation")
    assert {"no SE", "4", "8", "7", "9"} <= {tick.text for tick in ticks}
    assert any(HOSTILE in tick.text for tick in ticks)

    browser.execute_script("at('filter').value = 'r=4'; onFilter(); redrawAll(true)")
    assert data("heatmap", "t.z") == [[[None, None], [7.5, 6.5], [None, None]]]
    assert sum(map(bool, data("parallel", "t.meta"))) == 2
    browser.execute_script("at('filter').value = ''; onFilter(); redrawAll(true)")
    assert data("heatmap", "t.z") == [cells["z"]]
    assert sum(map(bool, data("parallel", "t.meta"))) == 5
    points = "at('parallel-plot').data.filter(t => t.meta).slice(3).map(data => ({data}))"
    browser.execute_script(f"at('parallel-plot').emit('plotly_selected', {{points: {points}}})")
    assert browser.execute_script("return [...state.selected].map(v => data.variants[v].name)") == [
        "a, r=4",
        f"b{HOSTILE}, r=4",
    ]
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
    assert len(data["curves"]["trials"]) == 200


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
    assert len(data["trials"]) == 15 and data["environments"] == [] and data["curves"] is None


def test_a_setting_of_which_nothing_finished_is_no_baseline_to_choose(
    reduction_study: pd.DataFrame, tmp_path: Path
) -> None:
    lost = reduction_study["model.se.reduction"] == 4
    reduction_study.loc[lost, ["status", TOP1]] = ["failed", np.nan]
    data = page_data(write_report(reduction_study, tmp_path / "report.html"))
    (figure,) = [figure for figure in data["figures"] if figure["id"] == "differences"]
    names = [base["name"] for base in data["bases"]]
    assert names == ["no SE", "r=2", "r=8", "r=16"] and len(figure["choices"]) == len(names)
    for name, choice in zip(names, figure["choices"], strict=True):
        assert name in choice["layout"]["xaxis"]["title"]["text"]


def test_the_table_with_ranks_fits_a_window_of_1400_pixels_and_shows_every_number(
    study: Callable[..., pd.DataFrame], show: Show, tmp_path: Path
) -> None:
    variants = [
        ({"insertion": place, "reduction": r, "model.backbone": net}, [21.11 + r / 10, 24.57, 22.93])
        for net in ("convnext_base.clip_laiona_augreg_ft_in1k_384", "resnet50.a1_in1k")
        for place, r in (("none", 16), ("standard", 4), ("identity", 16))
    ]
    browser = show(write_report(study(variants), tmp_path / "page.html"))
    device = {"width": 1400, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    try:
        heads = browser.execute_script("return [...at('table').rows[0].cells].map(cell => cell.textContent)")
        widths = browser.execute_script(
            "const box = at('table').parentNode; return [box.scrollWidth, box.clientWidth,"
            " ...[...at('table').querySelectorAll('td:not(.text)')].map(cell => cell.scrollWidth - cell.clientWidth)]"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert {"backbone", "insertion", "reduction", "P(best)", "P(better)"} <= set(heads)
    assert widths[0] <= widths[1]
    assert max(widths[2:]) == 0
