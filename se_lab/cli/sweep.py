"""se-lab sweep."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_lab.cli.parser import add_flags
from se_lab.cli.show import show
from se_lab.cli.specs import check
from se_lab.spec import ExecSpec, RunSpec, SpecError

if TYPE_CHECKING:
    from se_lab.sweep.grammar import Sweep
    from se_lab.sweep.trial_process import Outcome

MAX_SEEDS, SEEDS = 20, 5
METRIC = "test/top1_error"


def sweep(argv: list[str]) -> int:
    """Run the unfinished trials of a sweep spec locally, on Slurm, or under W&B agents."""
    if "--check" in argv:
        return check([token for token in argv if token != "--check"])
    options, execution, spec = _parse_sweep(argv)
    _check_options(options)
    runs_here = options.executor == "local" and not options.dry_run
    if runs_here and options.through_wandb and options.until_halfwidth is None:
        return _sweep_through_wandb(spec, options, execution)
    if runs_here and not options.through_wandb:
        from se_lab.sweep.server import start_server

        start_server()  # imports modules during the checks
    from se_lab.sweep.schedule import check_trials

    if options.confirm is not None:
        spec = _confirm(spec, options, execution)
    samples = [*spec.trials, *(spec.search.corners() if spec.search is not None else [])]
    remarks = check_trials(samples, execution=execution, validation_use=spec.validation_use)
    if spec.search is not None:
        remarks.append("bayes: trials are proposed by Optuna's Gaussian process, or with --wandb by W&B's engine")
    if options.dry_run:
        return _dry_run(spec, options, execution, remarks)
    for remark in remarks:
        print(remark, file=sys.stderr)
    if options.until_halfwidth is not None:
        return _sweep_until(spec, options, execution)
    if options.executor == "slurm":
        return _sweep_on_slurm(spec, options, execution)
    return _sweep_here(spec, options, execution)


def _parse_sweep(argv: list[str]) -> tuple[Any, ExecSpec, Sweep]:
    """Return the flags of `se-lab sweep`, the execution spec of the trials, and the sweep."""
    from se_lab.spec.flags import add_execution_flags, execution_of, import_plugins
    from se_lab.spec.parser import Parser, add_fields, values_of
    from se_lab.store import check_store
    from se_lab.sweep.grammar import read_sweep
    from se_lab.sweep.slurm import SlurmSpec

    parser = Parser("se-lab sweep", "Run the trials of a W&B sweep spec. The same command resumes the sweep.")
    add_execution_flags(parser)
    parser.add_argument("spec", metavar="FILE", help="A W&B sweep spec.")
    parser.add_argument(
        "--workers", default="1", metavar="N|auto", help="Trials to run in parallel; auto maximises throughput."
    )
    parser.add_argument("--retries", type=int, default=1, help="Retries of a trial whose failure may be temporary.")
    add_flags(parser, "sweep_seed")
    parser.add_argument(
        "--until_halfwidth", type=float, metavar="POINTS",
        help="Add seeds until all differences from the baseline have simultaneous 95 %% intervals of ± POINTS.",
    )  # fmt: skip
    parser.add_argument(
        "--max_seeds", type=int, metavar="N", help="Maximum number of seeds with --until_halfwidth; default 20."
    )
    parser.add_argument(
        "--confirm", type=int, metavar="N", help="Run the best N variants by validation error with fresh seeds."
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="Number of fresh seeds with --confirm; default 5.")
    parser.add_argument("--dry_run", action="store_true", help="List the trials and their cost without running them.")
    parser.add_argument("--check", action="store_true", help="Only check FILE, as se-lab check FILE does.")
    parser.add_argument("--format", default="table", choices=("table", "json"), help="Format of --dry_run.")
    parser.add_argument(
        "--executor", default="local", choices=("local", "slurm"), help="Run trials locally or on Slurm."
    )
    add_fields(parser, SlurmSpec, "slurm")
    parser.add_argument("--wait", action="store_true", help="With --executor slurm, wait until all trials have ended.")
    parser.add_argument("--agents", type=int, default=1, help="Number of parallel W&B agents, if --wandb has no value.")
    # Without a value, --wandb runs the sweep through W&B; with a value, it sets whether trials log to W&B.
    through_wandb = any(
        a == "--wandb" and b.lower() not in ("true", "false") for a, b in zip(argv, [*argv[1:], ""], strict=False)
    )
    argv = [token for token in argv if token != "--wandb" or not through_wandb]
    options = parser.parse_args(argv)
    options.slurm = SlurmSpec(**values_of(options.given, SlurmSpec, "slurm"))
    import_plugins(execution_of(options.given).plugins)
    spec = read_sweep(options.spec, seed=options.sweep_seed)
    execution = execution_of(options.given, spec.execution)
    check_store(execution.store)
    if spec.search is not None:  # proposals are in the store given by the flags
        spec = read_sweep(options.spec, seed=options.sweep_seed, store_folder=execution.store)
    options.through_wandb = through_wandb
    if not through_wandb:
        execution = dataclasses.replace(execution, group=execution.group or spec.name)
    return options, execution, spec


def _check_options(options: Any) -> None:
    from se_lab.sweep.slurm import SlurmSpec

    if options.workers != "auto" and not (options.workers.isdecimal() and int(options.workers)):
        raise SpecError(f"--workers is {options.workers!r}; it must be auto or a positive integer")
    if options.workers == "auto" and options.executor == "slurm":
        raise SpecError("--workers auto measures this machine; with --executor slurm give a number")
    if options.retries < 0:
        raise SpecError(f"--retries is {options.retries}; it must be at least 0")
    if options.agents < 1:
        raise SpecError(f"--agents is {options.agents}; it must be at least 1")
    if options.until_halfwidth is not None and not options.until_halfwidth > 0:
        raise SpecError(f"--until_halfwidth is {options.until_halfwidth}; it must be above 0, in points of error")
    if options.max_seeds is not None and options.until_halfwidth is None:
        raise SpecError("--max_seeds needs --until_halfwidth")
    if options.seeds is not None and options.confirm is None:
        raise SpecError("--seeds needs --confirm")
    if options.until_halfwidth is not None and options.confirm is not None:
        raise SpecError("--until_halfwidth and --confirm cannot be used together")
    if options.through_wandb and options.confirm is not None:
        raise SpecError("--confirm cannot be used with --wandb, since the selected variants are not a grid")
    if options.executor == "local" and (options.wait or options.slurm != SlurmSpec()):
        raise SpecError("--slurm.… and --wait need --executor slurm")


def _dry_run(spec: Sweep, options: Any, execution: ExecSpec, remarks: list[str]) -> int:
    from se_lab.sweep.plan import plan_sweep

    workers = _workers(spec, options, execution)
    plan = plan_sweep(spec, execution, workers)
    if options.format == "json":
        print(json.dumps(plan.listing(), indent=2))
        return 0
    print(f"{spec.name}: {spec.description}".rstrip(": "))
    if spec.trials:
        show(*plan.rows())
    print("\n".join([plan.summary(), *remarks]))
    if options.until_halfwidth is not None:
        from se_lab.sweep.seeds import with_seeds

        max_seeds = options.max_seeds or MAX_SEEDS
        full_plan = plan_sweep(dataclasses.replace(spec, trials=with_seeds(spec.trials, max_seeds)), execution, workers)
        print(f"with {max_seeds} seeds, the maximum of --until_halfwidth: {full_plan.summary()}")
    return 0


def _confirm(spec: Sweep, options: Any, execution: ExecSpec) -> Sweep:
    """Select the best variants, and return a sweep of these and the baselines with fresh seeds."""
    from se_lab.sweep.confirm import choose, confirmation_of, fresh_trials, note

    old_confirmation = confirmation_of(spec.trials, execution.store)
    confirmation = choose(spec, execution.store, options.confirm, options.seeds or SEEDS)
    if old_confirmation is not None and old_confirmation.chosen != confirmation.chosen:
        raise SpecError(
            f"other variants of {spec.name} were confirmed in {execution.store} before, and a second selection would "
            "be biased; use another store"
        )
    if not options.dry_run:
        note(confirmation, spec, execution.store)
    trials = fresh_trials(confirmation)
    print(f"table of the fresh seeds: se-lab table confirm:{shlex.quote(options.spec)}", file=sys.stderr)
    return dataclasses.replace(spec, name=f"{spec.name}, confirmed", trials=trials, search=None, early_stop=None)


def _sweep_until(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    """Add seeds until the intervals, computed as in the ablation table, are narrow enough."""
    from se_lab.report.computed import largest_half_width
    from se_lab.store import read_records
    from se_lab.sweep.seeds import add_seeds, check_compared

    check_compared(spec.trials)
    if options.through_wandb:
        from se_lab.sweep.wandb import check_for_agents

        check_for_agents(options.spec, execution, adds_seeds=True)
    exit_status = [0]

    def run(trials: Sequence[RunSpec]) -> bool:
        exit_status[0] = _run_all(dataclasses.replace(spec, trials=list(trials)), options, execution)
        return exit_status[0] == 0

    def width(trials: Sequence[RunSpec], level: float) -> float:
        records = read_records(execution.store, {trial.trial_id: trial.flat() for trial in trials})
        return largest_half_width(records, METRIC, 1 - level)

    if spec.early_stop is not None:
        raise SpecError("--until_halfwidth needs the test errors of all trials, so remove early_terminate")
    target, max_seeds = options.until_halfwidth, options.max_seeds or MAX_SEEDS
    reached = False
    for look, half_width in add_seeds(spec.trials, target, max_seeds, run, width, execution.store):
        reached = half_width <= target
        intervals = f"simultaneous {100 * (1 - look.level):.2f} % intervals"
        print(f"{look.seeds} seeds: the {intervals} are at most ± {half_width:.3f} points", flush=True)
    if exit_status[0] == 0:
        print(f"reached ± {target:g} points" if reached else f"did not reach ± {target:g} points in {max_seeds} seeds")
    return exit_status[0]


def _run_all(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    """Run trials locally, under W&B agents or on Slurm, wait, and return the exit status."""
    if options.executor == "slurm":
        options.wait = True
        return _sweep_on_slurm(spec, options, execution)
    return _under_agents(spec, options, execution) if options.through_wandb else _sweep_here(spec, options, execution)


def _under_agents(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    """Run open trials under W&B agents, as a W&B sweep over their seeds, and return the status."""
    from se_lab.sweep.status import OVER, standings, summary
    from se_lab.sweep.wandb import register_sweep, run_agents
    from se_lab.training.stopping import RESUME_ME

    states, completed = standings(spec, execution.store), True
    if seeds := sorted({state.trial.seed for state in states if state.status not in OVER}):
        completed = run_agents(*register_sweep(options.spec, execution, seeds), options.agents)
        states = standings(spec, execution.store)
    print(summary(spec, states))
    for state in states:
        if state.status == "failed":
            log = Path(execution.store, state.trial.trial_id, "log.txt")
            print(f"  failed: {state.trial.trial_id}, {state.error}; see {log}", file=sys.stderr)
    if not completed:
        print("stopped; the same command resumes the sweep", file=sys.stderr)
        return RESUME_ME
    return int(any(state.status != "finished" for state in states))


def _sweep_here(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    from se_lab.sweep.schedule import Rules, execute
    from se_lab.sweep.view import SweepView

    workers = _workers(spec, options, execution)
    total = spec.search.cap if spec.search is not None else 0
    with SweepView(spec.trials, workers, execution.store, total=total) as view:
        rules = Rules(options.retries, spec.search, spec.early_stop)
        outcomes = execute(spec.trials, execution, workers, view, rules)
    return _report(spec.name, outcomes, execution)


def _report(name: str, outcomes: Sequence[Outcome], execution: ExecSpec) -> int:
    """Print the outcomes of a sweep, and return the exit status."""
    from se_lab.sweep.schedule import common_reason
    from se_lab.training.stopping import RESUME_ME

    counts = Counter(outcome.status for outcome in outcomes)
    skip_count = counts.pop("skipped", 0)
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    print(f"{name}: " + ", ".join([*parts, *([f"{skip_count} finished before"] if skip_count else [])]))
    verdict = common_reason(outcomes)
    if verdict is not None:
        reason, count = verdict
        print(f"the sweep was stopped: {count} of its trials failed for one reason: {reason}", file=sys.stderr)
    for outcome in outcomes:
        if outcome.status == "failed" and (verdict is None or outcome.error != verdict[0]):
            log = Path(execution.store, outcome.trial.trial_id, "log.txt")
            print(f"  failed: {outcome.trial.trial_id}, {outcome.error}; see {log}", file=sys.stderr)
    if counts["failed"]:
        return 1
    if counts["interrupted"] or counts["not started"]:
        print("stopped; the same command resumes the sweep", file=sys.stderr)
        return RESUME_ME
    return 0


def _workers(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    if options.workers != "auto":
        return int(options.workers)
    from se_lab.sweep.workers import choose_workers

    samples = spec.trials or (spec.search.corners() if spec.search is not None else [])
    workers, reason = choose_workers(samples, execution)
    print(f"--workers auto: {workers} in parallel, {reason}", file=sys.stderr)
    return workers


def _sweep_through_wandb(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    from se_lab.sweep.wandb import register_sweep, run_agents, sweep_table
    from se_lab.training.stopping import RESUME_ME

    path, environment = register_sweep(options.spec, execution)
    completed = run_agents(path, environment, options.agents)
    counts = Counter(sweep_table(spec, path)["status"])
    print(f"{options.spec}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    if counts and set(counts) <= {"finished", "stopped"}:
        return 0
    if completed:
        return 1
    variables = " ".join(f"{name}={shlex.quote(environment[name])}" for name in ("SE_LAB_STORE", "SE_LAB_DATA"))
    print(
        f"stopped; to resume this W&B sweep, run:  {variables} wandb agent -f {path}\n"
        "or run the same command to resume as a new W&B sweep, in which finished trials end at once",
        file=sys.stderr,
    )
    return RESUME_ME


def _sweep_on_slurm(spec: Sweep, options: Any, execution: ExecSpec) -> int:
    from se_lab.sweep.slurm import submit_agents, submit_trials, wait_for
    from se_lab.sweep.status import OVER, SUBMISSIONS, standings, summary

    if options.through_wandb:
        adds_seeds = options.until_halfwidth is not None
        jobs = submit_agents(options.spec, spec, execution, options.slurm, adds_seeds=adds_seeds)
    else:
        tasks = {"workers": int(options.workers), "retries": options.retries}
        jobs = submit_trials(spec, execution, options.slurm, **tasks)
    print(f"submitted to Slurm: {', '.join(jobs)}" if jobs else "nothing to submit")
    if options.wait:
        states = wait_for(spec, execution.store)
        print(summary(spec, states))
        return int(any(s.status not in OVER for s in states))
    print(summary(spec, standings(spec, execution.store)))
    arguments = f"{shlex.quote(options.spec)} --store {shlex.quote(execution.store)}"
    print(f"status of the trials: se-lab status {arguments}")
    print(f"logs of the jobs:     {Path(execution.store, SUBMISSIONS)}")
    return 0
