"""se-lab gc and verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from se_lab.cli.show import show
from se_lab.spec.parser import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_lab.store import RunRecord
    from se_lab.store.tidy import Leftover

WHAT = {
    "checkpoint": "checkpoints of finished trials",
    "foreign trial": "checkpoints and logs of trials that no spec names",
    "written aside": "what dead workers had not put in place",
    "old claim": "claims that others came after",
    "synced W&B run": "runs that W&B has",
}


def gc(argv: list[str]) -> int:
    """List files of a store that are no longer needed, or delete them."""
    parser = Parser(
        prog="se-lab gc",
        description="List the files of a store that are no longer needed, with their sizes; --delete deletes them. "
        "Records, metrics.csv, predictions, the checkpoints of unfinished trials and running trials are kept.",
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="The store; by default SE_LAB_STORE, else runs.")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=["last", "best"],
        choices=("tested", "last", "best", "none"),
        help="Checkpoints of finished trials to keep: last and best by default; tested is the one that was tested.",
    )
    parser.add_argument(
        "--specs", nargs="+", metavar="SPEC", help="Include checkpoints and logs of trials that no SPEC has."
    )
    parser.add_argument(
        "--sweep_seed",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="Seeds of random and bayes searches.",
    )
    parser.add_argument(
        "--older", type=float, default=0, metavar="DAYS", help="Only trials not modified for so many days."
    )
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
        print(f"{trial} is running; it was not touched", file=sys.stderr)
    if found and not options.delete:
        print("nothing was deleted; --delete does, and --paths names every file", file=sys.stderr)
    return 0


def verify(argv: list[str]) -> int:
    """Check the files of a store, and print what is wrong with each."""
    parser = Parser(
        prog="se-lab verify",
        description="Check every record, metrics file, predictions file, checkpoint and note of a store: readable, "
        "complete, of its trial, and as it was when its trial ended. Status 1 if a file is not.",
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="The store; by default SE_LAB_STORE, else runs.")
    parser.add_argument("--data", action="store_true", help="Read all images too, and compare them with the records.")
    parser.add_argument("--plugins", default="", help="Modules to import first, separated by commas, for --data.")
    options = parser.parse_args(argv)
    from se_lab.spec import ExecSpec
    from se_lab.spec.flags import import_plugins
    from se_lab.store.verify import verify

    import_plugins(options.plugins)

    store = options.store or ExecSpec().store
    found = verify(store)
    for path, problem in found.problems:
        print(f"{path}: {problem}")
    wrong = len({path for path, _ in found.problems})
    print(f"{store}: {found.trials} trials, {found.files} files, {wrong or 'none'} of them wrong")
    if found.running:
        print(f"not compared, for a worker holds the trial: {', '.join(found.running)}", file=sys.stderr)
    other_images = _check_images(found.records) if options.data else 0
    return int(bool(found.problems) or other_images > 0)


def _check_images(records: Sequence[RunRecord]) -> int:
    """Read the images of each data set that finished trials used; return how many sets are not what they were."""
    from se_lab.data import DataError, inspect_images
    from se_lab.spec import SpecError, run_spec

    sets: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        if record.status == "finished" and record.data.get("digest"):
            of = {key: value for key, value in record.spec.items() if key.startswith("data.")}
            key = (str(of), str(record.execution.get("data_root", ".")), record.data["digest"])
            sets.setdefault(key, []).append(record)
    wrong = 0
    for (_, root, digest), trials in sets.items():
        name = trials[0].spec["data.name"]
        try:
            data = run_spec({key: value for key, value in trials[0].spec.items() if key.startswith("data.")}).data
            seen = inspect_images(data, root=root)
            problems = [f"unreadable: {line}" for line in seen.unreadable]
            if seen.digest != digest:
                problems.append(f"the digest of its images is {seen.digest}, and {digest} in the records")
        except (DataError, SpecError, OSError) as error:
            problems = [str(error)]
        wrong += bool(problems)
        for problem in problems or ["all images are those of the records"]:
            print(f"{name}: {problem} ({len(trials)} trials, such as {trials[0].trial_id})")
    return wrong


def _print(found: Sequence[Leftover], done: str) -> None:
    from rich.filesize import decimal

    rows = []
    for kind, what in WHAT.items():
        if some := [one for one in found if one.kind == kind]:
            trials = len({one.trial_id for one in some if one.trial_id})
            rows.append(
                [what, str(trials), str(sum(one.files for one in some)), decimal(sum(one.bytes for one in some))]
            )
    if rows:
        show(("files", "trials", "number", "size"), rows)
    total = sum(one.bytes for one in found)
    print(f"{done}: {decimal(total)} ({total} bytes)" if found else f"{done}: nothing")
