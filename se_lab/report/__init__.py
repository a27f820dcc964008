"""Tables, statistics and plots of ablations: functions of a DataFrame of trials, one row each."""

from se_lab.report.columns import COLUMNS, Column, ReportError
from se_lab.report.figures.gallery import COSTS, KINDS, draw_figure, draw_figures
from se_lab.report.figures.look import STYLES, Look, save_figure
from se_lab.report.page import write_report
from se_lab.report.paper_costs import count_paper_costs
from se_lab.report.published import paper_cost_table, paper_rows
from se_lab.report.render import FORMATS, Table
from se_lab.report.tables import ablation_table, pivot_table
from se_lab.report.to_wandb import send_report
from se_lab.report.variants import filter_records, group_variants

__all__ = [
    "COLUMNS",
    "COSTS",
    "FORMATS",
    "KINDS",
    "STYLES",
    "Column",
    "Look",
    "ReportError",
    "Table",
    "ablation_table",
    "count_paper_costs",
    "draw_figure",
    "draw_figures",
    "filter_records",
    "group_variants",
    "paper_cost_table",
    "paper_rows",
    "pivot_table",
    "save_figure",
    "send_report",
    "write_report",
]
