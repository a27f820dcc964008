"""se-lab train."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def train(argv: list[str]) -> int:
    """Run one trial."""
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
