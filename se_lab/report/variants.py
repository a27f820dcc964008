"""Group trials into variants, and find the baseline of each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from se_lab.report.columns import (
    SPEC_SECTIONS,
    ReportError,
    column,
    distinct_values,
    full_key,
    is_missing,
    unknown_name,
    value_text,
    value_texts,
)
from se_lab.report.notes import missing_notes, name_list
from se_lab.spec.text import counted

BASELINE = "no SE"
INSERTION = "model.se.insertion"
DEFAULT_LEVEL = 0.95
_SE = "model.se."


@dataclass(frozen=True)
class Study:
    """Trials grouped by variant.

    trials: the records, one row per trial, with the number of its `variant`.
    variants: one row per variant, indexed by number, in the order of the table: groups in order of appearance, each
    with its baseline first. Columns: the varied keys, `variant` (the name) and `group`.
    group_keys, se_keys: the varied keys outside and inside `model.se`.
    group: the number of each variant's group, (V,).
    baseline: the number of each variant's baseline, (V,), −1 without one.
    notes: notes on missing or mixed trials.
    """

    trials: pd.DataFrame
    variants: pd.DataFrame
    group_keys: tuple[str, ...]
    se_keys: tuple[str, ...]
    group: NDArray[np.intp]
    baseline: NDArray[np.intp]
    notes: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All varied keys, starting with the group keys."""
        return self.group_keys + self.se_keys

    @property
    def is_baseline(self) -> NDArray[np.bool_]:
        """Whether each variant is a baseline, (V,)."""
        return np.asarray(self.baseline == np.arange(len(self.baseline)))

    @property
    def level(self) -> float:
        """Confidence level of simultaneous intervals: 0.95, or higher if seeds were added."""
        return 1 - float(self.trials["look_level"].min()) if "look_level" in self.trials else DEFAULT_LEVEL

    @property
    def levels(self) -> tuple[float, float]:
        """The level of intervals, and the level with the same error rate for equivalence tests."""
        return self.level, 2 * self.level - 1

    def by_seed(self, metric: str) -> pd.DataFrame:
        """Return a metric of finished trials by variant and seed, (V, S), NaN if missing."""
        is_finished = (self.trials["status"] == "finished").to_numpy()
        values = pd.to_numeric(self.trials[metric], errors="coerce").to_numpy(dtype=float)[is_finished]
        codes, seeds = pd.factorize(self.trials["seed"].to_numpy()[is_finished], sort=True)
        matrix = np.full((len(self.variants), len(seeds)), np.nan)
        matrix[self.trials["variant"].to_numpy()[is_finished], codes] = np.where(np.isfinite(values), values, np.nan)
        table: pd.DataFrame = pd.DataFrame(matrix, index=self.variants.index, columns=pd.Index(seeds, name="seed"))
        return table

    def ended_counts(self) -> NDArray[np.int64]:
        """Return the number of trials of each variant that finished, failed or were stopped, (V,)."""
        is_over = self.trials["status"].isin(("finished", "failed", "stopped"))
        counts = is_over.groupby(self.trials["variant"]).sum().reindex(self.variants.index)
        return np.asarray(counts.fillna(0), dtype=np.int64)

    def bound(self, metric: str, better: str | None) -> NDArray[np.float64]:
        """Return means of a metric (V,), with the group's worst value for failed trials.

        This is worst-rank imputation (Lachin 1999): the mean over finished trials alone would be biased.
        """
        values = self.by_seed(metric)
        n = values.notna().sum(axis=1).to_numpy()
        extremes = values.min(axis=1) if better == "higher" else values.max(axis=1)
        worst_values = extremes.groupby(self.group).transform("min" if better == "higher" else "max").to_numpy()
        totals = np.maximum(self.ended_counts(), n)
        sums = values.sum(axis=1).to_numpy() + np.where(totals > n, worst_values, 0.0) * (totals - n)
        return np.asarray(np.where(totals > 0, sums / np.maximum(totals, 1), np.nan))

    def per_variant(self, key: str, how: str) -> pd.Series:
        """Return a cost (how="first") or a timing (how="median") of each variant, (V,)."""
        numbers = pd.to_numeric(self.trials[key], errors="coerce")
        return numbers.groupby(self.trials["variant"]).agg(how).reindex(self.variants.index).astype(float)


def filter_records(records: pd.DataFrame, where: Mapping[str, object]) -> pd.DataFrame:
    """Keep the trials with the given column values: {"squeeze": "max"}, or a list of values.

    Values are compared as printed, so strings from the command line match. Baselines are kept by filters on `model.se`
    keys other than the insertion, and trials without a record, whose spec is unknown, by filters on any spec key.
    Raises ReportError for an unknown column, for a filter without a match, and if no trial has a record.
    """
    if where:
        _refuse_no_trials(records)
        _refuse_none_recorded(records)
    for name, value in where.items():
        key = full_key(name, records)
        if key not in records:
            raise unknown_name("column", key, records.columns)
        texts = value_texts(records[key])
        is_list = isinstance(value, (list, tuple)) and not texts.isin([value_text(value)]).any()
        allowed_texts = {text for item in (value if is_list else [value]) for text in _spellings(item)}  # type: ignore[attr-defined]
        mask = texts.isin(allowed_texts)
        if not mask.any():
            raise unknown_name(f"value of {key}", value, texts.unique())
        if key.startswith(_SE) and key != INSERTION:
            mask |= _is_plain(records)
        if key.startswith(SPEC_SECTIONS) or key == "seed":
            mask |= ~_is_recorded(records)
        records = records[mask]
    return records


