"""se-lab profile and models."""

from __future__ import annotations

from se_lab.cli.parser import Parser
from se_lab.spec import SpecError


def profile(argv: list[str]) -> int:
    """Print what nets cost."""
    parser = Parser(
        prog="se-lab profile",
        description="Parameters, MACs and element operations of a net (give the flags of train), or of a sweep's nets.",
    )
    parser.add_argument("--sweep", metavar="SPEC", help="A W&B sweep spec: a row for each of its trials.")
    parser.add_argument(
        "--against-paper",
        nargs="?",
        const="all",
        metavar="TABLE",
        help="Every cost that the SE paper prints, or one of its tables, beside ours.",
    )
    parser.add_argument("--image-size", type=int, default=224, help="Side of the image in pixels.")
    parser.add_argument("--classes", type=int, default=1000, help="Outputs of the classifier.")
    parser.add_argument("--measure", action="store_true", help="Measure latency and peak memory on this device, too.")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="How it is written.")
    options, flags = parser.parse_known_args(argv)
    from se_lab.flags import parse_trial, trial_parser

    try:
        spec, execution = parse_trial(flags)
    except SpecError as error:
        told = str(error).partition("; did you mean")[0]
        if "unrecognized arguments" not in told:
            raise
        parser.error(told, trial_parser()._option_string_actions)
    from se_lab.report import costs

    if options.against_paper:
        rows = costs.paper_costs(options.against_paper)
    elif options.sweep:
        from se_lab.sweep.grammar import read_sweep

        rows = costs.sweep_costs(read_sweep(options.sweep).trials, execution.data_root)
    else:
        size = (3, options.image_size, options.image_size)
        rows = costs.net_costs(spec.model, options.classes, size)
        if options.measure:
            rows[0] |= costs.measured(spec.model, options.classes, size, execution.device)
    print(costs.render(rows, options.format))
    return 0


def models(argv: list[str]) -> int:
    """List backbones that can take SE units."""
    parser = Parser(prog="se-lab models", description="Backbones that can take SE units.")
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="Such as 'resnet*', or part of it.")
    options = parser.parse_args(argv)
    from se_lab.listing import list_backbones

    seen = able = 0
    for listing in list_backbones(options.pattern):
        print(listing.text(), flush=True)
        seen, able = seen + 1, able + bool(listing.insertions)
    print(f"{able} of {seen} can take SE units")
    return 0
