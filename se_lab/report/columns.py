"""The columns of tables and figures: key, label, unit, direction and format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from se_lab.spec import SpecError, nearest

Kind = Literal["spec", "metric", "cost", "timing", "statistic", "text"]

SPEC_SECTIONS = ("model.", "data.", "optim.", "train.")
BLANK = "–"
MINUS = "−"


class ReportError(SpecError):
    """An error in a request for a table or figure, or in the trials for it."""


@dataclass(frozen=True)
class Column:
    """The meaning and the format of a column.

    `kind` determines the cell of a variant: a metric is a mean ± interval over seeds, a cost the common value of all
    seeds, a timing the median over seeds; a spec key distinguishes variants; a statistic is computed.
    """

    key: str
    label: str
    kind: Kind
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    """Which of two values is better; the best variant is highlighted."""
    decimals: int | None = None
    """Number of decimals; None for text, and for counts, which get an SI prefix."""
    short: str = "{}"
    """Format of a spec key's value in a variant's name, such as `r={}`."""

    @property
    def heading(self) -> str:
        """The label with its unit: `test top-1 error (%)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def _error(split: str, k: int) -> Column:
    return Column(f"{split}/top{k}_error", f"{split} top-{k} error", "metric", "%", "lower", 2)


_LISTED = (
    Column("model.backbone", "backbone", "spec"),
    Column("model.existing_se", "SE of its own", "spec", short="own SE: {}"),
    Column("model.se.insertion", "insertion", "spec"),
    Column("model.se.unit", "unit", "spec"),
    Column("model.se.reduction", "reduction", "spec", short="r={}"),
    Column("model.se.squeeze", "squeeze", "spec"),
    Column("model.se.excitation", "excitation", "spec"),
    Column("model.se.stages", "stages", "spec", short="stages {}"),
    Column("model.se.bias", "FC bias", "spec", short="bias {}"),
    Column("data.name", "data", "spec"),
    Column("optim.name", "optimizer", "spec"),
    Column("optim.lr", "learning rate", "spec", short="lr={}"),
    Column("train.epochs", "epochs", "spec", short="{} epochs"),
    Column("seed", "seed", "spec", short="seed {}"),
    *(_error(split, k) for split in ("test", "val", "train") for k in (1, 5)),
    *(Column(f"{split}/loss", f"{split} loss", "metric", "", "lower", 4) for split in ("test", "val", "train")),
    Column("test/calibration_error", "test calibration error", "metric", "%", "lower", 2),
    Column("params", "params", "cost", better="lower"),
    Column("params_se", "SE params", "cost", better="lower"),
    Column("macs", "MACs", "cost", better="lower"),
    Column("macs_se", "SE MACs", "cost", better="lower"),
    Column("elementwise", "elementwise ops", "cost", better="lower"),
    Column("step_ms", "step", "timing", "ms", "lower", 1),
    Column("images_per_s", "images/s", "timing", "", "higher", 0),
    Column("seconds", "training", "timing", "s", "lower", 0),
    Column("n", "seeds", "statistic", decimals=0),
    Column("difference", "Δ to no SE", "statistic"),
    Column("verdict", "verdict", "statistic"),
    Column("p_joint", "p, adjusted", "statistic", decimals=3),
    Column("p", "p, sign flip", "statistic", decimals=3),
    Column("p_holm", "p, Holm", "statistic", decimals=3),
    Column("p_mcnemar", "p, McNemar", "statistic", decimals=3),
    Column("rank", "rank, 95 %", "statistic"),
    Column("p_best", "P(best)", "statistic", decimals=2),
    Column("p_better", "P(better)", "statistic", decimals=2),
    Column("p_improvement", "P(improvement)", "statistic", decimals=2),
    Column("iqm", "IQM", "statistic", decimals=2),
    Column("difference_images", "Δ, seeds × images", "statistic"),
    Column("params_over", "params over plain", "statistic", "%", "lower", 2),
    Column("macs_over", "MACs over plain", "statistic", "%", "lower", 2),
    Column("seeds_needed", "seeds needed", "statistic", decimals=0),
)

COLUMNS: dict[str, Column] = {column.key: column for column in _LISTED}


def column(key: str, available: Iterable[object] = ()) -> Column:
    """Return the column for a key, or a new one for a spec key or metric in `available`.

    Raises ReportError for an unknown key.
    """
    if key in COLUMNS:
        return COLUMNS[key]
    names = list(available)
    if key in names and key.startswith(SPEC_SECTIONS):
        label = key.split(".", 1)[1]
        return Column(key, label, "spec", short=f"{label.rsplit('.', 1)[-1]}={{}}")
    if key in names and "/" in key:
        direction: Literal["lower", "higher"] | None = "lower" if re.search("loss|error", key) else None
        return Column(key, key, "metric", "", "higher" if "acc" in key else direction, 4)
    others = [name for name in map(str, names) if name.startswith(SPEC_SECTIONS) or "/" in name]
    raise unknown_name("column", key, [*COLUMNS, *others])


def full_key(name: str, available: Iterable[object]) -> str:
    """Expand a short name of a column: `reduction` to `model.se.reduction`, `lr` to `optim.lr`.

    Full and unknown names are returned unchanged; among metrics, the test metric has priority. Raises ReportError for
    an ambiguous name.
    """
    names = list(map(str, available))
    if name in names or name in COLUMNS:
        return name
    matches = [key for key in names if re.split(r"[./]", key)[-1] == name or key.endswith(f".{name}")]
    matches = [key for key in matches if key == f"test/{name}"] or matches
    if len(matches) > 1:
        raise ReportError(f"{name!r} is ambiguous: {', '.join(matches)}. Use a full name.")
    return matches[0] if matches else name


def unknown_name(what: str, name: object, allowed: Iterable[object]) -> ReportError:
    """Return an error for an unknown name, with the nearest and all allowed names."""
    names = list(dict.fromkeys(map(str, allowed)))
    return ReportError(f"Unknown {what} {name!r}{nearest(str(name), names) or '.'} Known: {', '.join(names)}.")


def is_missing(value: object) -> bool:
    """Return whether a cell of the records is missing (None, NaN, NaT)."""
    return value is None or value is pd.NA or bool(value != value)


def value_text(value: object) -> str:
    """Format a spec value: 16.0 as `16`, a list as `2, 3`, a missing value as a dash."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={value_text(item)}" for key, item in value.items()) or BLANK
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value)) or BLANK
    if is_missing(value):
        return BLANK
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, Real) and not isinstance(value, Integral) else str(value)


def value_texts(values: pd.Series) -> pd.Series:
    """Format each value of a column with `value_text`."""
    codes, uniques = distinct_values(values)
    texts = np.array([value_text(value) for value in uniques], dtype=object)[codes]
    result: pd.Series = pd.Series(texts, index=values.index, dtype=object)
    return result


def distinct_values(values: pd.Series) -> tuple[NDArray[np.intp], Sequence[object]]:
    """Return codes (N,) and the distinct values in order of appearance, including missing."""
    try:
        codes, uniques = pd.factorize(values, use_na_sentinel=False)
    except TypeError:  # lists and mappings have no hash
        items = values.tolist()
        keys = list(map(repr, items))
        item_by_key = dict(zip(keys, items, strict=True))
        return pd.factorize(np.array(keys, dtype=object))[0], list(item_by_key.values())
    return codes, list(uniques)


def number_order(values: pd.Series) -> NDArray[np.intp]:
    """Return indices (N,) that sort numbers, missing first; other values keep their order."""
    numbers = pd.to_numeric(value_texts(values).mask(values.isna()), errors="coerce")
    if (numbers.isna() & values.notna()).any():
        return np.arange(len(values))
    return np.argsort(numbers.fillna(-np.inf).to_numpy(), kind="stable")


def number_text(value: float, decimals: int | None, *, signed: bool = False) -> str:
    """Format a number with fixed decimals and thousands separators; NaN as a dash."""
    if not math.isfinite(value):
        return BLANK
    spec = f"{'+' if signed else ''},.{decimals or 0}f"
    text = format(round(value, decimals or 0) + 0.0, spec)  # + 0.0 turns −0.0 into 0.0
    return text.replace("-", MINUS)


def interval_text(mean: float, half_width: float, decimals: int | None, *, signed: bool = False) -> str:
    """Format a mean with its interval, `7.41 ± 0.32`, or without if there is none."""
    text = number_text(mean, decimals, signed=signed)
    return f"{text} ± {number_text(half_width, decimals)}" if math.isfinite(half_width) else text


def range_texts(
    mean: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    decimals: int | None,
    even: bool = True,
) -> list[str]:
    """Format means with intervals that may be asymmetric.

    The format is `7.41 ± 0.32` if all intervals are symmetric up to rounding and `even` is true, else
    `0.75 (0.42–1.35)`.
    """
    sides = np.round([mean - low, high - mean], decimals or 0)
    if even and not (np.abs(sides[1] - sides[0]) > 1.5 * 10.0 ** -(decimals or 0)).any():
        return [interval_text(*pair, decimals) for pair in zip(mean, np.fmax(*sides), strict=True)]
    ends = [[number_text(end, decimals) for end in pair] for pair in zip(low, high, strict=True)]
    ranges = [f" ({a}–{b})" if a != BLANK else "" for a, b in ends]
    return [number_text(value, decimals) + text for value, text in zip(mean, ranges, strict=True)]


def with_prefix(column: Column, largest: float) -> tuple[Column, float]:
    """Return a count's column with the SI prefix for `largest` (28.072 M), and the divisor.

    Three decimals distinguish reduction ratios that differ by a few thousand parameters.
    """
    if column.decimals is not None:
        return column, 1.0
    for prefix, divisor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if largest >= divisor:
            return replace(column, unit=prefix, decimals=3), divisor
    return replace(column, decimals=0), 1.0
