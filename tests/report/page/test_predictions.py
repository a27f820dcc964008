"""Classes and images of a page: errors by class, confusion, and the images that set two variants apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from se_lab.report import write_report
from se_lab.report.page.images import thumbnail
from se_lab.report.page.predictions import class_data
from se_lab.report.page.trials import folders
from se_lab.report.variants import group_variants
from se_lab.store import RunRecord
from tests.report.page.conftest import page_data

Make = Callable[..., pd.DataFrame]


def two_variants(study: Make, write_predictions: Callable[..., str]) -> pd.DataFrame:
    """No SE misses the images 3 and 13 in both seeds; r=4 misses image 5 in one of its two. Labels are n mod 10."""
    records = study([({"insertion": "none"}, [10.0, 10.0]), ({"reduction": 4}, [5.0, 0.0])])
    right = np.ones((4, 20), dtype=bool)
    right[:2, [3, 13]] = False
    right[2, 5] = False
    return records.assign(folder=[write_predictions(f"t{i}", row, shuffle=i) for i, row in enumerate(right)])


def test_errors_confusion_and_images_are_those_of_the_predictions(study: Make, write_predictions: Callable) -> None:
    groups = group_variants(two_variants(study, write_predictions))
    data = class_data(groups, folders(groups), [None] * 4)
    assert data is not None
    plain, r4 = data["variants"]
    assert plain["errors"] == [0, 0, 0, 100, 0, 0, 0, 0, 0, 0]
    assert r4["errors"] == [0, 0, 0, 0, 0, 25, 0, 0, 0, 0]  # one of two images in two trials
    assert plain["confusion"][3][4] == 4 and plain["confusion"][3][3] == 0 and plain["confusion"][5][5] == 4
    assert data["images"]["keys"] == ["image0003", "image0005", "image0013"]
    assert (plain["right"], r4["right"]) == ([0, 2, 0], [2, 1, 2])
    assert data["images"]["total"] == 20


def test_the_page_lists_the_images_on_which_two_variants_disagree(
    study: Make, write_predictions: Callable, show: Callable[..., Any], tmp_path: Path
) -> None:
    browser = show(write_report(two_variants(study, write_predictions), tmp_path / "report.html"))
    rows = [row.text for row in browser.find_elements("css selector", "#images tbody tr")]
    assert rows == ["image0003 3 2 of 2 0 of 2, 4", "image0013 3 2 of 2 0 of 2, 4", "image0005 5 1 of 2, 6 2 of 2"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_the_errors_by_class_are_those_of_the_variant_that_is_chosen(
    study: Make, write_predictions: Callable, show: Callable[..., Any], tmp_path: Path
) -> None:
    missed = np.zeros((6, 20), dtype=bool)
    missed[2:4, 5] = missed[4:, 7] = True  # r=2 misses an image of class 5, r=4 one of class 7, in both seeds
    records = study([(se, [0.0, 0.0]) for se in ({"insertion": "none"}, {"reduction": 2}, {"reduction": 4})])
    records = records.assign(folder=[write_predictions(f"t{i}", ~row, shuffle=i) for i, row in enumerate(missed)])
    browser = show(write_report(records, tmp_path / "report.html"))

    def seen() -> tuple[str, list[float]]:
        browser.execute_script("redrawAll(true)")
        note = browser.find_element("css selector", "#class_differences figcaption").text.split(":")[0]
        return note, browser.execute_script(
            "return at('class_differences-plot').data.find(t => t.mode === 'markers').x"
        )

    box = browser.find_element("css selector", "#class_differences select")
    options = [option.text for option in box.find_elements("css selector", "option")]
    for name, number in (("r=2", 5), ("r=4", 7)):
        box.find_elements("css selector", "option")[options.index(name)].click()
        assert seen() == (f"{name} − no SE", [50 if c == number else 0 for c in range(10)])
    assert "errors=" in browser.current_url and "cost=" not in browser.current_url


def test_trials_without_predictions_or_of_other_images_are_left_out(
    study: Make, write_predictions: Callable, tmp_path: Path
) -> None:
    records = study([({"insertion": "none"}, [10.0]), ({"reduction": 4}, [5.0])])
    assert page_data(write_report(records, tmp_path / "report.html"))["classes"] is None
    names = [write_predictions("a", np.ones(20, dtype=bool)), write_predictions("b", np.ones(20, dtype=bool), first=5)]
    data = page_data(write_report(records.assign(folder=names), tmp_path / "report.html"))
    assert [one["variant"] for one in data["classes"]["variants"]] == [0]


def test_thumbnails_come_from_the_digits_and_from_folders_and_from_nowhere_else(tmp_path: Path) -> None:
    def record(name: str) -> RunRecord:
        spec, execution = {"data.name": name}, {"data_root": str(tmp_path)}
        return RunRecord(trial_id="t", status="finished", spec=spec, execution=execution)

    (tmp_path / "set/val/cat").mkdir(parents=True)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "set/val/cat/a.png")
    (tmp_path / "set/val/cat/b.png").write_text("no image")
    assert str(thumbnail(record("folder:set"), "cat/a.png")).startswith("data:image/jpeg;base64,")
    assert str(thumbnail(record("digits"), "3")).startswith("data:image/png;base64,")
    assert thumbnail(record("folder:set"), "cat/b.png") is None
    assert thumbnail(record("folder:set"), "cat/c.png") is None
    assert thumbnail(record("imagenet"), "x") is None
