"""A table on a terminal of 80 columns: numbers are whole, and the columns that do not fit are named."""

from __future__ import annotations

import pandas as pd
import pytest

from se_lab.report import Table, ablation_table
from se_lab.report.grid import Grid
from se_lab.report.terminal import terminal_text


@pytest.fixture
def table(reduction_study: pd.DataFrame) -> Table:
    return ablation_table(reduction_study.assign(params=271_450_000, macs=2_519_000_000))


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_no_line_is_wider_and_no_number_is_cut(table: Table, width: int) -> None:
    text = table.render("terminal", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "7.23 (6.63–7.88)*" in text and "…" not in text
    shown = {heading: "params" in heading and "271.450" in text for heading in ("params (M)",)}
    named = " ".join(text.split("do not fit", 1)[-1].split()) if "do not fit" in text else ""
    assert shown["params (M)"] != ("params (M)" in named)


def test_a_pipe_has_every_column_and_the_environment_may_set_a_width(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "Not shown" not in table.render("terminal")
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, table.render("terminal").splitlines())) <= 60


def test_long_names_wrap_and_keep_their_end() -> None:
    net = "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384"
    grid = Grid(["net", "error"], [[net, "resnet50"], ["12.34 ± 0.56", "1.00 ± 0.20"]], [True, False])
    text = terminal_text(grid, 40)
    first = "".join(line[:26].strip() for line in text.splitlines()[2:5])
    assert first == net and "12.34 ± 0.56" in text
