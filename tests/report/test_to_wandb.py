"""The report on W&B: what a run written offline holds is the page, and the table's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from se_lab.report import ReportError, send_report, write_report
from se_lab.report.to_wandb import wandb_run


@pytest.fixture
def offline(tmp_path: Path, wandb_offline: None) -> Path:
    """Let W&B write into a folder of the test's own, as it does when nothing is said."""
    return tmp_path


def test_a_run_holds_the_page_as_it_is_and_the_table_in_numbers(reduction_study: pd.DataFrame, offline: Path) -> None:
    page = write_report(reduction_study, offline / "report.html", title="reduction")
    place = Path(send_report(reduction_study, page, "lab", title="reduction"))
    assert place.parent == offline / "wandb" and place.name.startswith("offline-run")
    (kept,) = place.glob("files/media/html/report/*.html")
    assert kept.read_bytes() == page.read_bytes()
    (file,) = place.glob("files/media/table/report/*.json")
    table = json.loads(file.read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert rows["r=4"]["test top-1 error (%)"] == pytest.approx((7.0 + 7.5 + 7.2) / 3)
    # logit(0.07233) ± t(2) 4.3027 · sd 0.0025166 / √3 / (0.07233 · 0.92767)
    ends = [rows["r=4"][f"test top-1 error (%), {end}"] for end in ("from", "to")]
    assert ends == pytest.approx([6.6325, 7.8839], abs=1e-4)
    assert rows["r=4"]["Δ test top-1 error (points)"] == pytest.approx((7.0 + 7.5 + 7.2 - 8.0 - 8.4 - 8.2) / 3)
    assert rows["no SE"]["params (k)"] == pytest.approx(272.474)
    assert math.isnan(rows["no SE"]["Δ test top-1 error (points)"])


def test_of_trials_that_all_failed_the_page_alone_is_sent(reduction_study: pd.DataFrame, offline: Path) -> None:
    records = reduction_study.assign(status="failed", error="boom")
    page = write_report(records, offline / "report.html")
    place = Path(send_report(records, page, "lab", title="failed"))
    assert [path.parent.parent.name for path in place.glob("files/media/*/*/*")] == ["html"]


def test_what_wandb_refuses_is_said(offline: Path) -> None:
    with pytest.raises(ReportError, match="W&B reported an error: Invalid project"), wandb_run("no/where/", offline):
        raise AssertionError
