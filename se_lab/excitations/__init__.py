"""Inspect trained units: capture gates, compute statistics, draw figures and write pages.

In: a trained net and images. Out: a statistics file, figures, an explorer page.
"""
