"""The command se-lab: each verb parses its flags, calls one function of the package, and prints."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from se_lab.spec import SpecError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 1 something failed, 2 wrong input, 75 stopped and resumable."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from se_lab import __version__

        print(f"se-lab {__version__}")
        return 0
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")  # timm's import
    verb, *rest = argv
    if verb not in VERBS:
        print(f"se-lab: no verb is called {verb!r}{nearest(verb, VERBS)}; se-lab --help lists them", file=sys.stderr)
        return 2
    try:
        return VERBS[verb][1](rest)
    except (ValueError, OSError) as error:
        if not _is_told_plainly(error):
            raise
        print(f"se-lab {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"se-lab {verb}: stopped", file=sys.stderr)
        return 75 if verb in ("train", "sweep") else 130


def _is_told_plainly(error: Exception) -> bool:
    """Tell whether an error's message is all a user needs; whoever raised a DataError has loaded se_lab.data."""
    data = sys.modules.get("se_lab.data")
    wrong_paths = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
    return isinstance(error, (SpecError, *wrong_paths)) or (data is not None and isinstance(error, data.DataError))


def _overview() -> str:
    lines = ["usage: se-lab VERB ...", "", "Squeeze-and-Excitation ablations on timm backbones.", ""]
    lines += [f"  {name:<12} {about}" for name, (about, _) in VERBS.items()]
    return "\n".join([*lines, "", "se-lab VERB --help tells a verb's flags."])


def _train(argv: list[str]) -> int:
    from se_lab.flags import parse_trial, trial_parser

    parser = trial_parser(prog="se-lab train", description="Run one trial, or go on with it.")
    spec, execution = parse_trial(argv, parser)
    from se_lab.train import RESUME_ME, InterruptedTrialError, run

    print(f"trial {spec.trial_id} in {Path(execution.store, spec.trial_id)}")
    try:
        if execution.wandb and "WANDB_SWEEP_ID" in os.environ:  # an agent of W&B's calls
            from se_lab.sweep.wandb import run_for_agent

            record = run_for_agent(spec, execution)
        else:
            record = run(spec, execution)
    except InterruptedTrialError:
        print(f"stopped; the same command goes on with trial {spec.trial_id}", file=sys.stderr)
        return RESUME_ME
    for key, value in record.metrics.items():
        print(f"{key:<18} {value:.4g}")
    return 0


def _sweep(argv: list[str]) -> int:
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


def _sync(argv: list[str]) -> int:
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


def _table(argv: list[str]) -> int:
    from se_lab.report.columns import COLUMNS
    from se_lab.report.render import FORMATS

    parser = _runs_parser("se-lab table", "The ablation table of trials that have run.", runs="*")
    parser.add_argument("--rows", nargs="+", metavar="KEY", help="The spec's keys that tell rows apart.")
    parser.add_argument("--columns", nargs="+", metavar="KEY", help=f"Of {', '.join(COLUMNS)}, or what was logged.")
    parser.add_argument("--pivot", nargs=2, metavar=("ROW", "COLUMN"), help="The metric by two of the spec's keys.")
    parser.add_argument("--power", type=float, help="How many seeds it takes to tell a difference of this size.")
    parser.add_argument(
        "--paper", metavar="TABLE", help="The SE paper's figures beside ours: table_10_reduction, or 10."
    )
    parser.add_argument(
        "--costs-only", action="store_true", help="Count the nets of the paper's TABLE, or of all, without any trial."
    )
    parser.add_argument("--format", default="terminal", choices=FORMATS, help="How it is written.")
    parser.add_argument("-o", "--output", help="A file to write instead of the terminal.")
    options = parser.parse_args(argv)
    from se_lab.report import ablation_table, count_paper_costs, paper_cost_table, pivot_table

    if options.costs_only == bool(options.runs):
        raise SpecError("give RUNS, or else --paper TABLE --costs-only, which needs none")
    where = _where(options.where)
    if options.costs_only:
        paper = options.paper or "all"
        table = paper_cost_table(count_paper_costs(paper, lambda text: print(text, file=sys.stderr, flush=True)))
    elif options.pivot:
        if given := [name for name in ("rows", "columns", "power", "paper") if getattr(options, name) is not None]:
            raise SpecError(f"--{given[0]} does not go with --pivot, which has one metric and two keys")
        table = pivot_table(_records(options), *options.pivot, metric=options.metric, where=where)
    else:
        table = ablation_table(
            _records(options),
            metric=options.metric,
            columns=options.columns,
            rows=options.rows,
            where=where,
            power=options.power,
            paper=options.paper,
        )
    text = table.render(options.format)
    if options.format == "csv":
        print(*table.notes, sep="\n", file=sys.stderr)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    else:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def _plot(argv: list[str]) -> int:
    from se_lab.report.gallery import COSTS, KINDS

    parser = _runs_parser("se-lab plot", "Figures of trials that have run: by default every one that they can give.")
    parser.add_argument("--kind", nargs="+", choices=KINDS, help="Only these.")
    parser.add_argument("--cost", nargs="+", choices=COSTS, default=COSTS, help="What a trade-off is against.")
    parser.add_argument("-o", "--output", default="figures", help="The folder to write into.")
    parser.add_argument("--formats", nargs="+", default=["png", "svg"], choices=("png", "svg", "pdf"), help="Of files.")
    options = parser.parse_args(argv)
    from se_lab.report import draw_figures, save_figure

    where, written, left_out = _where(options.where), 0, []
    for name, figure in draw_figures(
        _records(options), options.kind or KINDS, options.cost, options.metric, where=where
    ):
        if isinstance(figure, str):
            left_out.append(f"{name} left out: {figure}")
            continue
        for path in save_figure(figure, Path(options.output, name), options.formats):
            print(path, flush=True)
            written += 1
    for line in left_out:
        print(line, file=sys.stderr)
    return 2 if left_out and (options.kind or not written) else 0


