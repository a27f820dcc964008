"""Data of all trials of a page: settings, environment, command to reproduce, and error."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from se_lab.report.columns import column, is_missing, number_text, value_text, value_texts
from se_lab.report.page.tables import number
from se_lab.report.variants import Study
from se_lab.spec import RunSpec
from se_lab.store import RunRecord, read_record

TRACEBACK_CHARACTERS = 6_000
"""Maximum length of a traceback, of which the end is kept."""


def folders(study: Study) -> list[Path | None]:
    """Return the folder of each trial (T,), or None if unknown."""
    paths = study.trials.get("folder", pd.Series(index=study.trials.index, dtype=object))
    return [Path(folder) if isinstance(folder, str) and folder else None for folder in paths]


def records_in(places: Sequence[Path | None]) -> list[RunRecord | None]:
    """Return the record of each trial (T,), or None if the folder is unknown or has no record."""
    return [read_record(folder) if folder is not None else None for folder in places]


def trial_data(study: Study, records: Sequence[RunRecord | None], metric: str) -> dict[str, Any]:
    """Return the data of all trials; common settings and environments are listed once."""
    spec = [str(key) for key in study.trials if "." in str(key) or key == "seed"]
    texts = pd.DataFrame({key: value_texts(study.trials[key]) for key in spec})
    shared_keys = [key for key in spec if texts[key].nunique() == 1]
    environments: dict[str, int] = {}
    tracebacks: dict[str, int] = {}
    names = study.variants["variant"].to_numpy()
    col = column(metric, study.trials) if metric in study.trials else None
    rows = []
    for place, (row, record) in enumerate(zip(study.trials.to_dict("records"), records, strict=True)):
        is_measured = col is not None and not is_missing(row[metric])
        trial: dict[str, Any] = {
            "id": str(row["trial_id"]),
            "variant": int(row["variant"]),
            "name": str(names[row["variant"]]),
            "seed": value_text(row["seed"]),
            "status": str(row["status"]),
            "value": number_text(float(row[metric]), col.decimals) if col and is_measured else "",
            "raw": number(float(row[metric])) if is_measured else None,
            "spec": {key: texts[key].iat[place] for key in spec if key not in shared_keys and key != "seed"},
            "error": "" if is_missing(row.get("error")) else str(row["error"]),
        }
        if record is not None:
            environment = json.dumps(_environment(record), sort_keys=True)
            trial["environment"] = environments.setdefault(environment, len(environments))
            trial["started"] = record.started
            trial["timings"] = {key: f"{value:.4g}" for key, value in record.timings.items() if value is not None}
            trial["command"] = repeat_command(record)
            if record.error:
                text = record.error.strip()[-TRACEBACK_CHARACTERS:]
                trial["traceback"] = tracebacks.setdefault(text, len(tracebacks))
        rows.append(trial)
    formats = {key: column(key, study.keys).short.partition("={}") for key in study.keys}
    return {
        "trials": rows,
        "metric": {"key": metric, "heading": col.heading if col else metric},
        "shared": {key: texts[key].iat[0] for key in shared_keys},
        "aliases": {prefix: key for key, (prefix, separator, _) in formats.items() if separator},
        "environments": [json.loads(environment) for environment in environments],
        "tracebacks": list(tracebacks),
        "variants": [
            {"name": str(name), "baseline": bool(base)} for name, base in zip(names, study.is_baseline, strict=True)
        ],
    }


def repeat_command(record: RunRecord) -> str:
    """Return the `se-lab train` command that repeats a trial, with all non-default fields."""
    default = RunSpec().flat()  # None for fields that the unit does not use
    flags = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in record.spec.items()
        if (key not in default or value != default[key]) and not (key.startswith("model.se.") and value is None)
    ]
    for name in ("callbacks", "plugins"):
        if value := record.execution.get(name):
            flags.insert(0, f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return shlex.join(["se-lab", "train", *flags])


def _environment(record: RunRecord) -> dict[str, str]:
    host = {f"host {key}": str(value) for key, value in record.host.items()}
    return host | record.provenance
