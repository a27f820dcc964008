"""se-lab check, status and sync."""

from __future__ import annotations

import json
import shlex
import sys

from se_lab.cli.parser import add_flags
from se_lab.cli.runs import add_runs
from se_lab.cli.show import show
from se_lab.spec import ExecSpec
from se_lab.spec.text import counted

_SYNC = ("store", "project", "entity", "group", "tags", "notes", "job_type", "plugins")  # of ExecSpec


def status(argv: list[str]) -> int:
    """Print the state of each trial of a sweep, from the store and Slurm's queue."""
    from se_lab.spec.flags import import_plugins
    from se_lab.spec.parser import Parser
    from se_lab.store import check_store
    from se_lab.sweep.changes import changes_since
    from se_lab.sweep.grammar import read_sweep
    from se_lab.sweep.status import listing, rows, standings, summary

    parser = Parser("se-lab status", "Print the state of each trial of a sweep.")
    parser.add_argument("spec", metavar="FILE", help="A W&B sweep spec.")
    add_flags(parser, "store", "plugins", "sweep_seed")
    parser.add_argument("--format", default="table", choices=("table", "json"), help="Output format.")
    options = parser.parse_args(argv)
    import_plugins(options.plugins)
    spec = read_sweep(options.spec, seed=options.sweep_seed, store_folder=options.store)
    folder = options.store or spec.execution.store
    check_store(folder)
    states = standings(spec, folder)
    if options.format == "json":
        print(json.dumps(listing(states), indent=2))
        if spec.search is not None:  # the list does not contain trials that are not yet proposed
            print(summary(spec, states), file=sys.stderr)
    else:
        if states:
            show(*rows(states))
        print(summary(spec, states))
    for change in changes_since([s.trial for s in states if s.status == "finished"], folder):
        print(change, file=sys.stderr)
    return 0


def check(argv: list[str]) -> int:
    """Print the parts of a sweep spec that W&B would refuse or run differently."""
    from se_lab.spec.flags import import_plugins
    from se_lab.spec.parser import Parser

    parser = Parser("se-lab check", "Print the parts of a sweep spec that W&B would refuse or run differently.")
    parser.add_argument("spec", nargs="+", metavar="FILE", help="W&B sweep specs.")
    add_flags(parser, "plugins")
    options = parser.parse_args(argv)
    import_plugins(options.plugins)
    from se_lab.spec import find_sweep
    from se_lab.sweep.check import check_sweep, sweep_remarks

    results = {file: check_sweep(file) for file in options.spec}
    show(("spec", "trials", "local and W&B"), [_check_row(file, len(findings)) for file, findings in results.items()])
    for file, findings in results.items():
        for finding in findings:
            print(f"{file}: finding: {finding}")
        for remark in sweep_remarks(file):
            print(f"{file}: remark: {remark}")
    valid_files = [file for file, findings in results.items() if not findings]
    if valid_files:
        path = shlex.quote(str(find_sweep(valid_files[0])))
        print(f"run locally:     se-lab sweep {shlex.quote(valid_files[0])}")
        print(f"run through W&B: wandb sweep {path}, then wandb agent -f SWEEP (-f: Ctrl-C stops the trial too)")
    return int(len(valid_files) < len(results))


def _check_row(file: str, findings: int) -> tuple[str, str, str]:
    """Return the row of a sweep spec: name, number of trials, and number of findings."""
    from se_lab.sweep.grammar import read_sweep

    if findings:
        return file, "", counted(findings, "finding")
    spec = read_sweep(file)
    if spec.search is None:
        return file, str(len(spec.trials)), "the same"
    return file, str(spec.search.cap), "proposed by Optuna locally, by W&B's engine under W&B"


def sync(argv: list[str]) -> int:
    """Send trials that ran offline to W&B."""
    from se_lab.spec.flags import execution_of, import_plugins
    from se_lab.spec.parser import Parser, add_fields

    parser = Parser("se-lab sync", "Send trials that ran offline to W&B; trials that were sent before are skipped.")
    add_fields(parser, ExecSpec, only=_SYNC)
    add_runs(parser)
    add_flags(parser, "sweep_seed")
    options = parser.parse_args(argv)
    execution = execution_of(options.given)
    import_plugins(execution.plugins)
    from se_lab.sweep.wandb import sync

    for source in options.runs:
        for trial_id, state in sync(source, execution, sweep_seed=options.sweep_seed):
            print(f"{trial_id} {state}")
    return 0
