"""Sweeps: read a W&B sweep spec, plan its trials, run them here, on Slurm or under W&B's agents.

In: a file in sweeps/. Out: finished trials in the store.
"""
