"""Reports of studies as self-contained HTML pages.

In: records of trials. Out: a page with table, figures, and all trials.
"""

from se_lab.report.page.report import write_report as write_report
from se_lab.report.page.site import Chapter as Chapter
from se_lab.report.page.site import by_data_set as by_data_set
from se_lab.report.page.site import write_site as write_site
