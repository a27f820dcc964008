"""A W&B sweep spec, its trials, and their execution."""

from se_lab.sweep.execute import Outcome, check_trials, execute
from se_lab.sweep.grammar import Sweep, read_sweep
from se_lab.sweep.records import load_records

__all__ = ["Outcome", "Sweep", "check_trials", "execute", "load_records", "read_sweep"]
