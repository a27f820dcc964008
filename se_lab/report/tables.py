"""The ablation table, with errors, differences from the baseline and costs of each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.report import computed, published
from se_lab.report.columns import (
    COLUMNS,
    Column,
    ReportError,
    column,
    full_key,
    number_order,
    range_texts,
    unknown_name,
    value_text,
    value_texts,
    with_prefix,
)
from se_lab.report.computed import Evidence
from se_lab.report.notes import not_measured, reading_notes, unequal_costs, unfinished_notes
from se_lab.report.predictions import with_calibration
from se_lab.report.render import PrintedColumn, Table
from se_lab.report.settings import settings_notes
from se_lab.report.variants import BASELINE, Study, group_variants
from se_lab.spec import nearest
from se_lab.spec.text import counted

SPREADS = ("interval", "std")


def ablation_table(
    records: pd.DataFrame,
    *,
    metric: str = "test/top1_error",
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    paper: str | None = None,
    evidence: Evidence | None = None,
) -> Table:
    """Return a table with a row per variant, in the order of the records, baselines first.

    Failed, missing and unpaired trials are omitted and named in notes.

    Args:
        records: One row per trial, from `load_records`; use `filter_records` for a subset.
        metric: The metric of differences and p values.
        columns: Columns of `se_lab.report.columns` or metrics of the records; by default seeds, the metric, its
            difference, top-5 error if available, parameters, MACs and time per step.
        rows: The spec keys of rows, as for `group_variants`.
        paper: A table of the SE paper to add (`table_10_reduction`, or `10`).
        evidence: How variants are compared.

    Raises:
        ReportError: if no trial has finished, a column is unknown, no trial has the metric, or the records mix versions
            of a data set.
    """
    if any("calibration_error" in name for name in (metric, *(columns or ()))):
        records = with_calibration(records)
    metric, evidence = full_key(metric, records), evidence or Evidence()
    if evidence.spread not in SPREADS:
        raise unknown_name("spread", evidence.spread, SPREADS)
    study = group_variants(records, rows=rows)
    refuse_absent_metric(study, metric)
    request = computed.Request(study, metric, evidence)
    keys = _column_keys(request, columns)
    metrics = list(dict.fromkeys([metric, *(key for key in keys if _kind(study, key) == "metric")]))
    data = study.variants.copy()
    data.insert(2, "is_baseline", study.is_baseline)
    parts = [pd.DataFrame(_metric_columns(study, key, evidence.model), index=data.index) for key in metrics]
    data = pd.concat([data, *parts], axis=1)
    data["n"] = study.by_seed(metric).notna().sum(axis=1)
    data["over"] = study.ended_counts()
    notes = [*study.notes, *(note for key in metrics for note in not_measured(study, key))]
    notes += unfinished_notes(data, column(metric, study.trials))
    printed_columns = [PrintedColumn(column(key, study.trials), key) for key in study.keys]
    for key in keys:
        data, item, remarks = _with_column(request, data, key)
        printed_columns.append(item)
        notes += remarks
    if "difference" in keys:
        notes += computed.comparison_notes(request)
    notes += [computed.contrast_note(request, *names) for names in evidence.contrasts]
    notes += reading_notes(data, metric, metrics, evidence.spread)
    if paper is not None:
        data, paper_columns, remarks = published.add_paper_columns(study, data, paper)
        printed_columns, notes = printed_columns + paper_columns, notes + remarks
    notes += settings_notes(study)
    return Table(_title(study, data["n"]), data, tuple(printed_columns), tuple(dict.fromkeys(notes)))


def pivot_table(
    records: pd.DataFrame,
    index: str,
    across: str,
    *,
    metric: str = "test/top1_error",
) -> Table:
    """Return a table of a metric, with rows for values of `index`, columns for `across`.

    For example reduction ratios × backbones. Numbers are sorted, other values keep the order of the records. Bold is as
    in `ablation_table`. A baseline without a value of `across` is in a note. Raises ReportError as `ablation_table`,
    and if the two keys do not distinguish all variants.
    """
    index, across, metric = (full_key(name, records) for name in (index, across, metric))
    study = group_variants(records, rows=[index, across])
    refuse_absent_metric(study, metric)
    cells = study.variants.assign(is_baseline=study.is_baseline, n=study.by_seed(metric).notna().sum(axis=1))
    cells = cells.assign(**_metric_columns(study, metric))
    col = column(metric, study.trials)
    notes = [*study.notes, *not_measured(study, metric)]
    is_apart = cells["is_baseline"] if across.startswith("model.se.") else cells["is_baseline"] & False
    bounds = cells.loc[is_apart, [metric, f"{metric}:low", f"{metric}:high"]].to_numpy(dtype=float).T
    for name, text in zip(cells.loc[is_apart, "variant"], range_texts(*bounds, decimals=col.decimals), strict=True):
        notes.append(f"{name}: {text} {col.unit}.")
    cells = cells[~is_apart]

    labels = value_texts(cells[index]).mask(cells["is_baseline"] & index.startswith("model.se."), BASELINE)
    rows = labels.iloc[number_order(cells[index])].drop_duplicates()
    data = pd.DataFrame({"variant": rows.to_numpy(), "group": "", "is_baseline": rows.to_numpy() == BASELINE})
    columns = [PrintedColumn(replace(column(index, study.trials), kind="text"), "variant")]
    for value in value_texts(cells[across].iloc[number_order(cells[across])]).drop_duplicates():
        subset = cells[value_texts(cells[across]) == value]
        subset = subset.set_index(labels[subset.index]).reindex(data["variant"])
        keys = {part: f"{value}:{part}" if part else value for part in ("", "low", "high", "best")}
        for part, key in keys.items():
            data[key] = subset[f"{metric}:{part}" if part else metric].to_numpy()
        data[keys["best"]] = data[keys["best"]].eq(True)
        name = column(across, study.trials).short.format(value)
        columns.append(
            PrintedColumn(
                replace(col, key=value, label=name), keys[""], bold=keys["best"], ends=(keys["low"], keys["high"])
            )
        )
    title = f"{col.heading} by {column(index, study.trials).label} and {column(across, study.trials).label}"
    notes += reading_notes(cells, metric, [metric])
    return Table(title, data, tuple(columns), tuple(dict.fromkeys(notes)))


def refuse_absent_metric(study: Study, metric: str) -> None:
    """Raise ReportError if no finished trial has a finite value of a metric."""
    is_finished = study.trials["status"] == "finished"
    if not is_finished.any():
        counts = study.trials["status"].value_counts(sort=False)
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        raise ReportError(f"None of {len(study.trials)} trials has finished: {text}.")

    def is_measured(key: str) -> bool:
        values: pd.Series = study.trials[key]
        return bool(np.isfinite(pd.to_numeric(values[is_finished], errors="coerce")).any())

    if "/" not in metric or metric not in study.trials or not is_measured(metric):
        metrics = [key for key in map(str, study.trials) if "/" in key and is_measured(key)]
        hint = "" if metric in study.trials else nearest(metric, metrics)
        raise ReportError(
            f"No finished trial has a value of {metric!r}{hint or '.'} Measured: {', '.join(metrics) or 'nothing'}."
        )


def default_columns(study: Study, metric: str) -> list[str]:
    """Return the available columns among seeds, metric, difference, top-5 error, and costs."""
    top5 = metric.replace("top1", "top5")
    has_top5 = top5 != metric and top5 in study.trials and study.by_seed(top5).notna().any(axis=None)
    costs = [key for key in ("params", "macs", "step_ms") if key in study.trials and study.trials[key].notna().any()]
    difference = ["difference"] if (study.baseline >= 0).any() else []
    return ["n", metric, *difference, *([top5] if has_top5 else []), *costs]


def _column_keys(request: computed.Request, columns: Sequence[str] | None) -> list[str]:
    """Return the keys of the columns to print, including those for margin and detect."""
    study = request.study
    keys = [full_key(name, study.trials) for name in columns or ()] or default_columns(study, request.metric)
    if request.evidence.margin is not None and "verdict" not in keys:
        keys.insert(keys.index("difference") + 1 if "difference" in keys else len(keys), "verdict")
    if request.evidence.detect is not None and "seeds_needed" not in keys:
        keys.append("seeds_needed")
    return keys


def _with_column(
    request: computed.Request, data: pd.DataFrame, key: str
) -> tuple[pd.DataFrame, PrintedColumn, list[str]]:
    """Add a column to the table's data; return the data, the printed column, and notes.

    Raises:
        ReportError: if no trial has the column, or its key distinguishes variants.
    """
    study, col = request.study, column(request.metric, request.study.trials)
    if key == request.metric or _kind(study, key) == "metric":
        return data, _metric_cells(column(key, study.trials), key, request.evidence.spread), []
    if key == "difference":
        return data, _difference_cells(col, f"{request.metric}:difference"), []
    if key == "n":
        return data, PrintedColumn(COLUMNS["n"], "n", total="over"), []
    if _kind(study, key) == "statistic":
        new_columns, notes = ({}, []) if key in data else computed.STATISTICS[key](request)  # ranks add P(best) too
        is_difference = key == "difference_images"
        item = _difference_cells(column(request.metric), key, COLUMNS[key]) if is_difference else _statistic_cells(key)
        return data.assign(**new_columns), item, notes
    if key not in study.trials:
        names = [name for name, col in COLUMNS.items() if name in study.trials or col.kind == "statistic"]
        raise ReportError(f"No trial has the column {key!r}. Available: {', '.join(names)}.")
    if _kind(study, key) == "spec":
        raise ReportError(f"{key} is a setting; use it as a row key, not as a column.")
    values = study.per_variant(key, "median" if column(key, study.trials).kind == "timing" else "first")
    values = values.astype(int) if (values % 1 == 0).all() else values
    scaled, divisor = with_prefix(column(key, study.trials), float(np.nanmax(values, initial=0.0)))
    return data.assign(**{key: values}), PrintedColumn(scaled, key, divisor=divisor), unequal_costs(study, key)


def _kind(study: Study, key: str) -> str:
    return column(key, study.trials).kind


def _metric_columns(study: Study, key: str, model: str = "joint") -> dict[str, NDArray[Any]]:
    """Return mean, interval, difference and significance of a metric, as columns of the data."""
    if key not in study.trials:
        raise unknown_name("column", key, [str(name) for name in study.trials if "/" in str(name)])
    mean, difference = computed.interval(study, key), computed.differences(study, key, model)
    direction = column(key, study.trials).better
    sign = {"lower": 1.0, "higher": -1.0, None: np.nan}[direction]
    score = pd.Series(sign * mean.mean)
    is_best = np.isclose(score, score.groupby(study.group).transform("min"), rtol=1e-9, atol=1e-9)  # includes ties
    bound = study.bound(key, direction)
    base = np.where(study.baseline >= 0, mean.mean[study.baseline], np.nan)
    is_doubtful = sign * bound > sign * base  # not better with the worst value for failed seeds
    return {
        key: mean.mean,
        f"{key}:low": mean.low,
        f"{key}:high": mean.high,
        f"{key}:std": study.by_seed(key).std(axis=1).to_numpy(),
        f"{key}:difference": difference.mean,
        f"{key}:difference:ci95": difference.half_width,
        f"{key}:pairs": difference.n,
        f"{key}:bound": bound,
        f"{key}:best": is_best & difference.excludes_zero & (sign * difference.mean < 0) & ~is_doubtful,
    }


def _metric_cells(col: Column, key: str, spread: str) -> PrintedColumn:
    if spread == "std":
        return PrintedColumn(col, key, f"{key}:std", f"{key}:best")
    return PrintedColumn(col, key, bold=f"{key}:best", ends=(f"{key}:low", f"{key}:high"))


def _difference_cells(col: Column, key: str, base: Column = COLUMNS["difference"]) -> PrintedColumn:
    unit = "points" if col.unit == "%" else col.unit
    label = f"Δ {col.label}" if base.key == "difference" else base.label
    bold = key.replace(":difference", ":best") if base.key == "difference" else None
    return PrintedColumn(
        replace(base, label=label, unit=unit, decimals=col.decimals), key, f"{key}:ci95", bold, signed=True
    )


def _statistic_cells(key: str) -> PrintedColumn:
    col = COLUMNS[key]
    ends = (f"{key}:low", f"{key}:high") if key == "seeds_needed" else None
    return PrintedColumn(replace(col, kind="text") if key in ("verdict", "rank") else col, key, ends=ends)


def _title(study: Study, n: pd.Series) -> str:
    """Return the shared settings of all trials: `cifar_resnet20 on digits, 20 epochs, 3 seeds`."""

    def shared(key: str) -> str:
        values: pd.Series = study.trials.get(key, pd.Series(dtype=object)).dropna()
        return value_text(values.iloc[0]) if len(values) and (values == values.iloc[0]).all() else ""

    data, epochs = _without_folders(shared("data.name")), shared("train.epochs")
    net = shared("model.backbone") or "SE ablation"
    parts = [f"{net} on {data}" if data else net, counted(int(epochs), "epoch") if epochs else ""]
    if n.nunique() == 1:
        parts.append(counted(int(n.iloc[0]), "seed"))
    return ", ".join(filter(None, parts))


def _without_folders(data: str) -> str:
    """Return the name of a data set without parent folders: `b` for `folder:/a/b`."""
    _, colon, path = data.partition(":")
    return path.rstrip("/").rpartition("/")[2] if colon and "/" in path else data