def _report(argv: list[str]) -> int:
    parser = _runs_parser("se-lab report", "One page of a study that needs nothing else: table, figures, every trial.")
    parser.add_argument("-o", "--output", default="report.html", help="The page to write.")
    options = parser.parse_args(argv)
    from se_lab.report import write_report
    from se_lab.sweep.grammar import read_sweep

    records = _records(options)
    sweeps = [read_sweep(run) for run in options.runs if Path(run).suffix in (".yaml", ".yml")]
    page = write_report(
        records,
        options.output,
        title=", ".join(sweep.name for sweep in sweeps) or f"Trials in {', '.join(options.runs)}",
        question=[sweep.description for sweep in sweeps if sweep.description],
        metric=options.metric,
        where=_where(options.where),
    )
    print(page)
    return 0


def _excitations(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="se-lab excitations",
        description="What the SE units of trained nets do: statistics of their gates, the SE paper's Figures 6 and 7, "
        "and a page to explore them. An interrupted run goes on where it stopped.",
    )
    parser.add_argument("nets", nargs="*", metavar="CHECKPOINT|timm:NAME", help="Checkpoints, or folders of trials.")
    parser.add_argument("--sweep", nargs="+", metavar="RUNS", help="Every trial of sweep specs or stores instead.")
    _add_where(parser)
    parser.add_argument("--store", help="Where the trials of specs are; by default SE_LAB_STORE, else runs.")
    parser.add_argument("--data", help="digits or folder:PATH; by default what a trial was tested with.")
    parser.add_argument(
        "--classes", default="", help="For the figures, separated by commas: names, WordNet ids, numbers."
    )
    parser.add_argument("--images-per-class", type=int, help="As many random images of each class; by default all.")
    parser.add_argument("--redundancy", action="store_true", help="The error with each unit held at its mean as well.")
    parser.add_argument(
        "--thumbnails", action="store_true", help="Show the images that excite a channel most and least."
    )
    parser.add_argument("-o", "--output", help="The folder to write into; by default excitations/ in a trial's folder.")
    parser.add_argument("--batch-size", type=int, default=64, help="Images at a time.")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="Where the net runs.")
    parser.add_argument("--data-workers", type=int, default=2, help="Processes that read files.")
    parser.add_argument("--wandb", metavar="PROJECT", help="Give the trials' W&B runs histograms and figures.")
    options = parser.parse_args(argv)
    if bool(options.nets) == bool(options.sweep):
        raise SpecError("se-lab excitations takes checkpoints or timm:NAME, or else --sweep RUNS")
    from se_lab.report.excitation_collect import Looking
    from se_lab.report.excitations import Request, look_across, look_into
    from se_lab.spec import ExecSpec

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    looking = Looking(options.images_per_class, options.device, options.thumbnails, options.redundancy, say)
    request = Request(
        data=options.data,
        classes=[name for name in options.classes.split(",") if name.strip()],
        output=options.output,
        batch_size=options.batch_size,
        root=ExecSpec().data_root,
        workers=options.data_workers,
        wandb=options.wandb,
        looking=looking,
    )
    if options.sweep:
        from se_lab.report import filter_records

        options.runs = options.sweep
        written = look_across(filter_records(_records(options), _where(options.where)), request)
    else:
        written = look_into(options.nets, request)
    for path in written:
        print(path)
    return 0


