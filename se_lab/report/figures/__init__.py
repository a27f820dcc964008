"""The figures of a study, each computed once and drawn with Matplotlib and with Plotly.

Input: trials grouped into variants. Output: charts, Matplotlib figures, files, and dictionaries for Plotly.
"""
