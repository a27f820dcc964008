"""se-lab sweep and sync."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from se_lab.spec import SpecError


def sweep(argv: list[str]) -> int:
    """Run a sweep, or say what it would do."""
    from se_lab.flags import execution_parser, import_plugins, parse_execution

    parser = execution_parser("se-lab sweep", "Run every trial of a W&B sweep spec here; run again, it goes on.")
    parser.add_argument("spec", metavar="SPEC", help="A W&B sweep spec.")
    parser.add_argument("--workers", type=int, default=1, help="Trials at a time.")
    parser.add_argument("--sweep-seed", type=int, default=0, help="Seeds a random search.")
    parser.add_argument("--dry-run", action="store_true", help="List the trials and what they will cost; run none.")
    parser.add_argument("--format", default="table", choices=("table", "json"), help="How --dry-run lists them.")
    parser.add_argument("--check", action="store_true", help="Tell what W&B would refuse or change; run none.")
    parser.add_argument("--agents", type=int, default=1, help="With a bare --wandb: agents of W&B's at a time.")
    # bare, --wandb runs the sweep through W&B; with a value it is the field of ExecSpec
    through_wandb = any(
        a == "--wandb" and b not in ("true", "false") for a, b in zip(argv, [*argv[1:], ""], strict=False)
    )
    argv = [token for token in argv if token != "--wandb" or not through_wandb]
    options, execution = parse_execution(parser, argv)
    import_plugins(execution.plugins)
    if options.check:
        return _check(options.spec)
    from se_lab.sweep.execute import check_trials, execute
    from se_lab.sweep.grammar import read_sweep

    sweep = read_sweep(options.spec, seed=options.sweep_seed)
    options, execution = parse_execution(parser, argv, sweep.execution)
    if options.workers < 1:
        raise SpecError(f"--workers is {options.workers}; it must be at least 1")
    if through_wandb:
        return _sweep_through_wandb(options, execution)
    remarks = check_trials(sweep.trials, root=execution.data_root)
    if options.dry_run:
        from se_lab.sweep.plan import plan_sweep

        plan = plan_sweep(sweep, execution, options.workers)
        print(json.dumps(plan.listing(), indent=2) if options.format == "json" else plan.text(remarks))
        return 0
    for remark in remarks:
        print(remark, file=sys.stderr)
    from se_lab.sweep.view import SweepView
    from se_lab.train import RESUME_ME

    with SweepView(sweep.trials) as view:
        outcomes = execute(sweep.trials, execution, options.workers, view)
    counts = Counter(outcome.status for outcome in outcomes)
    print(f"{sweep.name}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    for outcome in outcomes:
        if outcome.status in ("failed", "lost"):
            folder = Path(execution.store, outcome.trial.trial_id)
            print(f"  {outcome.status}: {outcome.trial.trial_id}, see {folder / 'log.txt'}", file=sys.stderr)
    if counts["failed"] or counts["lost"]:
        return 1
    if counts["interrupted"]:
        print("stopped; the same command goes on where it stopped", file=sys.stderr)
        return RESUME_ME
    return 0


def _sweep_through_wandb(options: Any, execution: Any) -> int:
    from se_lab.sweep.wandb import sweep_through_wandb

    if options.agents < 1:
        raise SpecError(f"--agents is {options.agents}; it must be at least 1")
    counts = Counter(sweep_through_wandb(options.spec, execution, options.agents)["status"])
    print(f"{options.spec}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return 0 if set(counts) == {"finished"} else 1


def sync(argv: list[str]) -> int:
    """Send offline trials to W&B."""
    from se_lab.flags import execution_parser, parse_execution

    parser = execution_parser("se-lab sync", "Send trials that ran offline to W&B, each once and whole.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="Sweep specs (their trials, in the store) or stores.")
    parser.add_argument("--entity", help="The W&B user or team; by default your own.")
    options, execution = parse_execution(parser, argv)
    from se_lab.sweep.wandb import sync

    for source in options.runs:
        for trial_id, status in sync(source, execution, entity=options.entity):
            print(f"{trial_id} {status}")
    return 0


def _check(file: str) -> int:
    from se_lab.sweep.check import check_sweep
    from se_lab.sweep.grammar import read_sweep

    if found := check_sweep(file):
        print("\n".join([f"{file}: {len(found)} finding(s)", *(f"  {finding}" for finding in found)]))
        return 1
    print(f"{file}: {len(read_sweep(file).trials)} trials, the same here and under W&B")
    print(f"  here:      se-lab sweep {file}")
    print(f"  with W&B:  wandb sweep {file}, then wandb agent -f SWEEP (-f: a stopped agent stops its trial too)")
    return 0
