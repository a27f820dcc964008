"""se-lab plot."""

from __future__ import annotations

import sys
from pathlib import Path

from se_lab.cli.parser import add_overwrite
from se_lab.cli.runs import records_of, runs_parser, where_of
from se_lab.store import replacing


def plot(argv: list[str]) -> int:
    """Draw the figures of a study."""
    from se_lab.report.figures.gallery import COSTS, KINDS

    parser = runs_parser("se-lab plot", "Figures of trials that have run: by default every one that they can give.")
    parser.add_argument("--kind", nargs="+", choices=KINDS, help="Only these.")
    parser.add_argument("--cost", nargs="+", choices=COSTS, default=COSTS, help="What a trade-off is against.")
    parser.add_argument("-o", "--output", default="figures", help="The folder to write into.")
    parser.add_argument("--formats", nargs="+", default=["png", "svg"], choices=("png", "svg", "pdf"), help="Of files.")
    add_overwrite(parser)
    options = parser.parse_args(argv)
    from se_lab.report import draw_figures, save_figure

    where, written, left_out = where_of(options.where), 0, []
    for name, figure in draw_figures(
        records_of(options), options.kind or KINDS, options.cost, options.metric, where=where
    ):
        if isinstance(figure, str):
            left_out.append(f"{name} left out: {figure}")
            continue
        files = [Path(options.output, f"{name}.{suffix}") for suffix in options.formats]
        with replacing(files, overwrite=options.overwrite):
            for path in save_figure(figure, Path(options.output, name), options.formats):
                print(path, flush=True)
                written += 1
    for line in left_out:
        print(line, file=sys.stderr)
    return 2 if left_out and (options.kind or not written) else 0
