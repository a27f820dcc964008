"""Read a W&B sweep spec, and run its trials locally, on Slurm or under W&B agents.

In: a sweep spec, such as a file in sweeps/. Out: finished trials in the store.
"""
