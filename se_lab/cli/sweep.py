"""se-lab sweep and sync."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from se_lab.spec import SpecError


def sweep(argv: list[str]) -> int:
    """Run a sweep, or say what it would do."""
    from se_lab.spec.flags import execution_parser, import_plugins, parse_execution
    from se_lab.sweep.slurm import SlurmSpec

    parser = execution_parser("se-lab sweep", "Run every trial of a W&B sweep spec here; run again, it goes on.")
    parser.add_argument("spec", metavar="SPEC", help="A W&B sweep spec.")
    parser.add_argument("--workers", default="1", metavar="N|auto", help="Trials at a time; auto: as many as pay.")
    parser.add_argument("--retries", type=int, default=1, help="Further tries of a trial, where another can help.")
    parser.add_argument("--sweep-seed", type=int, default=0, help="Seeds a random or a bayes search.")
    parser.add_argument("--dry-run", action="store_true", help="List the trials and what they will cost; run none.")
    parser.add_argument("--format", default="table", choices=("table", "json"), help="How --dry-run and --status list.")
    parser.add_argument("--status", action="store_true", help="Tell how each trial stands; run none.")
    parser.add_argument("--executor", default="local", choices=("local", "slurm"), help="Where trials run.")
    parser.add_class_arguments(SlurmSpec, "slurm")
    parser.add_argument("--wait", action="store_true", help="With --executor slurm: return when all trials are over.")
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
    from se_lab.sweep.grammar import read_sweep

    sweep = read_sweep(options.spec, seed=options.sweep_seed)
    options, execution = parse_execution(parser, argv, sweep.execution)
    if sweep.search is not None:  # whose proposals are in the store
        sweep = read_sweep(options.spec, seed=options.sweep_seed, store_folder=execution.store)
    from se_lab.sweep.execute import check_place, check_trials

    check_place(execution.store)
    if options.status:
        return _status(sweep, options, execution)
    if options.workers != "auto" and not (options.workers.isdecimal() and int(options.workers)):
        raise SpecError(f"--workers is {options.workers!r}; it must be auto or a number from 1 on")
    if options.retries < 0:
        raise SpecError(f"--retries is {options.retries}; it must be at least 0")
    if options.executor == "local" and (options.wait or options.slurm != SlurmSpec()):
        raise SpecError("--slurm.… and --wait need --executor slurm")
    if through_wandb and options.executor == "local":
        return _sweep_through_wandb(sweep, options, execution)
    samples = [*sweep.trials, *(sweep.search.corners() if sweep.search is not None else [])]
    remarks = check_trials(samples, execution=execution, looks_at=sweep.looks_at)
    if sweep.search is not None:
        remarks.append("bayes: Optuna's Gaussian process proposes here, W&B's own engine under --wandb")
    if options.dry_run:
        from se_lab.sweep.plan import plan_sweep

        plan = plan_sweep(sweep, execution, _workers(sweep, options, execution))
        print(json.dumps(plan.listing(), indent=2) if options.format == "json" else plan.text(remarks))
        return 0
    for remark in remarks:
        print(remark, file=sys.stderr)
    if options.executor == "slurm":
        if options.workers == "auto":
            raise SpecError("--workers auto looks at this machine; with --executor slurm give a number")
        return _sweep_on_slurm(sweep, options, execution, through_wandb)
    return _sweep_here(sweep, options, execution)


def _sweep_here(sweep: Any, options: Any, execution: Any) -> int:
    from se_lab.sweep.execute import common_reason, execute
    from se_lab.sweep.view import SweepView
    from se_lab.training.run import RESUME_ME

    workers = _workers(sweep, options, execution)
    total = sweep.search.cap if sweep.search is not None else len(sweep.trials)
    with SweepView(total) as view:
        outcomes = execute(
            sweep.trials,
            execution,
            workers,
            view,
            retries=options.retries,
            search=sweep.search,
            early_stop=sweep.early_stop,
        )
    counts = Counter(outcome.status for outcome in outcomes)
    print(f"{sweep.name}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    verdict = common_reason(outcomes)
    if verdict is not None:
        why, count = verdict
        print(f"the sweep was stopped: {count} of its trials failed for one reason: {why}", file=sys.stderr)
    for outcome in outcomes:
        if outcome.status == "failed" and (verdict is None or outcome.error != verdict[0]):
            log = Path(execution.store, outcome.trial.trial_id, "log.txt")
            print(f"  failed: {outcome.trial.trial_id}, {outcome.error}; see {log}", file=sys.stderr)
    if counts["failed"]:
        return 1
    if counts["interrupted"] or counts["not started"]:
        print("stopped; the same command goes on where it stopped", file=sys.stderr)
        return RESUME_ME
    return 0


def _workers(sweep: Any, options: Any, execution: Any) -> int:
    if options.workers != "auto":
        return int(options.workers)
    from se_lab.sweep.workers import choose_workers

    workers: int
    workers, why = choose_workers(sweep.trials or sweep.search.corners(), execution)
    print(f"--workers auto: {workers} at a time, {why}", file=sys.stderr)
    return workers


def _sweep_through_wandb(sweep: Any, options: Any, execution: Any) -> int:
    from se_lab.sweep.wandb import register_sweep, run_agents, table_of
    from se_lab.training.stopping import RESUME_ME

    if options.agents < 1:
        raise SpecError(f"--agents is {options.agents}; it must be at least 1")
    path, environment = register_sweep(options.spec, execution)
    to_the_end = run_agents(path, environment, options.agents)
    counts = Counter(table_of(sweep, path)["status"])
    print(f"{options.spec}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if counts and set(counts) <= {"finished", "stopped"}:
        return 0
    if to_the_end:
        return 1
    variables = " ".join(f"{name}={shlex.quote(environment[name])}" for name in ("SE_LAB_STORE", "SE_LAB_DATA"))
    print(
        f"stopped; this goes on with it at W&B:  {variables} wandb agent -f {path}\n"
        "the same command goes on as well, as a new sweep there, in which what is finished ends at once",
        file=sys.stderr,
    )
    return RESUME_ME


def _status(sweep: Any, options: Any, execution: Any) -> int:
    from se_lab.sweep.status import listing, standings, summary, table

    stood = standings(sweep, execution.store)
    if options.format == "json":
        print(json.dumps(listing(stood), indent=2))
        if sweep.search is not None:  # whose trials to come stand in no list
            print(summary(sweep, stood), file=sys.stderr)
    else:
        print("\n".join([*([table(stood)] if stood else []), summary(sweep, stood)]))
    return 0


def _sweep_on_slurm(sweep: Any, options: Any, execution: Any, through_wandb: bool) -> int:
    from se_lab.sweep.slurm import submit_agents, submit_trials, wait_for
    from se_lab.sweep.status import OVER, SUBMISSIONS, standings, summary

    if through_wandb:
        jobs = submit_agents(options.spec, sweep, execution, options.slurm)
    else:
        tasks = {"workers": int(options.workers), "retries": options.retries}
        jobs = submit_trials(sweep, execution, options.slurm, **tasks)
    print(f"submitted to Slurm: {', '.join(jobs)}" if jobs else "nothing to submit")
    if options.wait:
        stood = wait_for(sweep, execution.store)
        print(summary(sweep, stood))
        return int(any(s.status not in OVER for s in stood))
    print(summary(sweep, standings(sweep, execution.store)))
    told = f"{shlex.quote(options.spec)} --status --store {shlex.quote(execution.store)}"
    print(f"how it stands: se-lab sweep {told}")
    print(f"logs of jobs:  {Path(execution.store, SUBMISSIONS)}")
    return 0


def sync(argv: list[str]) -> int:
    """Send offline trials to W&B."""
    from se_lab.spec.flags import execution_parser, parse_execution

    parser = execution_parser("se-lab sync", "Send trials that ran offline to W&B, each once and whole.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="Sweep specs (their trials, in the store) or stores.")
    parser.add_argument("--entity", help="The W&B user or team; by default your own.")
    parser.add_argument("--sweep-seed", type=int, default=0, help="What a random or a bayes search had.")
    options, execution = parse_execution(parser, argv)
    from se_lab.sweep.wandb import sync

    for source in options.runs:
        for trial_id, status in sync(source, execution, entity=options.entity, sweep_seed=options.sweep_seed):
            print(f"{trial_id} {status}")
    return 0


def _check(file: str) -> int:
    from se_lab.sweep.check import check_sweep, sweep_remarks
    from se_lab.sweep.grammar import read_sweep

    found, remarks = check_sweep(file), [f"  remark: {remark}" for remark in sweep_remarks(file)]
    if found:
        print("\n".join([f"{file}: {len(found)} finding(s)", *(f"  {finding}" for finding in found), *remarks]))
        return 1
    sweep = read_sweep(file)
    if sweep.search is None:
        print(f"{file}: {len(sweep.trials)} trials, the same here and under W&B")
    else:
        print(f"{file}: {sweep.search.cap} trials, proposed by Optuna here and by W&B's own engine there")
    for remark in remarks:
        print(remark)
    name = shlex.quote(file)
    print(f"  here:      se-lab sweep {name}")
    print(f"  with W&B:  wandb sweep {name}, then wandb agent -f SWEEP (-f: a stopped agent stops its trial too)")
    return 0
