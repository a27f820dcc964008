"""The report: one self-contained HTML page of a study.

In: the records of its trials. Out: a page with the table, figures, every trial, and what their files hold.
"""

from se_lab.report.page.report import write_report as write_report
from se_lab.report.page.site import Chapter as Chapter
from se_lab.report.page.site import by_data_set as by_data_set
from se_lab.report.page.site import write_site as write_site
