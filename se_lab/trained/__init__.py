"""Load, evaluate and export a trained net, or use it as the backbone of a detector.

Input: the folder of a trial or an export. Output: a module, errors with intervals, files.
"""
