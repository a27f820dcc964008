"""se-lab plot."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from se_lab.cli.parser import add_flags
from se_lab.cli.runs import records_of, runs_parser
from se_lab.store import guard_outputs

if TYPE_CHECKING:
    from se_lab.report import Look


def plot(argv: list[str]) -> int:
    """Draw the figures of a study."""
    from se_lab.report import COSTS, KINDS, draw_figures, save_figure

    parser = runs_parser("se-lab plot", "Draw figures of trials; by default all that are available.")
    parser.add_argument("--kind", nargs="+", choices=KINDS, help="Kinds of figures; by default all.")
    parser.add_argument("--cost", nargs="+", choices=COSTS, default=COSTS, help="Costs of the trade-off figures.")
    parser.add_argument("--contrast", nargs=2, metavar="VARIANT", help="The two variants of --kind classes.")
    parser.add_argument("-o", "--output", default="figures", help="Output folder.")
    parser.add_argument(
        "--format", nargs="+", default=["png", "svg"], choices=("png", "svg", "pdf"), help="Formats; default png svg."
    )
    add_look(parser)
    parser.add_argument("--title", type=str, help="Title to use instead of the default; an empty string for none.")
    add_flags(parser, "overwrite")
    options = parser.parse_args(argv)
    look = look_of(options)
    contrast = tuple(options.contrast) if options.contrast else None
    count, remarks = 0, []
    kinds, records = options.kind or KINDS, records_of(options)
    for name, figure in draw_figures(records, kinds, options.cost, options.metric, contrast=contrast, look=look):
        if isinstance(figure, str):
            remarks.append(f"{name} skipped: {figure}")
            continue
        files = [Path(options.output, f"{name}.{suffix}") for suffix in options.format]
        with guard_outputs(files, overwrite=options.overwrite):
            for path in save_figure(figure, Path(options.output, name), options.format):
                print(path, flush=True)
                count += 1
    for line in remarks:
        print(line, file=sys.stderr)
    return 2 if remarks and (options.kind or not count) else 0


def add_look(parser: ArgumentParser) -> None:
    """Add --width and --style."""
    from se_lab.report.figures.look import STYLES

    parser.add_argument("--style", choices=STYLES, default="page", help="Size of text and lines; by default page.")
    widths = ", ".join(f"{name} {style.width:g}" for name, style in STYLES.items())
    parser.add_argument("--width", type=float, metavar="INCHES", help=f"Width of the figures; by default {widths}.")


def look_of(options: Namespace) -> Look:
    """Return the look of figures given by the flags."""
    from se_lab.report import Look

    return Look(options.style, options.width, getattr(options, "title", None))
