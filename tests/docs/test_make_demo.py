"""The tables of finished sweeps that texts quote."""

from __future__ import annotations

import pytest

from tests.docs.conftest import ROOT


def test_a_sweeps_table_takes_the_place_between_its_comments(tmp_path):
    from make_demo import replace_block

    text = tmp_path / "tables.md"
    around = "a\n<!-- demo:table -->\nold\n<!-- /demo:table -->\nb\n<!-- x:table -->\n{}<!-- /x:table -->\n"
    text.write_text(around.format("1\n"))
    replace_block(text, "x", "\\1 ± 2\n")
    assert text.read_text() == around.format("```text\n\\1 ± 2\n```\n")
    with pytest.raises(SystemExit, match="0 places for the table of y"):
        replace_block(text, "y", "")


def test_every_text_has_the_places_that_are_renewed():
    from make_demo import TEXTS

    for name, texts in TEXTS.items():
        assert (ROOT / "sweeps" / f"{name}.yaml").is_file()
        for text in texts:
            assert (ROOT / text).read_text().count(f"<!-- {name}:table -->\n") == 1
