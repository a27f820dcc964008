"""Notes on the settings shared by the rows of a table, and on defaults."""

from __future__ import annotations

import pandas as pd

from se_lab.report.columns import COLUMNS, SPEC_SECTIONS, value_text, value_texts
from se_lab.report.variants import INSERTION, Study
from se_lab.spec import RunSpec

_IN_TITLE = ("model.backbone", "data.name", "train.epochs")
_SE = "model.se."


def settings_notes(study: Study) -> list[str]:
    """Return notes on settings shared by all rows or all SE units, and on varied defaults."""
    defaults = {key: value_text(value) for key, value in RunSpec().flat().items()}
    trials = study.trials
    with_units = trials[trials[INSERTION] != "none"] if INSERTION in trials else trials
    fixed_keys = [str(key) for key in trials if str(key).startswith(SPEC_SECTIONS) and key not in study.keys]
    shared_values = _shared_values(trials, [key for key in fixed_keys if not key.startswith(_SE)])
    se_values = _shared_values(with_units, [key for key in fixed_keys if key.startswith(_SE)])
    notes = []
    changed_keys = [key for key in shared_values if key not in _IN_TITLE and shared_values[key] != defaults.get(key)]
    if changed_keys:
        notes.append(f"All rows: {_list_values(shared_values, changed_keys)}; defaults for other settings.")
    if changed_se := [key for key in se_values if se_values[key] != defaults.get(key)]:
        notes.append(f"Rows with SE: {_list_values(se_values, changed_se)}.")
    if default_se := [key for key in se_values if se_values[key] == defaults.get(key)]:
        notes.append(f"Rows with SE, defaults: {_list_values(se_values, default_se)}.")
    varied_keys = [key for key in study.keys if (value_texts(study.variants[key].dropna()) == defaults.get(key)).any()]
    if varied_keys:
        notes.append(f"Defaults among the rows: {_list_values(defaults, varied_keys)}.")
    return notes


def _shared_values(trials: pd.DataFrame, keys: list[str]) -> dict[str, str]:
    """Return the values of the keys with a single value, as text."""
    values = {key: value_texts(trials[key]).unique() for key in keys}
    return {key: str(texts[0]) for key, texts in values.items() if len(texts) == 1}


def _list_values(values: dict[str, str], keys: list[str]) -> str:
    labels = [COLUMNS[key].label if key in COLUMNS else key.rpartition(".")[2].replace("_", " ") for key in keys]
    return ", ".join(f"{label} {values[key]}" for label, key in zip(labels, keys, strict=True))
