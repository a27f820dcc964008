"""se-lab report."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from se_lab.cli.parser import add_flags
from se_lab.cli.runs import records_of, refuse_mixed, runs_parser, where_of
from se_lab.spec import SpecError, find_sweep
from se_lab.store import guard_outputs

if TYPE_CHECKING:
    from se_lab.report.page import Chapter


def report(argv: list[str]) -> int:
    """Write the page of a study, or a folder of pages."""
    parser = runs_parser("se-lab report", "Write a self-contained page of a study with table, figures and all trials.")
    parser.add_argument(
        "-o",
        "--output",
        default="report.html",
        help="Output file; or a folder, such as reports/, for an index and a page for each of RUNS.",
    )
    add_flags(parser, "overwrite")
    parser.add_argument("--wandb", metavar="PROJECT", help="Also log page and table to W&B, offline by default.")
    options = parser.parse_args(argv)
    from se_lab.report import send_report, write_report

    if options.output.endswith("/") or Path(options.output).is_dir():
        if options.wandb:
            raise SpecError(
                f"--wandb needs a single page, not the folder {options.output}; use a file name, such as report.html"
            )
        return _write_folder(options)
    records = records_of(options)
    title, question = _about(options.runs)
    with guard_outputs([options.output], overwrite=options.overwrite):
        page = write_report(records, options.output, title=title, question=question, metric=options.metric)
    print(f"wrote {page}")
    if options.wandb:
        print(send_report(records, page, options.wandb, title=title, metric=options.metric))
    return 0


def _write_folder(options: Namespace) -> int:
    from se_lab.report.page import by_data_set, write_site

    chapters = [part for run in options.runs for part in by_data_set(_chapter(run, options))]
    pages = write_site(
        chapters, options.output, metric=options.metric, where=where_of(options.where), overwrite=options.overwrite
    )
    for page in pages:
        print(f"wrote {page}")
    return 0


def _chapter(run: str, options: Namespace) -> Chapter:
    from se_lab.report import ReportError, filter_records
    from se_lab.report.page import Chapter

    title, question = _about([run])
    records = records_of(Namespace(**{**vars(options), "runs": [run], "where": [], "strict": False}))
    if options.strict:
        with contextlib.suppress(ReportError):
            refuse_mixed(filter_records(records, where_of(options.where)))
    return Chapter(title, "\n".join(question), records)


def _about(runs: list[str]) -> tuple[str, list[str]]:
    """Return the title of a page of runs, and the descriptions of their sweeps."""
    from se_lab.sweep.grammar import read_sweep

    paths = [find_sweep(run.removeprefix("confirm:")) for run in runs]
    specs = [str(path) for path in paths if path.suffix in (".yaml", ".yml")]
    sweeps = [read_sweep(spec) for spec in specs]
    title = ", ".join(sweep.name for sweep in sweeps) or f"Trials in {', '.join(Path(run).name or run for run in runs)}"
    return title, [sweep.description for sweep in sweeps if sweep.description]
