"""Use a trained net: load it, evaluate it, export it, hand it to a detector.

In: a trial's folder or an exported folder. Out: a module, errors with intervals, files.
"""
