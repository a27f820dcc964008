"""se-lab train."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from se_lab.training.stopping import RESUME_ME, InterruptedTrialError, exit_on_signals


def train(argv: list[str]) -> int:
    """Run one trial, or rehearse it."""
    with exit_on_signals():
        return _train(argv)


def _train(argv: list[str]) -> int:
    from se_lab.spec.flags import add_trial_flags, trial_from
    from se_lab.spec.parser import Parser

    parser = Parser("se-lab train", "Run one trial, or resume it.")
    add_trial_flags(parser)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Train two steps, save and load a checkpoint, and print the time and memory of the trial.",
    )
    options = parser.parse_args(argv)
    spec, execution = trial_from(options.given)
    from se_lab.parallel.collectives import find_rank
    from se_lab.store import TrialBusyError
    from se_lab.training.run import run

    rank = find_rank(spec.train)
    is_first_rank = rank is None or rank.number == 0  # under torchrun or srun each rank is a separate command
    try:
        if options.dry_run:
            from se_lab.training.rehearse import rehearse

            rehearsal = rehearse(spec, execution)
            if is_first_rank:
                print(rehearsal.text())
            return int(rehearsal.disk_bytes > rehearsal.free_bytes)
        if is_first_rank:
            print(f"trial {spec.trial_id} in {Path(execution.store, spec.trial_id)}")
        if execution.logger == "wandb" and os.environ.get("WANDB_SWEEP_ID"):  # called by a W&B agent
            from se_lab.sweep.wandb import run_for_agent

            record = run_for_agent(spec, execution)
        else:
            record = run(spec, execution)
    except InterruptedTrialError:
        if is_first_rank:
            print(f"stopped; the same command resumes trial {spec.trial_id}", file=sys.stderr)
        return RESUME_ME
    except TrialBusyError as error:
        if is_first_rank:
            print(f"se-lab train: {error}; run the same command later for the result", file=sys.stderr)
        return RESUME_ME
    if is_first_rank:
        for key, value in record.metrics.items():
            print(f"{key:<18} {math.nan if value is None else value:.4g}")
    return 0
