"""The Python reference: every public name stands in it, and its docstring shows a use that works."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Mapping

import pytest
import torch

import se_lab
from tests.docs.conftest import DOCS
from tests.trained.in_process import outputs_of_timm

API = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
NAMES = {"torch": torch} | {name: getattr(se_lab, name) for name in se_lab.__all__}
LISTED = re.findall(r"^::: ([\w.]+)", API, re.MULTILINE)


def test_every_public_name_stands_in_the_reference():
    assert {name.rpartition(".")[2] for name in LISTED} >= set(se_lab.__all__)


@pytest.mark.parametrize("name", [name for name in se_lab.__all__ if not isinstance(getattr(se_lab, name), Mapping)])
def test_a_public_name_shows_its_use(name, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr("se_lab.trained.export._plain_timm", outputs_of_timm)
    found = getattr(se_lab, name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", dict(NAMES), name, None, None)
    assert examples.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples).failed == 0
