"""se-lab excitations."""

from __future__ import annotations

import sys

from se_lab.cli.parser import add_flags
from se_lab.cli.plot import add_look, look_of
from se_lab.cli.runs import add_where, records_of
from se_lab.spec import SpecError
from se_lab.spec.parser import Parser


def _parser() -> Parser:
    parser = Parser(
        prog="se-lab excitations",
        description="Inspect the SE units of trained nets: statistics of gates, the SE paper's Figures 6 and 7, "
        "and an explorer page. An interrupted run is resumed.",
    )
    parser.add_argument("nets", nargs="*", metavar="CHECKPOINT|timm:NAME", help="Checkpoints, or folders of trials.")
    parser.add_argument("--sweep", nargs="+", metavar="RUNS", help="Inspect all trials of sweep specs or stores.")
    add_where(parser)
    add_flags(parser, "store", "sweep_seed")
    parser.add_argument("--data", help="digits or folder:PATH; by default the test images of the trial.")
    parser.add_argument(
        "--classes", default="", help="Classes of the figures, separated by commas: names, WordNet ids, numbers."
    )
    parser.add_argument("--images_per_class", type=int, help="Number of random images per class; by default all.")
    parser.add_argument(
        "--redundancy", action="store_true", help="Measure the error with each unit's gate at its mean."
    )
    parser.add_argument(
        "--thumbnails", action="store_true", help="Show the images that excite a channel most and least."
    )
    parser.add_argument("-o", "--output", help="Output folder; by default excitations/ in a trial's folder.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images per batch.")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="Device of the net.")
    parser.add_argument("--data_workers", type=int, default=2, help="Number of processes that read files.")
    add_flags(parser, "data_root")
    add_look(parser)
    parser.add_argument("--wandb", metavar="PROJECT", help="Add histograms and figures to the trials' W&B runs.")
    add_flags(parser, "overwrite", "trust_plugins")
    return parser


def excitations(argv: list[str]) -> int:
    """Write statistics, figures and explorer pages of trained nets."""
    options = _parser().parse_args(argv)
    if bool(options.nets) == bool(options.sweep):
        raise SpecError("give either checkpoints or timm:NAME, or --sweep RUNS")
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
