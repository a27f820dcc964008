"""se-lab profile and models."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from se_lab.cli.show import show
from se_lab.spec.parser import Parser

if TYPE_CHECKING:
    from se_lab.spec import RunSpec


def profile(argv: list[str]) -> int:
    """Print the costs of nets."""
    parser = Parser(
        prog="se-lab profile",
        description="Parameters, MACs and element operations of a net (give the flags of train), or of a sweep's nets.",
    )
    parser.add_argument("--sweep", metavar="SPEC", help="A W&B sweep spec: a row for each of its trials.")
    parser.add_argument("--sweep_seed", type=int, default=0, help="What a random or a bayes search had, or will have.")
    parser.add_argument(
        "--against_paper",
        nargs="?",
        const="all",
        metavar="TABLE",
        help="Every cost that the SE paper prints, or one of its tables, beside ours.",
    )
    parser.add_argument("--image_size", type=int, default=224, help="Side of the image in pixels.")
    parser.add_argument("--classes", type=int, default=1000, help="Outputs of the classifier.")
    parser.add_argument("--measure", action="store_true", help="Measure latency and peak memory on this device, too.")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="How it is written.")
    from se_lab.spec import SpecError
    from se_lab.spec.flags import add_trial_flags, trial_from

    add_trial_flags(parser, listed=False)
    options = parser.parse_args(argv)

    if not 8 <= options.image_size <= 65535:
        raise SpecError(f"--image_size is {options.image_size}; it must be from 8 to 65535 pixels")
    if not 1 <= options.classes <= 10**9:
        raise SpecError(f"--classes is {options.classes}; it must be at least 1 and at most {10**9}")
    spec, execution = trial_from(options.given)
    from se_lab.report import costs

    if options.against_paper:
        rows = costs.paper_costs(options.against_paper)
    elif options.sweep:
        rows = costs.sweep_costs(_trials_of(options, execution.store), execution.data_root)
    else:
        size = (3, options.image_size, options.image_size)
        rows = costs.net_costs(spec.model, options.classes, size)
        if options.measure:
            rows[0] |= costs.measure_latency(spec.model, options.classes, size, execution.device)
    print(costs.render(rows, options.format))
    return 0


def _trials_of(options: Namespace, store: str) -> list[RunSpec]:
    """Return a sweep's trials; for a Bayesian search, print which these are."""
    from se_lab.sweep.grammar import read_sweep

    sweep = read_sweep(options.sweep, seed=options.sweep_seed, store_folder=store)
    if sweep.search is None:
        return sweep.trials
    progress = f"{len(sweep.trials)} of {sweep.search.cap} trials are proposed in {store}"
    remark = "" if sweep.trials else "; these are the middle and the ends of its space"
    print(f"bayes: {progress} with --sweep_seed {options.sweep_seed}{remark}", file=sys.stderr)
    return sweep.trials or sweep.search.corners()


def models(argv: list[str]) -> int:
    """List backbones that can take units."""
    from se_lab.units.listing import COLUMNS, list_backbones

    parser = Parser(
        prog="se-lab models",
        description="Backbones that can take units. The first call builds an index of all, which takes minutes.",
    )
    parser.epilog = (
        "PATTERN is a name (resnet50), a part of one (resnet), or a glob (resnet??, 'torchvision:*'). The columns: "
        "stages that have units (stage 1 is the stem); units in each of these stages; the fewest and the most channels "
        "of a unit; values of model.se.insertion, with the number of units in brackets where not every block has that "
        "place; parameters of the plain net; attention modules that the net has of its own (model.existing_se)."
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="Which backbones; by default all.")
    options = parser.parse_args(argv)
    listings = list_backbones(options.pattern)
    show(COLUMNS, [listing.cells() for listing in listings])
    print(f"{sum(bool(listing.insertions) for listing in listings)} of {len(listings)} can take units")
    return 0
