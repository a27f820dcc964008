"""Tables, statistics and plots of ablations.

In: a DataFrame of trials, one row each. Out: tables as text, figures, pages.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "COLUMNS": "columns",
    "COSTS": "figures.gallery",
    "FORMATS": "render",
    "KINDS": "figures.gallery",
    "STYLES": "figures.look",
    "Column": "columns",
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
    "write_report": "page",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for: a terminal table needs no SciPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
