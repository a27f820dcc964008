"""Draw the figures of a study: what each shows is computed once, then drawn as an image and for the page.

In: trials sorted into variants. Out: charts, Matplotlib figures, files, and dictionaries for Plotly.
"""
