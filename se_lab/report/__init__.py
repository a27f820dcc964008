"""Tables, statistics and figures of ablation studies.

In: a DataFrame with one row per trial. Out: tables as text, figures, HTML pages.
"""

from __future__ import annotations

from se_lab.spec.lazy import lazy_names

_HOMES = {
    "COLUMNS": "columns",
    "COSTS": "figures.gallery",
    "FORMATS": "render",
    "KINDS": "figures.gallery",
    "STYLES": "figures.look",
    "Column": "columns",
    "Evidence": "computed",
    "Look": "figures.look",
    "ReportError": "columns",
    "Table": "render",
    "ablation_table": "tables",
    "count_paper_costs": "paper_costs",
    "draw_figure": "figures.gallery",
    "draw_figures": "figures.gallery",
    "filter_records": "variants",
    "group_variants": "variants",
    "paper_cost_table": "published",
    "paper_rows": "published",
    "pivot_table": "tables",
    "save_figure": "figures.look",
    "send_report": "to_wandb",
    "variance_table": "variance",
    "write_report": "page",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
