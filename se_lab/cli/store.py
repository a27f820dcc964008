"""se-lab gc and verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from se_lab.cli.parser import add_flags
from se_lab.cli.show import show
from se_lab.spec.parser import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_lab.store import RunRecord
    from se_lab.store.tidy import Leftover

WHAT = {
    "checkpoint": "checkpoints of finished trials",
    "foreign trial": "checkpoints and logs of trials that no spec names",
    "temporary file": "temporary files of dead workers",
    "old claim": "superseded claims",
    "synced W&B run": "runs that are uploaded to W&B",
}


def gc(argv: list[str]) -> int:
    """List files of a store that are no longer needed, or delete them."""
    parser = Parser(
        prog="se-lab gc",
        description="List the files of a store that are no longer needed, with their sizes; --delete deletes them. "
        "Records, metrics.csv, predictions, checkpoints of unfinished trials and running trials are kept.",
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="The store; by default SE_LAB_STORE, else runs.")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=["last", "best"],
        choices=("tested", "last", "best", "none"),
        help="Checkpoints of finished trials to keep; by default last and best; tested means the one that was tested.",
    )
    parser.add_argument(
        "--specs", nargs="+", metavar="SPEC", help="Include checkpoints and logs of trials that are in no SPEC."
    )
    add_flags(parser, "sweep_seed", nargs="+", default=[0])
    parser.add_argument(
        "--older", type=float, default=0, metavar="DAYS", help="Only trials not modified for at least DAYS days."
    )
    parser.add_argument("--paths", action="store_true", help="Print the path of every file and folder.")
    parser.add_argument("--delete", action="store_true", help="Delete the files; by default they are only listed.")
    options = parser.parse_args(argv)
    from se_lab.spec import ExecSpec
    from se_lab.store.tidy import delete, find_leftovers
    from se_lab.sweep.grammar import read_sweep

    trial_ids, store = None, options.store or ExecSpec().store
    if options.specs:
        pairs = [(spec, seed) for spec in options.specs for seed in options.sweep_seed]
        sweeps = [read_sweep(spec, seed=seed, store_folder=store) for spec, seed in pairs]
        trial_ids = {trial.trial_id for sweep in sweeps for trial in sweep.trials}
    criteria = {"keep": options.keep, "named": trial_ids, "days": options.older}
    busy_trials: list[str] = []
    if options.delete:
        leftovers, busy_trials = delete(store, **criteria)
    else:
        leftovers = find_leftovers(store, **criteria)
    _print(leftovers, "deleted" if options.delete else "can be deleted")
    if options.paths:
        for leftover in leftovers:
            print(leftover.path)
    for trial in busy_trials:
        print(f"trial {trial} is running and was skipped", file=sys.stderr)
    if leftovers and not options.delete:
        print("nothing was deleted; use --delete to delete the files, --paths to list them", file=sys.stderr)
    return 0


def verify(argv: list[str]) -> int:
    """Check the files of a store, and print the problems of each."""
    parser = Parser(
        prog="se-lab verify",
        description="Check that all records, metrics, predictions, checkpoints and notes of a store are readable, "
        "complete, in the folder of their trial, and unchanged since its end. The exit status is 1 if any is not.",
    )
    parser.add_argument("store", nargs="?", metavar="STORE", help="The store; by default SE_LAB_STORE, else runs.")
    parser.add_argument("--data", action="store_true", help="Also read all images, and compare them with the records.")
    add_flags(parser, "plugins")
    options = parser.parse_args(argv)
    from se_lab.spec import ExecSpec
    from se_lab.spec.flags import import_plugins
    from se_lab.store.verify import verify

    import_plugins(options.plugins)

    store = options.store or ExecSpec().store
    result = verify(store)
    for path, problem in result.problems:
        print(f"{path}: {problem}")
    bad_files = len({path for path, _ in result.problems})
    print(f"{store}: {result.trials} trials, {result.files} files, {bad_files or 'none'} of them with problems")
    if result.running:
        print(f"skipped, as the trials are running: {', '.join(result.running)}", file=sys.stderr)
    changed_sets = _check_images(result.records) if options.data else 0
    return int(bool(result.problems) or changed_sets > 0)


def _check_images(records: Sequence[RunRecord]) -> int:
    """Read the images of all data sets in the records; return the number of sets with problems."""
    from se_lab.data import DataError, inspect_images
    from se_lab.spec import SpecError, run_spec

    sets: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        if record.status == "finished" and record.data.get("digest"):
            fields = {key: value for key, value in record.spec.items() if key.startswith("data.")}
            key = (str(fields), str(record.execution.get("data_root", ".")), record.data["digest"])
            sets.setdefault(key, []).append(record)
    count = 0
    for (_, root, digest), trials in sets.items():
        name = trials[0].spec["data.name"]
        try:
            data = run_spec({key: value for key, value in trials[0].spec.items() if key.startswith("data.")}).data
            inspection = inspect_images(data, root=root)
            problems = [f"unreadable: {line}" for line in inspection.unreadable]
            if inspection.digest != digest:
                problems.append(f"the digest of the images is {inspection.digest}, but {digest} in the records")
        except (DataError, SpecError, OSError) as error:
            problems = [str(error)]
        count += bool(problems)
        for problem in problems or ["all images match the records"]:
            print(f"{name}: {problem} ({len(trials)} trials, such as {trials[0].trial_id})")
    return count


def _print(leftovers: Sequence[Leftover], heading: str) -> None:
    from rich.filesize import decimal

    rows = []
    for kind, description in WHAT.items():
        if group := [leftover for leftover in leftovers if leftover.kind == kind]:
            trials = len({leftover.trial_id for leftover in group if leftover.trial_id})
            rows.append(
                [
                    description,
                    str(trials),
                    str(sum(leftover.files for leftover in group)),
                    decimal(sum(leftover.bytes for leftover in group)),
                ]
            )
    if rows:
        show(("files", "trials", "number", "size"), rows)
    total = sum(leftover.bytes for leftover in leftovers)
    print(f"{heading}: {decimal(total)} ({total} bytes)" if leftovers else f"{heading}: nothing")