def group_variants(records: pd.DataFrame, *, rows: Sequence[str] | None = None) -> Study:
    """Group records, one row per trial from `load_records`, into variants.

    The trials of a variant differ only in the seed. `rows` gives the varied keys in another order, or fewer of them.
    The baseline of a variant is the variant without SE units (insertion none) in the same group, that is, with the same
    values of all keys outside `model.se`. Raises ReportError for empty records, an unknown column, two versions of one
    data set, `rows` that do not distinguish all variants, and two trials with the same variant and seed.
    """
    _refuse_no_trials(records)
    records, notes = _without_unrecorded(records)
    spec = [str(key) for key in records if str(key).startswith(SPEC_SECTIONS)]
    rows = [full_key(name, records) for name in rows or ()]
    for key in rows:
        if key == "seed":
            raise ReportError("seed cannot be a row key, since intervals are over seeds.")
        if key not in spec:
            raise unknown_name("row key", key, spec)
    trials = _without_copies(records.reset_index(drop=True))
    _refuse_two_versions(trials)

    is_plain = _is_plain(trials)
    varied_keys = _varied_keys(trials, spec, is_plain)
    keys = tuple(rows) if rows else varied_keys
    numbers = _codes(trials, keys, is_plain)
    if len(np.unique(numbers)) < len(np.unique(_codes(trials, varied_keys, is_plain))):
        hidden_keys = [key for key in varied_keys if key not in keys]
        raise ReportError(
            f"Rows by {', '.join(keys)} mix trials that also differ in {', '.join(hidden_keys)}; "
            f"add {'this key' if len(hidden_keys) == 1 else 'these keys'} to the rows, or filter the records."
        )
    group_keys = tuple(key for key in keys if not key.startswith(_SE))
    se_keys = tuple(key for key in keys if key.startswith(_SE))
    if not keys:  # a single variant needs a name too
        group_keys = tuple(key for key in ("model.backbone", INSERTION) if key in trials)[:1]
    return _study(trials, numbers, is_plain, group_keys, se_keys, notes)


def _spellings(value: object) -> set[str]:
    texts = {value_text(value)}
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):
            texts.add(value_text(yaml.safe_load(value)))
    return texts


