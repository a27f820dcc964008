"""Put the tables and figures of finished sweeps into README.md and docs/: python docs/make_demo.py [STORE].

Run `make demo` first, and `se-lab sweep sweeps/units_digits.yaml` for the table of units. The text between a sweep's
comments is replaced by what `se-lab table` prints of it; the demo's figures go to docs/assets. A sweep that has not
finished in the store is left as it is.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from se_lab import load_records
from se_lab.cli import main

ROOT = Path(__file__).parents[1]
TEXTS = {
    "demo": ("README.md", "docs/index.md", "docs/tables.md"),
    "units_digits": ("docs/tables.md",),
}
"""The texts that show a sweep's table, by the name of its file in sweeps/, which its comments have too."""
FLAGS = {"units_digits": ("--columns", "n", "test/top1_error", "difference", "params_over", "macs_over")}
"""What `se-lab table` gets beside the file."""


def renew(store: str, root: Path = ROOT) -> None:
    """Renew the texts and the figures from a store."""
    for name, texts in TEXTS.items():
        spec = root / "sweeps" / f"{name}.yaml"
        records = load_records(spec, store)
        left = int((records["status"] != "finished").sum())
        if left:
            count = f"{left} of {len(records)} trials of {spec.name}"
            print(f"{count} have not finished in {store}: its table stays as it is", file=sys.stderr)
            continue
        table = output_of("table", str(spec), "--store", store, *FLAGS.get(name, ()))
        for text in texts:
            replace_block(root / text, name, table)
        if name == "demo":
            renew_figures(spec, store, records, root / "docs" / "assets")


def replace_block(file: Path, name: str, table: str) -> None:
    """Replace what stands between a sweep's comments in a text."""
    block = re.compile(rf"(?<=<!-- {name}:table -->\n).*?(?=<!-- /{name}:table -->)", re.DOTALL)
    text, count = block.subn(lambda _: f"```text\n{table.strip()}\n```\n", file.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{file} has {count} places for the table of {name}; it must have one")
    file.write_text(text, encoding="utf-8")


def renew_figures(spec: Path, store: str, records: pd.DataFrame, assets: Path) -> None:
    """Draw the demo's figures."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--kind", "differences", "tradeoff", "--cost", "params")
        output_of("plot", str(spec), "--store", store, *flags, "-o", folder)
        one = records[(records["model.se.insertion"] == "standard") & (records["seed"] == 0)]
        trial = one.loc[one["model.se.reduction"] == 4, "folder"].iloc[0]
        output_of("excitations", trial, "-o", folder)
        for name in ("differences", "tradeoff_params", "figure_6"):
            shutil.copyfile(Path(folder, f"{name}.png"), assets / f"demo_{name}.png")


def output_of(*arguments: str) -> str:
    """Run a verb and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if status := main(arguments):
            raise SystemExit(f"se-lab {' '.join(arguments)} left with {status}")
    return printed.getvalue()


if __name__ == "__main__":
    renew(sys.argv[1] if len(sys.argv) > 1 else "runs")
