"""se-lab excitations."""

from __future__ import annotations

import sys

from se_lab.cli.parser import add_data_root, add_overwrite, add_trust
from se_lab.cli.plot import add_look, look_of
from se_lab.cli.runs import add_store, add_where, records_of
from se_lab.spec import SpecError
from se_lab.spec.parser import Parser


def _parser() -> Parser:
    parser = Parser(
        prog="se-lab excitations",
        description="What the SE units of trained nets do: statistics of their gates, the SE paper's Figures 6 and 7, "
        "and a page to explore them. An interrupted run is resumed.",
    )
    parser.add_argument("nets", nargs="*", metavar="CHECKPOINT|timm:NAME", help="Checkpoints, or folders of trials.")
    parser.add_argument("--sweep", nargs="+", metavar="RUNS", help="Every trial of sweep specs or stores instead.")
    add_where(parser)
    add_store(parser)
    parser.add_argument("--data", help="digits or folder:PATH; by default what a trial was tested with.")
    parser.add_argument(
        "--classes", default="", help="For the figures, separated by commas: names, WordNet ids, numbers."
    )
    parser.add_argument("--images_per_class", type=int, help="As many random images of each class; by default all.")
    parser.add_argument("--redundancy", action="store_true", help="The error with each unit held at its mean as well.")
    parser.add_argument(
        "--thumbnails", action="store_true", help="Show the images that excite a channel most and least."
    )
    parser.add_argument("-o", "--output", help="The folder to write into; by default excitations/ in a trial's folder.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images at a time.")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="Where the net runs.")
    parser.add_argument("--data_workers", type=int, default=2, help="Processes that read files.")
    add_data_root(parser)
    add_look(parser)
    parser.add_argument("--wandb", metavar="PROJECT", help="Give the trials' W&B runs histograms and figures.")
    add_overwrite(parser)
    add_trust(parser)
    return parser


def excitations(argv: list[str]) -> int:
    """Write statistics, figures and the page of trained nets."""
    options = _parser().parse_args(argv)
    if bool(options.nets) == bool(options.sweep):
        raise SpecError("se-lab excitations takes checkpoints or timm:NAME, or else --sweep RUNS")
    from se_lab.excitations.collect import CaptureOptions
    from se_lab.excitations.inspection import Inspection, inspect_nets, inspect_sweep
    from se_lab.spec import ExecSpec

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    capture = CaptureOptions(
        options.images_per_class,
        options.device,
        options.thumbnails,
        options.redundancy,
        trust_plugins=options.trust_plugins,
        say=say,
    )
    request = Inspection(
        data=options.data,
        classes=[name for name in options.classes.split(",") if name.strip()],
        output=options.output,
        overwrite=options.overwrite,
        batch_size=options.batch_size,
        root=options.data_root or ExecSpec().data_root,
        workers=options.data_workers,
        wandb=options.wandb,
        look=look_of(options),
        capture=capture,
    )
    if options.sweep:
        options.runs = options.sweep
        paths = inspect_sweep(records_of(options), request)
    else:
        paths = inspect_nets(options.nets, request)
    for path in paths:
        print(path)
    return 0
