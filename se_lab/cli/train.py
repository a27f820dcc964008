"""se-lab train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from se_lab.stopping import RESUME_ME, InterruptedTrialError, left_when_told


def train(argv: list[str]) -> int:
    """Run one trial, or rehearse it."""
    with left_when_told():
        return _train(argv)


def _train(argv: list[str]) -> int:
    from se_lab.flags import parse_trial, trial_parser

    parser = trial_parser(prog="se-lab train", description="Run one trial, or go on with it.")
    parser.add_argument(
        "--dry-run", action="store_true", help="Build it, take two steps, save and load it, and tell what it will take."
    )
    spec, execution = parse_trial([flag for flag in argv if flag != "--dry-run"], parser)
    from se_lab.train import run

    try:
        if "--dry-run" in argv:
            from se_lab.rehearse import rehearse

            rehearsal = rehearse(spec, execution)
            print(rehearsal.text())
            return int(rehearsal.disk_bytes > rehearsal.free_bytes)
        print(f"trial {spec.trial_id} in {Path(execution.store, spec.trial_id)}")
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
