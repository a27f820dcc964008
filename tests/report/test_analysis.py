"""The scripts in analysis/ run on whatever load_records gives."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import se_lab

ANALYSIS = Path(__file__).parents[2] / "analysis"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, reduction_study: pd.DataFrame, with_curves: Callable[[pd.DataFrame], pd.DataFrame]
) -> Callable[..., None]:
    records = with_curves(reduction_study)
    monkeypatch.setitem(vars(se_lab), "load_records", lambda runs: {"runs/": records}[runs])

    def script(name: str, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(ANALYSIS / name), run_name="__main__")

    return script


@pytest.mark.parametrize("script", sorted(ANALYSIS.glob("*.py")), ids=lambda script: script.stem)
def test_help_is_the_scripts_own_text_and_nothing_given_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: Path
) -> None:
    for arguments, status in (["--help"], 0), ([], 2):
        monkeypatch.setattr("sys.argv", [script.name, *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(script), run_name="__main__")
        assert left.value.code == status
    said = capsys.readouterr()
    assert script.read_text(encoding="utf-8").partition(":")[0].strip('"') in said.out and "usage" in said.err


def test_ablation_table_prints_the_table(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    run("ablation_table.py", "runs/", "markdown")
    assert "**7.23 (6.63–7.88)**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "written"),
    [
        ("tradeoff.py", [f"f_{cost}.{end}" for cost in ("macs", "params", "step_ms") for end in ("png", "svg")]),
        ("training_curves.py", ["f.png", "f.svg"]),
        ("report.py", ["f"]),
    ],
)
def test_figures_are_written_where_asked(
    run: Callable[..., None], tmp_path: Path, script: str, written: list[str]
) -> None:
    run(script, "runs/", str(tmp_path / "out" / "f"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
