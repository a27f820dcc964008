"""The report: one self-contained HTML page of a study.

In: the records of its trials. Out: a page with the table, figures, every trial, and what their files hold.
"""

from se_lab.report.page.report import write_report as write_report
