"""Numbers and lists of names in messages."""

from __future__ import annotations

import pytest

from se_lab.spec.text import counted, listed


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 classes"), (1, "1 class"), (2, "2 classes"), (1234567, "1,234,567 classes")]
)
def test_a_number_agrees_with_its_noun(number, text):
    assert counted(number, "class", "classes") == text


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a; b"), (["a", "b", "c"], "a; b and 1 more"), (range(5), "0; 1 and 3 more")],
)
def test_a_list_names_the_first_and_counts_the_others(names, text):
    assert listed(names, 2, "; ") == text
