"""What the rows of a table have in common, and which of their values are defaults."""

from __future__ import annotations

import pandas as pd

from se_lab.report.columns import COLUMNS, SPEC_SECTIONS, value_text, value_texts
from se_lab.report.variants import INSERTION, Study
from se_lab.spec import RunSpec

_IN_TITLE = ("model.backbone", "data.name", "train.epochs")
_SE = "model.se."


def settings_notes(study: Study) -> list[str]:
    """Return notes on the settings that all rows share, those of SE units, and the defaults among the varied ones."""
    default = {key: value_text(value) for key, value in RunSpec().flat().items()}
    trials = study.trials
    with_units = trials[trials[INSERTION] != "none"] if INSERTION in trials else trials
    fixed = [str(key) for key in trials if str(key).startswith(SPEC_SECTIONS) and key not in study.keys]
    everywhere = _shared(trials, [key for key in fixed if not key.startswith(_SE)])
    units = _shared(with_units, [key for key in fixed if key.startswith(_SE)])
    notes = []
    chosen = [key for key in everywhere if key not in _IN_TITLE and everywhere[key] != default.get(key)]
    if chosen:
        notes.append(f"All rows: {_listed(everywhere, chosen)}; other settings are at their defaults.")
    if own := [key for key in units if units[key] != default.get(key)]:
        notes.append(f"Rows with SE: {_listed(units, own)}.")
    if same := [key for key in units if units[key] == default.get(key)]:
        notes.append(f"Rows with SE, at the default: {_listed(units, same)}.")
    varied = [key for key in study.keys if (value_texts(study.variants[key].dropna()) == default.get(key)).any()]
    if varied:
        notes.append(f"Defaults among the rows: {_listed(default, varied)}.")
    return notes


def _shared(trials: pd.DataFrame, keys: list[str]) -> dict[str, str]:
    """Return the values, as text, of the keys that have one value."""
    values = {key: value_texts(trials[key]).unique() for key in keys}
    return {key: str(several[0]) for key, several in values.items() if len(several) == 1}


def _listed(values: dict[str, str], keys: list[str]) -> str:
    labels = [COLUMNS[key].label if key in COLUMNS else key.rpartition(".")[2].replace("_", " ") for key in keys]
    return ", ".join(f"{label} {values[key]}" for label, key in zip(labels, keys, strict=True))
