"""What the ranks of one trial share: collectives, and batch norm over all ranks.

In: tensors and objects of a rank. Out: the same on every rank.
"""
