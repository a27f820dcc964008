"""Tables, statistics and plots of ablations: functions of a DataFrame of trials, one row each."""

from se_lab.report.columns import COLUMNS, Column, ReportError
from se_lab.report.figures.canvas import save_figure
from se_lab.report.figures.curves import training_figure
from se_lab.report.figures.differences import difference_figure, reduction_figure
from se_lab.report.figures.gallery import COSTS, KINDS, draw_figures
from se_lab.report.figures.heatmap import heatmap_figure, parallel_figure
from se_lab.report.figures.tradeoff import tradeoff_figure
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
    "Column",
    "ReportError",
    "Table",
    "ablation_table",
    "count_paper_costs",
    "difference_figure",
    "draw_figures",
    "filter_records",
    "group_variants",
    "heatmap_figure",
    "paper_cost_table",
    "paper_rows",
    "parallel_figure",
    "pivot_table",
    "reduction_figure",
    "save_figure",
    "send_report",
    "tradeoff_figure",
    "training_figure",
    "write_report",
]
