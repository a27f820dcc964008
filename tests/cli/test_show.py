"""Tables of the verbs: one style, headings over every column, numbers right-aligned and whole at any width."""

from __future__ import annotations

import subprocess
import sys

import pytest

from se_lab.cli.show import show


def test_numbers_stand_right_and_what_does_not_fit_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["a1b2", "finished", "272,474", "1 min 30 s"], ["c3", "not started", "1,234,567", ""]]
    show(("trial", "status", "params", "time"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["trial", "status", "params", "time"]
    assert lines[2].index("272,474") + len("272,474") == lines[3].index("1,234,567") + len("1,234,567")
    monkeypatch.setenv("COLUMNS", "30")
    show(("trial", "status", "params", "time"), rows)
    narrow = capsys.readouterr().out
    assert "1,234,567" in narrow and "do not fit 30 characters: time." in " ".join(narrow.split())


def test_a_table_needs_neither_pandas_nor_pytorch() -> None:
    code = "import se_lab.cli.show, sys; sys.exit(any(name in sys.modules for name in ('pandas', 'torch', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
