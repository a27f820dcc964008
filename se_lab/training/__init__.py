"""Run a trial: train and test its net by Lightning, with checkpoints, metrics and a record.

In: a `RunSpec` and an `ExecSpec`. Out: a `RunRecord` in the store.
"""
