"""The report: one self-contained HTML page of a study, its figures drawn by Plotly, without any network."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from se_lab.report import page_figures as draw
from se_lab.report import page_overview
from se_lab.report.columns import column, is_missing, number_text, value_text, value_texts
from se_lab.report.figures.gallery import COSTS
from se_lab.report.published import costs_beside_paper
from se_lab.report.render import Table, cell_texts
from se_lab.report.tables import ablation_table, refuse_absent_metric
from se_lab.report.variants import INSERTION, Study, group_variants
from se_lab.spec import RunSpec
from se_lab.store import RunRecord, read_record

TEMPLATE = Path(__file__).with_name("report_page.html")
PAGE_BYTES = 5_900_000
"""What a page may take with its excitation figures; those that would pass it are named instead."""
TRACEBACK_CHARACTERS = 6_000
"""The end of a traceback, which says what went wrong."""
PICTURES = ("figure_6", "figure_7", "distribution", "selectivity")
"""The excitation figures of a trial that are shown, the most telling first."""


def write_report(
    records: pd.DataFrame,
    path: str | Path,
    *,
    title: str = "SE ablation",
    question: Sequence[str] = (),
    metric: str = "test/top1_error",
    where: Mapping[str, object] | None = None,
) -> Path:
    """Write the page: question, table, figures, costs beside the paper's, excitations, every trial, what failed.

    It has the trials' specs, environments and tracebacks where their folders are at hand. All of it is handed to the
    browser as data and shown as text, so nothing in it can act as markup. 200 trials of 100 epochs take below 6 MB,
    4.8 of them Plotly.

    Args:
        records: One row a trial, as `load_records` gives them.
        path: The file.
        title: The page's title, such as the sweep's name.
        question: What the study asks: a paragraph each, such as the sweep's description.
        metric: What is compared.
        where: Only these trials, as in `ablation_table`.

    Raises:
        ReportError: as `ablation_table`, except where trials have failed and none finished: that the page says.
    """
    from plotly.offline import get_plotlyjs

    study = group_variants(records, where=where)
    kept = [_record(folder) for folder in _folders(study)]
    data: dict[str, Any] = {"title": title, "question": list(question), "figures": []}
    if study.trials["status"].eq("finished").any() or not study.trials["status"].eq("failed").any():
        refuse_absent_metric(study, metric)
        data["table"] = _table(ablation_table(records, metric=metric, where=where), study.keys)
        drawn = (
            draw.tradeoff(study, metric, COSTS),
            draw.differences(study, metric),
            draw.reduction(study, metric),
            draw.curves(study, metric),
            page_overview.heatmap(study, metric),
            page_overview.parallel(study, metric),
        )
        data["figures"] = [figure for figure in drawn if figure]
    costs = costs_beside_paper(study)
    data["paper"] = _table(costs, ()) if costs else None
    data |= _trials(study, kept, metric)
    page = TEMPLATE.read_text(encoding="utf-8").replace("/*PLOTLY*/", get_plotlyjs(), 1)
    used = len(page.encode()) + len(_script_safe(data))
    data["excitations"], data["left_out"] = _excitations(study, PAGE_BYTES - used)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.replace("/*DATA*/", _script_safe(data), 1), encoding="utf-8")
    return path


def _table(table: Table, keys: Sequence[str]) -> dict[str, Any]:
    """Cells as they are printed, with what they sort by: numbers as numbers, names as in their order."""
    columns = []
    for shown in table.shown:
        values = table.data[shown.value]
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
        texts = cell_texts(shown, table.data)
        by = texts if shown.is_text and not np.isfinite(numbers).any() else [_number(value) for value in numbers]
        bold = [bool(best) for best in table.data[shown.bold]] if shown.bold else []
        columns.append({"label": shown.column.heading, "text": shown.is_text, "cells": texts, "by": by, "bold": bold})
    return {"title": table.title, "columns": columns, "notes": list(table.notes), "keys": list(keys)}


def _trials(study: Study, kept: Sequence[RunRecord | None], metric: str) -> dict[str, Any]:
    """Every trial with its spec, environment and command; what all share is told once."""
    spec = [str(key) for key in study.trials if "." in str(key) or key == "seed"]
    texts = pd.DataFrame({key: value_texts(study.trials[key]) for key in spec})
    shared = [key for key in spec if texts[key].nunique() == 1]
    environments: dict[str, int] = {}
    tracebacks: dict[str, int] = {}
    names = study.variants["variant"].to_numpy()
    of = column(metric, study.trials) if metric in study.trials else None
    rows = []
    for number, (row, record) in enumerate(zip(study.trials.to_dict("records"), kept, strict=True)):
        trial: dict[str, Any] = {
            "id": str(row["trial_id"]),
            "variant": int(row["variant"]),
            "name": str(names[row["variant"]]),
            "seed": value_text(row["seed"]),
            "status": str(row["status"]),
            "value": number_text(float(row[metric]), of.decimals) if of and not is_missing(row[metric]) else "",
            "spec": {key: texts[key].iat[number] for key in spec if key not in shared and key != "seed"},
            "error": "" if is_missing(row.get("error")) else str(row["error"]),
        }
        if record is not None:
            about = json.dumps(_environment(record), sort_keys=True)
            trial["environment"] = environments.setdefault(about, len(environments))
            trial["started"] = record.started
            trial["timings"] = {key: f"{value:.4g}" for key, value in record.timings.items() if value is not None}
            trial["command"] = repeat_command(record)
            if record.error:
                text = record.error.strip()[-TRACEBACK_CHARACTERS:]
                trial["traceback"] = tracebacks.setdefault(text, len(tracebacks))
        rows.append(trial)
    return {
        "trials": rows,
        "metric": of.heading if of else metric,
        "shared": {key: texts[key].iat[0] for key in shared},
        "environments": [json.loads(about) for about in environments],
        "tracebacks": list(tracebacks),
        "variants": list(map(str, names)),
    }


def repeat_command(record: RunRecord) -> str:
    """Return the command that repeats a trial: `se-lab train` with every field that is not at its default."""
    default = RunSpec().flat()
    idle = record.spec.get(INSERTION) == "none"
    flags = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in record.spec.items()
        if (key not in default or value != default[key]) and not (idle and value is None)
    ]
    if plugins := record.execution.get("plugins"):
        flags.insert(0, f"--plugins={plugins}")
    return shlex.join(["se-lab", "train", *flags])


def _environment(record: RunRecord) -> dict[str, str]:
    host = {f"host {key}": str(value) for key, value in record.host.items()}
    return host | record.provenance


def _excitations(study: Study, room: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures of the excitations of one trial a variant, while they fit, and the names of those that do not."""
    trials = study.trials
    found: dict[int, tuple[str, str, Path]] = {}
    for variant, trial, folder in zip(trials["variant"], trials["trial_id"], _folders(study), strict=True):
        if folder is not None and (folder / "excitations").is_dir():
            found.setdefault(int(variant), (study.variants["variant"].iloc[variant], str(trial), folder))
    shown: dict[int, dict[str, Any]] = {}
    left_out = []
    for picture in PICTURES:
        for variant, (name, trial, folder) in found.items():
            path = folder / "excitations" / f"{picture}.png"
            if not path.exists():
                continue
            source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            if len(source) > room:
                left_out.append(str(path))
                continue
            room -= len(source)
            entry = shown.setdefault(variant, {"variant": variant, "name": name, "trial": trial, "pictures": []})
            entry["pictures"].append({"name": picture, "source": source})
    return [shown[variant] for variant in sorted(shown)], left_out


def _folders(study: Study) -> list[Path | None]:
    """(T,) the folder of each trial, None where its records came from elsewhere."""
    folders = study.trials.get("folder", pd.Series(index=study.trials.index, dtype=object))
    return [Path(folder) if isinstance(folder, str) and folder else None for folder in folders]


def _record(folder: Path | None) -> RunRecord | None:
    return read_record(folder) if folder is not None else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _script_safe(data: Mapping[str, Any]) -> str:
    """Write JSON in which no `<` can end the script it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")
