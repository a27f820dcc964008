"""se-lab profile and models."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from se_lab.cli.parser import add_flags
from se_lab.cli.show import show
from se_lab.spec.parser import Parser

if TYPE_CHECKING:
    from se_lab.spec import RunSpec


def profile(argv: list[str]) -> int:
    """Print the costs of nets."""
    parser = Parser(
        prog="se-lab profile",
        description="Count parameters, MACs and elementwise operations of a net (flags of train) or of a sweep's nets.",
    )
    parser.add_argument("--sweep", metavar="SPEC", help="Print a row for each trial of a W&B sweep spec.")
    add_flags(parser, "sweep_seed")
    parser.add_argument(
        "--against_paper",
        nargs="?",
        const="all",
        metavar="TABLE",
        help="Compare with the printed costs in one or all tables of the SE paper.",
    )
    parser.add_argument("--image_size", type=int, default=224, help="Image size in pixels.")
    parser.add_argument("--classes", type=int, default=1000, help="Number of classes.")
    parser.add_argument("--measure", action="store_true", help="Also measure latency and peak memory on this device.")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="Output format.")
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
    """Return the trials of a sweep; for a Bayesian search, those proposed so far or examples."""
    from se_lab.sweep.grammar import read_sweep

    sweep = read_sweep(options.sweep, seed=options.sweep_seed, store_folder=store)
    if sweep.search is None:
        return sweep.trials
    progress = f"{len(sweep.trials)} of {sweep.search.cap} trials are proposed in {store}"
    remark = "" if sweep.trials else "; showing the centre and the bounds of the search space"
    print(f"bayes: {progress} with --sweep_seed {options.sweep_seed}{remark}", file=sys.stderr)
    return sweep.trials or sweep.search.corners()


def models(argv: list[str]) -> int:
    """List backbones that support units."""
    from se_lab.units.listing import COLUMNS, list_backbones

    parser = Parser(
        prog="se-lab models",
        description="List backbones that support units. The first call builds an index, which takes minutes.",
    )
    parser.epilog = (
        "PATTERN is a name (resnet50), part of a name (resnet), or a glob (resnet??, 'torchvision:*'). Columns: "
        "stages with units (stage 1 is the stem); number of units in each of these stages; minimum and maximum number "
        "of channels of a unit; values of model.se.insertion, with the number of units in brackets if it does not "
        "apply to all blocks; parameters of the plain net; attention modules of the backbone (model.existing_se)."
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="Backbones to list; by default all.")
    options = parser.parse_args(argv)
    listings = list_backbones(options.pattern)
    show(COLUMNS, [listing.cells() for listing in listings])
    print(f"{sum(bool(listing.insertions) for listing in listings)} of {len(listings)} support units")
    return 0
