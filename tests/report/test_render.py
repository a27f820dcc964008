"""One table, six formats: what a reader or a program finds in each."""

from __future__ import annotations

import html.parser
import io
import json
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from se_lab.report import Table, ablation_table

Make = Callable[..., pd.DataFrame]
TOP1 = "test/top1_error"


@pytest.fixture
def table(reduction_study: pd.DataFrame) -> Table:
    return ablation_table(reduction_study)


def test_markdown_has_a_row_a_variant_bold_best_and_notes(table: Table) -> None:
    lines = table.render("markdown").splitlines()
    assert lines[0] == "**cifar_resnet20 on digits, 20 epochs, 3 seeds**"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0][:4] == ["reduction", "seeds", "test top-1 error (%)", "Δ test top-1 error (points)"]
    # By hand: 8.0, 8.4, 8.2 are logit(0.082) ± 4.303 · 0.002/√3/(0.082 · 0.918).
    # r=4 differs by −1.0, −0.9, −1.0: −0.967 ± 3.02 · √(2 · 0.0277/3).
    assert rows[2][:4] == ["no SE", "3", "8.20 (7.72–8.71)", ""]
    assert rows[4][2:4] == ["**7.23 (6.63–7.88)**", "**−0.97 ± 0.41**"]
    assert len({len(row) for row in rows}) == 1
    assert any(line.startswith("- Means are given with 95 % t intervals over seeds") for line in lines)


def test_csv_holds_the_data_in_full_precision(table: Table) -> None:
    read = pd.read_csv(io.StringIO(table.render("csv")))
    np.testing.assert_array_equal(read[TOP1], table.data[TOP1])
    assert list(read["variant"]) == ["no SE", "r=2", "r=4", "r=8", "r=16"]
    assert read["params"].dtype.kind == "i"


def test_json_has_nulls_for_what_is_missing_and_the_notes(table: Table) -> None:
    read = json.loads(table.render("json"))
    assert [row["variant"] for row in read["rows"]] == ["no SE", "r=2", "r=4", "r=8", "r=16"]
    assert read["rows"][0][f"{TOP1}:difference"] is None
    assert read["rows"][1]["model.se.reduction"] == 2
    assert read["notes"] == list(table.notes)
    assert set(read["rows"][0]) >= {column["key"] for column in read["columns"]}


def test_html_escapes_what_comes_from_data(study: Make) -> None:
    evil = '<script>alert("x")</script>'
    table = ablation_table(study([({"model.backbone": evil}, [7.0]), ({"model.backbone": "b & c"}, [6.0])]))
    tags: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Parser().feed(table.render("html"))
    assert "script" not in tags
    assert tags.count("tr") == 3
    assert "b &amp; c" in table.render("html")


def test_names_from_data_cannot_break_markdown_or_latex(study: Make) -> None:
    table = ablation_table(study([({"model.backbone": "a|b_c"}, [7.0]), ({"model.backbone": "50%"}, [6.0])]))
    assert r"| a\|b_c" in table.render("markdown")
    assert r"a\textbar{}b\_c" in table.render("latex")
    assert r"50\%" in table.render("latex")


def test_the_terminals_table_is_plain_text_in_a_pipe_and_stars_the_best(table: Table) -> None:
    text = table.render("terminal")
    assert "\x1b" not in text
    r4 = next(line for line in text.splitlines() if line.strip().startswith("4 "))
    assert "7.23 (6.63–7.88)*" in r4
    assert "−0.97 ± 0.41*" in r4
    assert "given with 95 % t intervals over seeds" in text


def test_in_a_terminal_the_best_is_bold(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    assert "\x1b[1m7.23 (6.63–7.88)*" in "".join(re.split(r"(?<=\x1b\[1m) +", table.render("terminal")))


def test_groups_are_set_apart(study: Make) -> None:
    records = study([({"model.backbone": name, "reduction": r}, [7.0]) for name in "ab" for r in (4, 8)])
    table = ablation_table(records)
    assert table.render("latex").count(r"\midrule") == 2
    lines = table.render("terminal").splitlines()
    last_a, first_b = (i for i, line in enumerate(lines) if line.split()[:2] in (["a", "8"], ["b", "4"]))
    assert first_b == last_a + 2


def test_an_unknown_format_is_refused_with_the_nearest(table: Table) -> None:
    with pytest.raises(ValueError, match="did you mean 'markdown'"):
        table.render("markdwn")


def test_counts_take_the_prefix_that_keeps_them_apart(study: Make) -> None:
    records = study(
        [
            (
                {"reduction": 4},
                [7.0],
            ),
            ({"reduction": 8}, [7.0]),
        ]
    )
    records["params"] = [28_071_976, 26_812_392]  # SE-ResNet-50 at r=16 and r=32, without biases
    assert "28.072" in ablation_table(records).render("markdown")
    records["params"] = [980, 912]
    assert "| 980 |" in re.sub(" +", " ", ablation_table(records).render("markdown"))
