"""Put the table and figures of a finished demo into README.md and docs/: python docs/make_demo.py [STORE].

Run `make demo` first. The text between the demo comments of README.md, docs/index.md and docs/tables.md is replaced by
what `se-lab table sweeps/demo.yaml` prints; the figures go to docs/assets.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from se_lab import load_records
from se_lab.cli import main

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "sweeps" / "demo.yaml"
TEXTS = ("README.md", "docs/index.md", "docs/tables.md")
BLOCK = re.compile(r"(?<=<!-- demo:table -->\n).*?(?=<!-- /demo:table -->)", re.DOTALL)


def renew(store: str) -> None:
    """Renew the texts and the figures from a store."""
    records = load_records(SPEC, store)
    if (left := int((records["status"] != "finished").sum())) > 0:
        raise SystemExit(f"{left} of {len(records)} trials of {SPEC} have not finished in {store}; run make demo first")
    table = said("table", str(SPEC), "--store", store)
    for name in TEXTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        block = f"```text\n{table.strip()}\n```\n"
        (ROOT / name).write_text(BLOCK.sub(lambda _, block=block: block, text), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        said("plot", str(SPEC), "--store", store, "--kind", "differences", "tradeoff", "--cost", "params", "-o", folder)
        one = records[(records["model.se.insertion"] == "standard") & (records["seed"] == 0)]
        trial = one.loc[one["model.se.reduction"] == 4, "folder"].iloc[0]
        said("excitations", trial, "-o", folder)
        for name in ("differences", "tradeoff_params", "figure_6"):
            shutil.copyfile(Path(folder, f"{name}.png"), ROOT / "docs" / "assets" / f"demo_{name}.png")


def said(*arguments: str) -> str:
    """Run a verb and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if status := main(arguments):
            raise SystemExit(f"se-lab {' '.join(arguments)} left with {status}")
    return printed.getvalue()


if __name__ == "__main__":
    renew(sys.argv[1] if len(sys.argv) > 1 else "runs")
