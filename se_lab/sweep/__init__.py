"""Read a W&B sweep spec, and run its trials locally, on Slurm or under W&B agents.

Input: a sweep spec, such as a file in sweeps/. Output: finished trials in the store.
"""
