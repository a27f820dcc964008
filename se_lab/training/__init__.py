"""Run one trial: net, data and task under Lightning, with checkpoints, metrics and the record.

In: a `RunSpec` and an `ExecSpec`. Out: a `RunRecord` in the store.
"""
