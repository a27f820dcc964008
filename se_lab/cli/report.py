"""se-lab report."""

from __future__ import annotations

from pathlib import Path

from se_lab.cli.parser import add_overwrite
from se_lab.cli.runs import records_of, runs_parser, where_of
from se_lab.store import replacing


def report(argv: list[str]) -> int:
    """Write the page of a study."""
    parser = runs_parser("se-lab report", "One page of a study that needs nothing else: table, figures, every trial.")
    parser.add_argument("-o", "--output", default="report.html", help="The page to write.")
    add_overwrite(parser)
    parser.add_argument("--wandb", metavar="PROJECT", help="Put page and table on W&B too, offline by default.")
    options = parser.parse_args(argv)
    from se_lab.report import send_report, write_report
    from se_lab.sweep.grammar import read_sweep

    records, where = records_of(options), where_of(options.where)
    specs = [run.removeprefix("confirm:") for run in options.runs if Path(run).suffix in (".yaml", ".yml")]
    sweeps = [read_sweep(spec) for spec in specs]
    title = ", ".join(sweep.name for sweep in sweeps) or f"Trials in {', '.join(options.runs)}"
    question = [sweep.description for sweep in sweeps if sweep.description]
    with replacing([options.output], overwrite=options.overwrite):
        page = write_report(records, options.output, title=title, question=question, metric=options.metric, where=where)
    print(page)
    if options.wandb:
        print(send_report(records, page, options.wandb, title=title, metric=options.metric, where=where))
    return 0
