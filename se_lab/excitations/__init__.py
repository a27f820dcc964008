"""Inspect trained units: capture gates, compute statistics, draw figures and write pages.

Input: a trained net and images. Output: a statistics file, figures, an explorer page.
"""
