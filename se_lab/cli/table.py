"""se-lab table."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from se_lab.cli.parser import add_flags
from se_lab.cli.runs import records_of, runs_parser
from se_lab.spec import SpecError
from se_lab.spec.parser import Parser
from se_lab.store import guard_outputs, write_text_whole

_ONE_ROW_A_VARIANT = ("rows", "columns", "detect", "paper", "model", "margin", "contrast", "spread")


def _parser() -> Parser:
    from se_lab.report.columns import COLUMNS
    from se_lab.report.joint import MODELS
    from se_lab.report.render import FORMATS
    from se_lab.report.tables import SPREADS

    parser = runs_parser("se-lab table", "Print the ablation table of trials.", runs="*")
    parser.add_argument("--rows", nargs="+", metavar="KEY", help="Spec keys that distinguish rows.")
    parser.add_argument("--columns", nargs="+", metavar="KEY", help=f"Columns: {', '.join(COLUMNS)}, or metrics.")
    parser.add_argument("--pivot", nargs=2, metavar=("ROW", "COLUMN"), help="Print the metric by two spec keys.")
    parser.add_argument(
        "--detect", type=float, metavar="POINTS", help="Add the seeds needed to detect this difference (power 0.8)."
    )
    parser.add_argument("--model", choices=MODELS, help="Model of the comparison with the baseline; default joint.")
    parser.add_argument("--margin", type=float, metavar="POINTS", help="Smaller differences count as equivalent.")
    parser.add_argument(
        "--contrast", nargs=2, action="append", metavar="VARIANT", help="Compare two variants, such as r=8 r=16."
    )
    parser.add_argument("--spread", choices=SPREADS, help="Spread of means: 95 %% interval, or std over seeds.")
    parser.add_argument(
        "--paper",
        metavar="TABLE",
        help="Add published results: a table of the SE paper (table_10_reduction, or 10), or units.",
    )
    parser.add_argument("--variance", action="store_true", help="Print the variance by source: order, weights, split …")
    parser.add_argument(
        "--costs_only", action="store_true", help="Only count the nets of the paper's TABLE, or of all tables."
    )
    parser.add_argument("--format", default="terminal", choices=FORMATS, help="Format of the table.")
    parser.add_argument("-o", "--output", help="Output file; by default the terminal.")
    parser.add_argument(
        "--width",
        help="Width of the table: characters in a terminal; in LaTeX single (3.15 inches), double (6.5) or inches.",
    )
    parser.add_argument("--caption", type=str, default="", help="Caption in LaTeX; by default the table's title.")
    parser.add_argument("--label", type=str, default="", help="Label in LaTeX, such as tab:reduction.")
    parser.add_argument("--wide", action="store_true", help="In LaTeX, use both columns of the page.")
    add_flags(parser, "overwrite")
    return parser


def table(argv: list[str]) -> int:
    """Print an ablation table."""
    from se_lab.report.latex import Setting

    options = _parser().parse_args(argv)
    _check_layout(options)
    from se_lab.report import (
        Evidence,
        ablation_table,
        count_paper_costs,
        paper_cost_table,
        pivot_table,
        variance_table,
    )

    if options.costs_only == bool(options.runs):
        raise SpecError("give either RUNS, or --paper TABLE --costs_only")
    if options.costs_only:
        paper = options.paper or "all"
        table = paper_cost_table(count_paper_costs(paper, lambda text: print(text, file=sys.stderr, flush=True)))
    elif options.pivot or options.variance:
        if flags := [name for name in _ONE_ROW_A_VARIANT if getattr(options, name) is not None]:
            reason = "has one metric and two keys" if options.pivot else "has a row for each source of variance"
            raise SpecError(
                f"--{flags[0]} cannot be used with --{'pivot' if options.pivot else 'variance'}, which {reason}"
            )
        if options.pivot and options.variance:
            raise SpecError("--pivot cannot be used with --variance")
        if options.variance:
            table = variance_table(records_of(options), options.metric)
        else:
            table = pivot_table(records_of(options), *options.pivot, metric=options.metric)
    else:
        table = ablation_table(
            records_of(options),
            metric=options.metric,
            columns=options.columns,
            rows=options.rows,
            paper=options.paper,
            evidence=Evidence(
                model=options.model or "joint",
                margin=options.margin,
                detect=options.detect,
                contrasts=options.contrast or (),
                spread=options.spread or "interval",
            ),
        )
    setting = Setting(options.width or "", options.caption, options.label, options.wide)
    width = int(options.width) if options.width and options.format == "terminal" else None
    text = table.render(options.format, width=width, setting=setting)
    if options.format == "csv":
        print(*table.notes, sep="\n", file=sys.stderr)
    if options.output:
        with guard_outputs([options.output], overwrite=options.overwrite):
            write_text_whole(Path(options.output), text)
        print(f"wrote {options.output}")
    else:
        print(text, end="")
    return 0


def _check_layout(options: Namespace) -> None:
    """Raise SpecError for layout flags that the format does not support."""
    flags = {"--caption": options.caption, "--label": options.label, "--wide": options.wide}
    if options.format != "latex" and (names := [name for name, value in flags.items() if value]):
        raise SpecError(f"{names[0]} is for --format latex, not {options.format}")
    if options.width and options.format not in ("terminal", "latex"):
        raise SpecError(f"--width is for the formats terminal and latex, not {options.format}")
    if options.width and options.format == "terminal" and not (options.width.isdecimal() and int(options.width) >= 20):
        raise SpecError(f"--width is {options.width!r}; for a terminal it must be at least 20 characters")