def _without_unrecorded(records: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Remove trials without a recorded spec, whose variant is unknown, and return notes."""
    _refuse_none_recorded(records)
    is_recorded = _is_recorded(records)
    counts = records.loc[~is_recorded, "status"].value_counts(sort=False)
    notes = [
        f"{counted(count, 'trial')} {status}, with unknown variant as there is no record: "
        f"{name_list(records.loc[~is_recorded & (records['status'] == status), 'trial_id'])}."
        for status, count in counts.items()
    ]
    return records[is_recorded], notes


def _refuse_no_trials(records: pd.DataFrame) -> None:
    if records.empty:
        raise ReportError("There are no trials; the records are empty.")
    missing_keys = [key for key in ("trial_id", "status") if key not in records]
    if missing_keys:
        raise ReportError(f"Records of trials need the columns {' and '.join(missing_keys)}.")


def _is_recorded(records: pd.DataFrame) -> pd.Series:
    return records["seed"].notna() if "seed" in records else pd.Series(False, index=records.index)


def _refuse_none_recorded(records: pd.DataFrame) -> None:
    if not _is_recorded(records).any():
        counts = records["status"].value_counts(sort=False)
        raise ReportError(f"No trial has a record yet: {', '.join(f'{n} {status}' for status, n in counts.items())}.")


def _without_copies(trials: pd.DataFrame) -> pd.DataFrame:
    """Keep one copy of each trial that is in several stores, preferably a finished one."""
    if trials["trial_id"].is_unique:
        return trials
    order = (trials["status"] != "finished").argsort(kind="stable")
    rows = trials.iloc[order].drop_duplicates("trial_id").index
    trial_ids = trials["trial_id"].drop_duplicates()
    result: pd.DataFrame = trials.loc[rows].set_index("trial_id").reindex(trial_ids).reset_index()
    return result


def _refuse_two_versions(trials: pd.DataFrame) -> None:
    """Raise ReportError for trials on different versions of one data set."""
    if "data_digest" not in trials:
        return
    names = trials["data.name"] if "data.name" in trials else pd.Series("", index=trials.index)
    for name, digests in trials["data_digest"].dropna().groupby(value_texts(names), sort=False):
        counts = value_texts(digests).value_counts(sort=False)
        if len(counts) > 1:
            versions = ", ".join(f"{value} ({count} trials)" for value, count in counts.items())
            suffix = f" of {name}" if name else ""
            raise ReportError(
                f"The records mix {len(counts)} versions of the data{suffix}, which are not comparable: {versions}. "
                f"Select one, such as --where data_digest={counts.index[0]}."
            )


def _is_plain(trials: pd.DataFrame) -> NDArray[np.bool_]:
    if INSERTION not in trials:
        return np.zeros(len(trials), dtype=bool)
    return np.asarray(trials[INSERTION] == "none", dtype=bool)


def _factorize(values: pd.Series) -> NDArray[np.intp]:
    """Return codes (N,) of distinct values, −1 if missing; lists are compared as text."""
    if pd.api.types.is_object_dtype(values):
        codes, uniques = distinct_values(values)
        texts = [None if is_missing(value) else value_text(value) for value in uniques]
        return np.asarray(pd.factorize(np.array(texts, dtype=object))[0][codes])
    return pd.factorize(values)[0]


def _codes(frame: pd.DataFrame, keys: Sequence[str], plain: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    """Return codes (N,) of the distinct combinations of keys, in order of appearance.

    `plain` marks nets without SE units, whose SE keys are ignored.
    """
    codes = {key: _factorize(frame[key]) for key in keys}
    if plain is not None:
        codes = {key: np.where(plain, -2, code) if key.startswith(_SE) else code for key, code in codes.items()}
        codes["plain"] = plain.astype(np.intp)
    if not codes:
        return np.zeros(len(frame), dtype=np.intp)
    return np.asarray(pd.DataFrame(codes).groupby(list(codes), sort=False).ngroup())


def _varied_keys(trials: pd.DataFrame, spec: Sequence[str], plain: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the varied spec keys, group keys first; SE keys must vary among SE nets.

    If a baseline has only one SE variant, the insertion is the varied key.
    """

    def varies(values: pd.Series) -> bool:
        if not pd.api.types.is_object_dtype(values) and len(values):  # a faster check
            matches = values.array == values.iloc[0]
            return not np.all(matches) and not values.isna().all()
        codes = _factorize(values)
        return bool(len(codes)) and bool(codes.min() != codes.max())

    unit_values = trials.loc[~plain, [key for key in spec if key.startswith(_SE)]]
    group_keys = [key for key in spec if key not in unit_values and varies(trials[key])]
    se_keys = [key for key in unit_values if varies(unit_values[key])]
    if not se_keys and plain.any() and not plain.all():
        se_keys = [INSERTION]
    return (*group_keys, *se_keys)


def _study(
    trials: pd.DataFrame,
    numbers: NDArray[np.intp],
    plain: NDArray[np.bool_],
    group_keys: tuple[str, ...],
    se_keys: tuple[str, ...],
    notes: list[str],
) -> Study:
    """Return a study with variants in the order of the table, their names and baselines."""
    keys = group_keys + se_keys
    first_rows = pd.Series(numbers).drop_duplicates().index.to_numpy()  # each variant's first trial
    group = _codes(trials, group_keys)[first_rows]
    order = np.lexsort((first_rows, ~plain[first_rows], group))
    first_rows, group = first_rows[order], group[order]
    is_plain = plain[first_rows]
    new_numbers = np.empty(len(order), dtype=np.intp)
    new_numbers[numbers[first_rows]] = np.arange(len(order))

    # pandas stores integers as floats in columns with missing values.
    variants = trials.loc[first_rows, list(keys)].reset_index(drop=True).astype(object)
    variants = variants.map(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
    for key in se_keys:
        variants[key] = variants[key].mask(is_plain, None)
    bases = {int(g): i for i, g in enumerate(group) if is_plain[i]}
    baseline = np.array([bases.get(int(g), -1) for g in group], dtype=np.intp)
    group_names, se_names = _names(variants, group_keys), _names(variants, se_keys)
    se_names = [BASELINE if b else name for b, name in zip(is_plain, se_names, strict=True)]
    names = [", ".join(filter(None, pair)) for pair in zip(group_names, se_names, strict=True)]
    variants.insert(0, "variant", names)
    variants.insert(1, "group", group_names)

    trials = trials.assign(variant=new_numbers[numbers])
    _refuse_duplicates(trials)
    notes = notes + missing_notes(trials, variants, group, baseline)
    return Study(trials, variants, group_keys, se_keys, group, baseline, tuple(notes))


def _names(variants: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return names (V,) of the values of the keys, such as `resnet50, r=16`."""
    parts = []
    for key in keys:
        texts = value_texts(variants[key]).map(column(key, keys).short.format)
        parts.append(texts.mask(variants[key].isna() & key.startswith(_SE), ""))
    return [", ".join(filter(None, texts)) for texts in zip(*parts, strict=True)] if parts else [""] * len(variants)


def _refuse_duplicates(trials: pd.DataFrame) -> None:
    doubles = trials[trials.duplicated(["variant", "seed"], keep=False)]
    if len(doubles):
        first_pair = doubles[
            (doubles["variant"] == doubles["variant"].iloc[0]) & (doubles["seed"] == doubles["seed"].iloc[0])
        ]
        raise ReportError(f"Trials {', '.join(first_pair['trial_id'])} have the same spec and seed; keep one of them.")
