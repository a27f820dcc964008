"""Inspect trained units: capture gates, gather statistics per class and unit, draw figures and pages.

In: a trained net and images. Out: DataFrames, figures, an explorer page.
"""
