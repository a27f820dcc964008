"""Load, evaluate and export a trained net, or use it as the backbone of a detector.

In: the folder of a trial or an export. Out: a module, errors with intervals, files.
"""
