"""Scaling of stores and pages: `python benchmarks/stores.py [--sizes N …] [--pages N …]`.

Measures the time to read all records, make a table, and claim and release 200 trials, for stores of artificial trials
(of analysis.py, with few epochs); and to write the page of a report. The time per trial is compared with that in the
smallest store of at least 100 trials: 1 means linear, and the limit is 1.5. Sizes are measured in turn, with the median
of three rounds. The defaults take four minutes, `--sizes 100000 --pages 5000` ten more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import interleave, table

from analysis import make_store
from se_lab.report import ablation_table, write_report
from se_lab.store import claim, read_records, trial_folder

EPOCHS, CLAIMS, LIMIT = 3, 200, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 1_000, 10_000])
    parser.add_argument("--pages", type=int, nargs="*", default=[200, 1_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stores = {}
        for trials in sorted({*options.sizes, *options.pages}):
            print(f"creating {trials:,} trials …", file=sys.stderr, flush=True)
            stores[trials] = Path(name, str(trials))
            make_store(stores[trials], trials, EPOCHS)
        rows = []
        for what, sizes, act in (
            ("records", options.sizes, read),
            ("records and their table", options.sizes, tabled),
            (f"{CLAIMS} claims", options.sizes, claimed),
            ("page", options.pages, paged),
        ):
            rows += grown(what, {size: act(stores[size]) for size in sizes}, options.rounds)
    columns = ("", "trials", "seconds", "per trial, relative to the smallest of ≥ 100", "limit")
    print(table(columns, rows))


def grown(what: str, sides: dict[int, Callable[[], object]], rounds: int) -> list[tuple[str, ...]]:
    """Return a row for each size, with the time per claim or per trial relative to the base."""
    times = interleave({str(size): side for size, side in sides.items()}, rounds)
    seconds = {size: statistics.median(times[str(size)]) for size in sides}
    each = {size: seconds[size] / (min(size, CLAIMS) if "claims" in what else size) for size in sides}
    base = min((size for size in sides if size >= 100), default=0)
    rows = []
    for size in sides:
        compared = size > base > 0
        ratio = f"{each[size] / each[base]:.2f}" if compared else "–"
        rows.append((what, f"{size:,}", f"{seconds[size]:.3f}", ratio, str(LIMIT) if compared else "–"))
    return rows


def read(store: Path) -> Callable[[], object]:
    return lambda: read_records(store)


def tabled(store: Path) -> Callable[[], object]:
    return lambda: ablation_table(read_records(store))


def claimed(store: Path) -> Callable[[], object]:
    folders = [trial_folder(store, f"{number:012x}") for number in range(CLAIMS)]

    def act() -> None:
        for folder in folders:
            if folder.exists():
                with claim(folder):
                    pass

    return act


def paged(store: Path) -> Callable[[], object]:
    return lambda: write_report(read_records(store), store.with_suffix(".html"))


if __name__ == "__main__":
    main()
