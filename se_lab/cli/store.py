"""se-lab gc."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from se_lab.spec.parser import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_lab.store.tidy import Leftover

WHAT = {
    "checkpoint": "checkpoints of finished trials",
    "foreign trial": "checkpoints and logs of trials that no spec names",
    "written aside": "what dead workers had not put in place",
    "old claim": "claims that others came after",
    "synced W&B run": "runs that W&B has",
}


def gc(argv: list[str]) -> int:
    """Say what of a store can go, or delete it."""
    parser = Parser(
        prog="se-lab gc",
        description="What of a store can go, and how many bytes; with --delete it goes. Records, metrics.csv and "
        "predictions stay, what an unfinished trial goes on from too, and a trial at work is left alone.",
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="The store; by default SE_LAB_STORE, else runs.")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=["last", "best"],
        choices=("tested", "last", "best", "none"),
        help="Checkpoints of finished trials to keep: last and best by default; tested is the one that was tested.",
    )
    parser.add_argument("--specs", nargs="+", metavar="SPEC", help="Clear the trials that none of these specs names.")
    parser.add_argument(
        "--sweep-seed", type=int, nargs="+", default=[0], metavar="N", help="What random and bayes searches had."
    )
    parser.add_argument("--older", type=float, default=0, metavar="DAYS", help="Only trials that rested for so long.")
    parser.add_argument("--paths", action="store_true", help="Name every file and folder.")
    parser.add_argument("--delete", action="store_true", help="Delete; without it nothing changes.")
    options = parser.parse_args(argv)
    from se_lab.spec import ExecSpec
    from se_lab.store.tidy import delete, find_leftovers
    from se_lab.sweep.grammar import read_sweep

    named, store = None, options.store or ExecSpec().store
    if options.specs:
        asked = [(spec, seed) for spec in options.specs for seed in options.sweep_seed]
        sweeps = [read_sweep(spec, seed=seed, store_folder=store) for spec, seed in asked]
        named = {trial.trial_id for sweep in sweeps for trial in sweep.trials}
    how = {"keep": options.keep, "named": named, "days": options.older}
    busy: list[str] = []
    if options.delete:
        found, busy = delete(store, **how)
    else:
        found = find_leftovers(store, **how)
    _print(found, "deleted" if options.delete else "can go")
    if options.paths:
        for one in found:
            print(one.path)
    for trial in busy:
        print(f"{trial} is being worked on, and was left alone", file=sys.stderr)
    if found and not options.delete:
        print("nothing was deleted; --delete does, and --paths names every file", file=sys.stderr)
    return 0


def _print(found: Sequence[Leftover], done: str) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("what", box=None)
    for name in ("trials", "files", "bytes"):
        table.add_column(name, justify="right")
    for kind, what in WHAT.items():
        if some := [one for one in found if one.kind == kind]:
            trials = len({one.trial_id for one in some if one.trial_id})
            table.add_row(
                what, str(trials), str(sum(one.files for one in some)), decimal(sum(one.bytes for one in some))
            )
    if found:
        Console().print(table)
    total = sum(one.bytes for one in found)
    print(f"{done}: {decimal(total)} ({total} bytes)" if found else f"{done}: nothing")
