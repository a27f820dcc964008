"""The figures of a study, each computed once and drawn with Matplotlib and with Plotly.

In: trials grouped into variants. Out: charts, Matplotlib figures, files, and dictionaries for Plotly.
"""
