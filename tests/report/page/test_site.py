"""A folder of reports: an index, a page a study, and the excitation figures of all variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from se_lab.report import ReportError
from se_lab.report.page import Chapter, by_data_set, write_site
from se_lab.spec import SpecError
from tests.report.page.conftest import page_data

Make = Callable[..., pd.DataFrame]
FIGURES = ("figure_6", "figure_7", "distribution")


@pytest.fixture
def excited(reduction_study: pd.DataFrame, tmp_path: Path) -> pd.DataFrame:
    """Records of which two trials have three excitation figures each, of 3 MB, and one an explorer."""
    folders = [""] * len(reduction_study)
    for place in (3, 6):
        folder = tmp_path / "store" / f"t{place}" / "excitations"
        folder.mkdir(parents=True)
        for name in FIGURES:
            (folder / f"{name}.svg").write_text("<svg>" + " " * 3_000_000 + "</svg>")
        folders[place] = str(folder.parent)
    (tmp_path / "store/t3/excitations/explorer.html").write_text("explorer")
    return reduction_study.assign(folder=folders)


def test_every_figure_of_every_variant_is_linked_from_its_study(
    excited: pd.DataFrame, browser: Any, tmp_path: Path
) -> None:
    index, page = write_site([Chapter("Ratios & more", "Why?", excited)], tmp_path / "site")
    data = page_data(page)
    assert data["left_out"] == [] and len(data["excitations"]) == 2
    assert page.stat().st_size < 6e6
    for entry in data["excitations"]:
        own = page.parent / entry["links"][0]["href"]
        assert own.read_text().count("<img") == 3 and entry["links"][0]["text"] == "All 3 figures"
    (explorer,) = [link["href"] for entry in data["excitations"] for link in entry["links"][1:]]
    assert (page.parent / explorer).read_text() == "explorer"
    browser.get(index.as_uri())
    assert "15 finished" in browser.find_element("css selector", "tbody").text
    assert "r=4: test top-1 error 7.23 (6.63–7.88) %" in browser.find_element("css selector", "tbody").text
    browser.find_element("link text", "Ratios & more").click()
    assert browser.title == "Ratios & more"


def test_a_store_of_two_data_sets_has_a_page_for_each_and_a_study_without_results_is_named(
    study: Make, tmp_path: Path
) -> None:
    variants = [({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0])]
    both = pd.concat([study(variants, **{"data.name": name}) for name in ("digits", "cifar10")], ignore_index=True)
    chapters = by_data_set(Chapter("runs", "", both))
    assert [chapter.title for chapter in chapters] == ["runs, digits", "runs, cifar10"]
    begun = pd.DataFrame({"trial_id": ["0123456789ab"], "status": ["interrupted"]})
    first, second = by_data_set(Chapter("runs", "", pd.concat([both, begun], ignore_index=True)))
    assert list(first.records["status"]).count("interrupted") == 1 and len(second.records) == 2
    waiting = Chapter("later", "", study(variants).assign(status="running"))
    index, *pages = write_site([*chapters, waiting, chapters[0]], tmp_path)
    assert [page.name for page in pages] == ["runs-digits.html", "runs-cifar10.html", "runs-digits-2.html"]
    assert "None of 2 trials has finished: 2 running" in index.read_text()
    with pytest.raises(ReportError, match="None of 1 studies has a report: None of 2 trials"):
        write_site([waiting], tmp_path / "other")


def test_a_file_of_someone_elses_stays(study: Make, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    records = study([({"insertion": "none"}, [8.0]), ({"reduction": 4}, [7.0])])
    with pytest.raises(SpecError, match=r"index\.html already exists"):
        write_site([Chapter("a", "", records)], tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine" and not (tmp_path / "a.html").exists()
