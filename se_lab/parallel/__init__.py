"""Communication among the ranks of a trial: collectives, and batch norm over all ranks.

In: tensors and objects of one rank. Out: values that are equal on all ranks.
"""