def _profile(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="se-lab profile",
        description="Parameters, MACs and element operations of a net (give the flags of train), or of a sweep's nets.",
    )
    parser.add_argument("--sweep", metavar="SPEC", help="A W&B sweep spec: a row for each of its trials.")
    parser.add_argument(
        "--against-paper",
        nargs="?",
        const="all",
        metavar="TABLE",
        help="Every cost that the SE paper prints, or one of its tables, beside ours.",
    )
    parser.add_argument("--image-size", type=int, default=224, help="Side of the image in pixels.")
    parser.add_argument("--classes", type=int, default=1000, help="Outputs of the classifier.")
    parser.add_argument("--measure", action="store_true", help="Measure latency and peak memory on this device, too.")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="How it is written.")
    options, flags = parser.parse_known_args(argv)
    from se_lab.flags import parse_trial

    spec, execution = parse_trial(flags)
    from se_lab.report import costs

    if options.against_paper:
        rows = costs.paper_costs(options.against_paper)
    elif options.sweep:
        from se_lab.sweep.grammar import read_sweep

        rows = costs.sweep_costs(read_sweep(options.sweep).trials, execution.data_root)
    else:
        size = (3, options.image_size, options.image_size)
        rows = costs.net_costs(spec.model, options.classes, size)
        if options.measure:
            rows[0] |= costs.measured(spec.model, options.classes, size, execution.device)
    print(costs.render(rows, options.format))
    return 0


def _models(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="se-lab models", description="Backbones that can take SE units.")
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="Such as 'resnet*', or part of it.")
    options = parser.parse_args(argv)
    from se_lab.listing import list_backbones

    seen = able = 0
    for listing in list_backbones(options.pattern):
        print(listing.text(), flush=True)
        seen, able = seen + 1, able + bool(listing.places)
    print(f"{able} of {seen} can take SE units")
    return 0


def _runs_parser(prog: str, description: str, runs: str = "+") -> Any:
    import argparse

    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("runs", nargs=runs, metavar="RUNS", help="Sweep specs (their trials, in the store) or stores.")
    parser.add_argument("--store", help="Where the trials of specs are; by default SE_LAB_STORE, else runs.")
    parser.add_argument("--metric", default="test/top1_error", help="What is compared; test/top1_error by default.")
    _add_where(parser)
    return parser


def _add_where(parser: Any) -> None:
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="Only trials with these values; of one key, any."
    )


def _where(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a key that comes several times has any of its values."""
    values: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SpecError(f"--where takes KEY=VALUE, such as model.se.squeeze=max, not {pair!r}")
        values.setdefault(key, []).append(value)
    return {key: several[0] if len(several) == 1 else several for key, several in values.items()}


def _records(options: Any) -> Any:
    from se_lab.sweep.records import load_records

    return load_records(options.runs, options.store)


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": ("run one trial, or go on with it", _train),
    "sweep": ("run every trial of a W&B sweep spec, here", _sweep),
    "table": ("the ablation table of trials that have run", _table),
    "profile": ("what nets cost: parameters, MACs, element operations", _profile),
    "models": ("the backbones that can take SE units", _models),
    "sync": ("send trials that ran offline to W&B", _sync),
    "plot": ("figures of trials that have run", _plot),
    "report": ("one page of a study: table, figures, every trial", _report),
    "excitations": ("what the SE units of trained nets do", _excitations),
}

if __name__ == "__main__":
    sys.exit(main())
