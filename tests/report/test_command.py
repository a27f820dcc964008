"""The verbs table and plot over a store: what is asked for is what comes, and what cannot come is said in a line."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import se_lab.sweep.records
from se_lab.cli import main

Make = Callable[..., pd.DataFrame]
Run = Callable[..., tuple[int, str, str]]
TOP1 = "test/top1_error"


@pytest.fixture
def records(study: Make) -> pd.DataFrame:
    """Make a baseline and four variants of two backbones, three seeds each; r=4 is 1 point better beyond doubt."""
    errors = {None: [8.0, 8.4, 8.2], 4: [7.0, 7.5, 7.2], 16: [8.1, 8.5, 8.6]}
    variants = [
        ({"model.backbone": net, **({"reduction": r} if r else {"insertion": "none"})}, [e + add for e in errors[r]])
        for net, add in (("small", 0.0), ("large", -2.0))
        for r in errors
    ]
    return study(variants)


@pytest.fixture
def run(records: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(se_lab.sweep.records, "load_records", lambda runs, folder, sweep_seed: records)

    def call(*argv: str) -> tuple[int, str, str]:
        status = main(list(argv))
        return status, *capsys.readouterr()

    return call


def test_rows_columns_and_filters_are_those_asked_for(run: Run) -> None:
    asked = ["--where", "model.backbone=small", "model.se.reduction=4", "--columns", TOP1, "difference", "params"]
    status, out, _ = run("table", "runs", *asked, "--format", "markdown")
    assert status == 0
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "insertion", "test top-1 error (%)", "Δ test top-1 error (points)", "params (k)",
    ]  # fmt: skip
    assert len(lines) == 4 and "7.23 (6.63–7.88)" in lines[3]
    either = ["--where", "model.se.reduction=4", "model.se.reduction=16"]
    assert run("table", "runs", *either, "--rows", "model.se.reduction", "model.backbone")[0] == 0


def test_a_pivot_has_a_row_a_ratio_and_a_column_a_backbone(run: Run) -> None:
    status, out, notes = run("table", "runs", "--pivot", "model.se.reduction", "model.backbone", "--format", "csv")
    rows = {row["variant"]: row for row in csv.DictReader(io.StringIO(out))}
    assert status == 0 and list(rows) == ["no SE", "4", "16"]
    assert float(rows["4"]["large"]) == pytest.approx((7.0 + 7.5 + 7.2) / 3 - 2)
    assert "95 % t intervals" in notes and "95 %" not in out


def test_detect_adds_the_seeds_that_a_difference_needs(run: Run) -> None:
    status, out, _ = run("table", "runs", "--detect", "0.1", "--format", "json")
    assert status == 0
    assert {"seeds_needed"} <= {column["key"] for column in json.loads(out)["columns"]}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--columns", "parms"], "did you mean 'params'?"),
        (["--rows", "model.se.reducton"], "did you mean 'model.se.reduction'?"),
        (["--where", "model.bakbone=small"], "did you mean 'model.backbone'?"),
        (["--where", "model.se.reduction=5"], "Known: –, 4, 16"),
        (["--where", "model.se.reduction"], "it must be KEY=VALUE"),
        (["--metric", "test/top1_eror"], "did you mean 'test/top1_error'?"),
        (["--paper", "table_10_reductoin"], "did you mean 'table_10_reduction'?"),
        (["--pivot", "model.se.reduction", "model.bakbone"], "did you mean 'model.backbone'?"),
        (["--pivot", "model.se.reduction", "model.backbone", "--detect", "1"], "--detect cannot be used with --pivot"),
        (["--detect", "-1"], "must be above 0"),
        (["--costs_only"], "give either RUNS, or"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run: Run, argv: list[str], said: str) -> None:
    status, out, err = run("table", "runs", *argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("verb", ["table", "plot", "report"])
def test_two_data_sets_stand_beside_each_other_in_every_verb(
    records: pd.DataFrame, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    sets = records["model.backbone"].map({"small": "digits", "large": "mnist"})
    records = records.assign(data_digest=sets, **{"data.name": sets, "model.backbone": "small"})
    monkeypatch.setattr(se_lab.sweep.records, "load_records", lambda runs, folder, sweep_seed: records)
    assert run(verb, "runs", "-o", str(tmp_path / f"{verb}.html"))[0] == 0
    files = [path for path in tmp_path.rglob("*.*") if path.suffix in (".html", ".svg") and path.is_file()]
    assert files and all("mnist" in path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda r: r.assign(data_digest=["a", "b"] * 9),
            "mix 2 versions of the data of digits, which are not comparable: a (9 trials)",
        ),
        (lambda r: r.assign(**{TOP1: float("nan")}), "No finished trial has a value of 'test/top1_error'"),
        (lambda r: r.assign(status="running"), "None of 18 trials has finished: 18 running"),
        (lambda r: r.head(0), "There are no trials"),
    ],
)
@pytest.mark.parametrize("verb", ["table", "plot", "report"])
def test_records_of_which_no_table_can_be_made_are_refused_by_every_verb(
    records: pd.DataFrame,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: str,
    spoil: Callable,
    said: str,
) -> None:
    monkeypatch.setattr(se_lab.sweep.records, "load_records", lambda runs, folder, sweep_seed: spoil(records))
    status, out, err = run(verb, "runs", "-o", str(tmp_path / "out"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err and not (tmp_path / "out").exists()


def test_plot_draws_what_it_can_and_says_what_it_cannot(run: Run, tmp_path: Path) -> None:
    status, out, err = run("plot", "runs", "-o", str(tmp_path), "--format", "svg")
    names = ["tradeoff_params", "tradeoff_macs", "tradeoff_step_ms", "differences", "reduction", "heatmap", "parallel"]
    assert status == 0 and [Path(line).stem for line in out.split()] == names
    assert err.startswith("curves skipped: None of 18 finished trials has a metrics.csv")
    assert "classes skipped: No trial of" in err
    only = tmp_path / "only"
    assert run("plot", "runs", "-o", str(only), "--kind", "tradeoff", "--cost", "macs", "--format", "pdf")[0] == 0
    assert [path.name for path in only.iterdir()] == ["tradeoff_macs.pdf"]
    assert run("plot", "runs", "-o", str(only), "--kind", "curves")[0] == 2


def test_plot_takes_width_style_and_title(run: Run, tmp_path: Path) -> None:
    flags = ["--kind", "tradeoff", "--cost", "macs", "--format", "svg", "--width", "3.3", "--style", "paper"]
    assert run("plot", "runs", "-o", str(tmp_path), *flags, "--title", "My US$ title")[0] == 0
    drawn = (tmp_path / "tradeoff_macs.svg").read_text(encoding="utf-8")
    assert f'width="{3.3 * 72:g}pt"' in drawn and "<title>My US$ title</title>" in drawn
    assert run("plot", "runs", "-o", str(tmp_path), *flags, "--title", "~/x")[0] == 0  # a title is text, and no path
    assert "<title>~/x</title>" in (tmp_path / "tradeoff_macs.svg").read_text(encoding="utf-8")
    status, _, err = run("plot", "runs", "-o", str(tmp_path), "--width", "0.1")
    assert status == 2 and "The width is 0.1 inches; it must be from 2 to 60" in err


def test_report_into_a_folder_has_an_index(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("report", "runs", "-o", f"{tmp_path}/site/", "--where", "backbone=small")
    assert status == 0
    assert out.splitlines() == [f"wrote {tmp_path}/site/{name}.html" for name in ("index", "Trials-in-runs")]
    assert "9 finished" in (tmp_path / "site/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["table", "store", "-o", "OUT/table.txt"], "table.txt"),
        (["plot", "store", "--kind", "tradeoff", "-o", "OUT"], "tradeoff_params.png"),
        (["report", "store", "-o", "OUT/page.html"], "page.html"),
        (["report", "store", "-o", "OUT"], "index.html"),
    ],
)
def test_an_output_that_does_not_fit_on_the_disk_leaves_the_one_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], name: str
) -> None:
    argv = [token.replace("OUT", str(tmp_path / "out")) for token in argv]
    (tmp_path / "out").mkdir()
    assert run(*argv)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert name in before

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, said = run(*argv, "--metric", "test/top5_error")
    assert status == 1 and "No space left" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
