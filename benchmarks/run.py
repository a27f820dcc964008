"""Run the CPU benchmarks and update RESULTS.md: `python benchmarks/run.py [NAME ...]`.

Each benchmark is a script in this folder that prints Markdown. Its section of RESULTS.md is between comments with its
name, and mentions date, commit and machine; all other text is kept, such as results of a GPU (gpu.py) and of long
benchmarks (coverage.py, chaos.py). At the limit of --minutes, the current benchmark is stopped and the remaining ones
are listed; their sections are kept.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from measure import with_section

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
BENCHMARKS = {
    "se_unit": "se_unit.py",
    "network": "network.py --rounds 5",
    "light_nets": "network.py --backbone mobilenetv3_large_100 efficientnet_b0 regnety_008 convnext_tiny --batch 4 "
    "--size 160 --rounds 5 --layout NCHW",
    "scaling": "scaling.py",
    "data": "data.py",
    "sweep": "sweep.py --plain_trials 3 --channels_last --no_agreement",
    "trial_start": "trial_start.py --rounds 2",
    "profiling": "profiling.py --every 20",
    "excitations": "excitations.py --batch 16 --rounds 5",
    "explorer": "explorer.py",
    "analysis": "analysis.py --rounds 5",
    "stores": "stores.py --pages 200 500",
    "evidence": "evidence.py --tables 40",
}
"""Sections of RESULTS.md in order, with the script and its arguments."""
LEAST_SECONDS = 20
"""Remaining time below which no benchmark is started."""
PACKAGES = ("torch", "timm", "lightning", "numpy", "pandas")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    there = [name for name, command in BENCHMARKS.items() if (HERE / command.split()[0]).exists()]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Benchmarks: {', '.join(there)}.")
    parser.add_argument("--minutes", type=float, default=15, help="Time limit in minutes.")
    options = parser.parse_args()
    names = options.names or there
    if unknown := sorted(set(names) - set(there)):
        parser.error(f"unknown benchmark {', '.join(unknown)}; allowed are {', '.join(there)}")
    failed, deadline = [], time.monotonic() + 60 * options.minutes
    for number, name in enumerate(names):
        began = time.monotonic()
        if deadline - began < LEAST_SECONDS:
            print(f"no time left for: {', '.join(names[number:])}", file=sys.stderr)
            return 1
        measured = measure(name, deadline - began)
        print(f"{name}: {time.monotonic() - began:.0f} s{'' if measured else ', FAILED'}", flush=True)
        if measured is None:
            failed.append(name)
        else:
            text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Measured\n"
            RESULTS.write_text(with_section(text, name, measured, place_of(text, name)), encoding="utf-8")
    return 1 if failed else 0


def measure(name: str, seconds: float) -> str | None:
    """Run a benchmark, and return its section, or None after an error or at the time limit."""
    script, *arguments = shlex.split(BENCHMARKS[name])
    command = ["python", f"benchmarks/{script}", *arguments]
    load = os.getloadavg()[0]
    try:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=seconds,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    about = ast.get_docstring(ast.parse((HERE / script).read_text(encoding="utf-8"))) or name
    title = re.split(r"[:.]\s", about, maxsplit=1)[0]
    if name != script.removesuffix(".py"):
        title += f" ({name.replace('_', ' ')})"
    return f"## {title}\n\n`{shlex.join(command)}` · {circumstances(load)}\n\n{done.stdout.strip()}"


def circumstances(load: float) -> str:
    """Return date, commit, processor, cores, load and versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    date = datetime.datetime.now(datetime.timezone.utc).date()
    return (
        f"{date} · commit {commit()} · {processor()}, {os.cpu_count()} cores, load {load:.1f} before · "
        f"Python {platform.python_version()}, {versions}"
    )


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "../se_lab", ".", ":!RESULTS.md")
    return (git("rev-parse", "--short", "HEAD") or "not known") + (" with changes" if changed else "")


def processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def place_of(text: str, name: str) -> int:
    """Return the position for a new section: after the last of the sections before it."""
    earlier = list(BENCHMARKS)[: list(BENCHMARKS).index(name)]
    marks = [f"<!-- /{one} -->\n" for one in earlier if f"<!-- /{one} -->\n" in text]
    first = text.find("\n<!-- ")
    return text.index(marks[-1]) + len(marks[-1]) if marks else first if first >= 0 else len(text)


if __name__ == "__main__":
    sys.exit(main())
