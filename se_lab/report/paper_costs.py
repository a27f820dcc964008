"""Counted costs of the SE paper's nets, for comparison with the printed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from se_lab.report.columns import ReportError
from se_lab.report.published import paper_rows
from se_lab.report.variants import INSERTION
from se_lab.spec import ModelSpec, SESpec

if TYPE_CHECKING:
    from se_lab.units.costs import Complexity

CROP = {"inception_resnet_v2": 299}
"""Image size in pixels if not 224 (published.yaml, Table 2)."""


def count_paper_costs(paper: str = "all", say: Callable[[str], None] = print) -> pd.DataFrame:
    """Count the nets with printed parameters or MACs in one or all of the paper's tables.

    Returns the rows of `paper_rows` with a printed cost, with `counted_params`, `counted_macs`, and `costs`, a
    Complexity. Each backbone, with 1000 classes, is traced once for all its variants; `say` is called with a line for
    each. Raises ReportError for an unknown table or one without costs.
    """
    from se_lab.units.costs import trace  # imports PyTorch, which other tables do not need

    rows = paper_rows(paper)
    rows = rows[rows[["params", "macs"]].notna().any(axis=1)].reset_index(drop=True)
    if rows.empty:
        raise ReportError(f"The paper's {paper} has no costs.")
    cost_by_index: dict[Any, Complexity] = {}
    for backbone, variants in rows.groupby("model.backbone", sort=False):
        side = CROP.get(str(backbone), 224)
        net_trace = trace(ModelSpec(str(backbone)), 1000, (3, side, side))
        for index, row in zip(variants.index, variants.to_dict("records"), strict=True):
            cost = cost_by_index[index] = net_trace.variant(unit_of(row))
            say(f"{row['row']}: {cost.params:,} parameters, {cost.macs:,} MACs")
    costs = [cost_by_index[index] for index in rows.index]
    result: pd.DataFrame = rows.assign(
        counted_params=[cost.params for cost in costs], counted_macs=[cost.macs for cost in costs], costs=costs
    )
    return result


def unit_of(row: Mapping[Any, Any]) -> SESpec:
    """Return the SE units of a row of `paper_rows`."""
    if row[INSERTION] == "none":
        return SESpec(insertion="none")
    values = {field.name: row.get(f"model.se.{field.name}") for field in fields(SESpec)}
    return SESpec(**{name: value for name, value in values.items() if value is not None})
