"""Computed columns of a table, with notes that explain them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from se_lab.report import joint, predictions, ranks, statistics
from se_lab.report.columns import BLANK, ReportError, column, interval_text, number_text, unknown_name
from se_lab.report.notes import name_list, sign_flip_note
from se_lab.report.statistics import Floats
from se_lab.report.variants import DEFAULT_LEVEL, Study, group_variants


@dataclass(frozen=True)
class Evidence:
    """How the variants of a table are compared with their baselines, and with one another.

    Attributes:
        model: The model of the comparison: joint, pooled, paired or welch (`joint.compare`).
        margin: The difference below which variants count as equivalent, in the metric's unit; adds the column verdict:
            better, worse, equivalent or undecided.
        detect: A difference in the metric's unit; adds a column with the number of seeds needed to detect it.
        contrasts: Pairs of variants to compare in notes.
        spread: The spread shown with a mean: interval (95 %), or std, the standard deviation over seeds.
    """

    model: str = "joint"
    margin: float | None = None
    detect: float | None = None
    contrasts: Sequence[tuple[str, str]] = ()
    spread: str = "interval"


class Request(NamedTuple):
    """The input of a statistic."""

    study: Study
    metric: str
    evidence: Evidence = Evidence()

    @property
    def values(self) -> Floats:
        """The metric by variant and seed, (V, S)."""
        return np.asarray(self.study.by_seed(self.metric).to_numpy(), dtype=np.float64)


Answer = tuple[dict[str, Any], list[str]]
"""New columns of the table's data by name, and notes."""


def interval(study: Study, metric: str) -> statistics.Bounds:
    """Return the mean of a metric over seeds and its interval, for each variant, (V,)."""
    values = study.by_seed(metric).to_numpy()
    if column(metric, study.trials).unit == "%":
        has_images = metric.startswith("test/") and "test_images" in study.trials
        return statistics.error_interval(values, study.per_variant("test_images", "first") if has_images else np.nan)
    estimate = statistics.t_interval(values)
    half = np.where(estimate.varies, estimate.half_width, np.nan)  # equal values do not show a spread
    return statistics.Bounds(estimate.mean, estimate.mean - half, estimate.mean + half, estimate.n)


def differences(study: Study, metric: str, model: str = "joint") -> joint.Comparison:
    """Return each variant's difference from its baseline, with simultaneous intervals."""
    return joint.compare(study.by_seed(metric).to_numpy(), study.group, study.baseline, model, study.level)


def largest_half_width(records: pd.DataFrame, metric: str, level: float) -> float:
    """Return the largest half-width of a table's simultaneous intervals at a confidence level.

    Raises ReportError if no variant is compared with a baseline.
    """
    study = group_variants(records)
    half = joint.compare(study.by_seed(metric).to_numpy(), study.group, study.baseline, level=level).half_width
    if not np.isfinite(half).any():
        raise ReportError("No variant has a baseline (insertion none), so there are no intervals.")
    return float(np.nanmax(half))


def paired_matrix(study: Study, metric: str) -> Floats:
    """Return differences (V, S) of a metric from the baseline of the same group and seed."""
    values = study.by_seed(metric).to_numpy()
    is_compared = (study.baseline >= 0) & ~study.is_baseline
    return np.asarray(values - np.where(is_compared[:, None], values[study.baseline], np.nan))


def comparison_notes(request: Request) -> list[str]:
    """Return notes on the comparison, on pairing by seed, and on mean effects over nets."""
    study, values = request.study, request.values
    comparison = differences(study, request.metric, request.evidence.model)
    has_interval = np.isfinite(comparison.half_width)
    if not has_interval.any():
        return []
    notes = [f"Δ: variant − baseline. {_model_text(comparison, has_interval, study, request.evidence.model)}"]
    if study.level != DEFAULT_LEVEL:
        notes.append(
            f"Seeds were added until the intervals were narrow enough, so ± of Δ is a {100 * study.level:.2f} % "
            "interval; the intervals of all looks hold together in 95 % of studies. Compare adjusted p values with "
            f"{1 - study.level:.2g}, not 0.05."
        )
    paired_widths = joint.compare(values, study.group, study.baseline, "paired", study.level).half_width
    ratio = (
        np.nanmedian(paired_widths[has_interval] / comparison.half_width[has_interval])
        if np.isfinite(paired_widths[has_interval]).any()
        else np.nan
    )
    if request.evidence.model == "joint" and np.isfinite(ratio) and np.isfinite(comparison.correlation):
        notes.append(
            f"The correlation within seeds is {number_text(comparison.correlation, 2)}; a paired comparison would "
            f"make the intervals {ratio:.2g} times as wide."
        )
    return notes + _effects_over_nets(request, comparison)


def contrast_note(request: Request, first: str, second: str) -> str:
    """Return a line such as `r=8 against r=16: −0.02 ± 0.20 points, equivalent at 0.3`.

    Raises ReportError for an unknown variant.
    """
    names = list(request.study.variants["variant"])
    for name in (first, second):
        if name not in names:
            raise unknown_name("variant", name, names)
    if first == second:
        raise ReportError(f"A contrast needs two different variants, not {first!r} twice.")
    col = column(request.metric, request.study.trials)
    pair, group = (names.index(first), names.index(second)), request.study.group
    result, narrow_result = (
        joint.contrast(request.values, pair, group, request.evidence.model, level) for level in request.study.levels
    )
    margin = request.evidence.margin
    verdict = joint.verdicts(result, narrow_result, -1.0 if col.better == "higher" else 1.0, margin)
    word = {"equivalent": f"equivalent at {margin:g}"} if margin is not None else {}
    text = interval_text(result.mean[0], result.half_width[0], col.decimals, signed=True)
    ending = word.get(verdict[0], verdict[0]) or "no interval"
    return f"{first} against {second}: {text}{' points' if col.unit == '%' else ''}, {ending}."


def _model_text(comparison: joint.Comparison, has_interval: Any, study: Study, model: str) -> str:
    if model == "paired":
        return "± is a simultaneous interval (Šidák): each row is paired by seed and has its own variance."
    blocked, variance = comparison.blocked[has_interval], comparison.variance[has_interval]
    seeds = "seeds as blocks" if blocked.all() else "no blocks, as seeds do not differ significantly"
    if blocked.any() and not blocked.all():
        seeds = "seeds as blocks in groups where they differ significantly"
    if model != "joint":
        seeds = "no blocks"
    spread = "a common variance (Dunnett)" if (variance != "row").all() else "a variance per row (Welch, Šidák)"
    if model == "joint":
        spread = "a common variance (Dunnett)"
        if (variance == "baseline").any():
            spread = "a common variance of the variants and a significantly larger one of the baseline (Dunnett)"
        if (variance == "row").any():
            names = name_list(study.variants["variant"][has_interval & (comparison.variance == "row")])
            spread += f", but a separate, significantly larger one for {names}"
    return f"± is a simultaneous {100 * study.level:.4g} % interval for all differences: {spread}; {seeds}."


def _effects_over_nets(request: Request, comparison: joint.Comparison) -> list[str]:
    """Return notes on the mean effect of each unit setting used in two or more groups."""
    study = request.study
    if not study.group_keys or study.group.max() < 1:
        return []
    col, notes = column(request.metric, study.trials), []
    names = study.variants[["group", "variant"]].itertuples(index=False)
    settings = pd.Series([name.removeprefix(f"{group}, ") for group, name in names])
    for setting in settings[~study.is_baseline].drop_duplicates():
        rows = np.flatnonzero((settings == setting) & ~study.is_baseline & np.isfinite(comparison.half_width))
        mean, half, spread = joint.pooled_effect(comparison.mean[rows], comparison.error[rows])
        if np.isfinite(half):
            text = interval_text(mean, half, col.decimals, signed=True)
            notes.append(
                f"{setting}, mean over {len(rows)} groups: {text}, standard deviation between groups "
                f"{number_text(spread, col.decimals)}."
            )
    return notes


def _verdict(request: Request) -> Answer:
    study, col = request.study, column(request.metric, request.study.trials)
    if col.better is None:
        raise ReportError(f"No verdict: it is unknown whether lower or higher {request.metric} is better.")
    margin = request.evidence.margin
    if margin is not None and not margin > 0:
        raise ReportError(f"The equivalence margin is {margin:g}; it must be above 0.")
    comparison, narrow_comparison = (
        joint.compare(request.values, study.group, study.baseline, request.evidence.model, level)
        for level in study.levels
    )
    words = joint.verdicts(comparison, narrow_comparison, 1.0 if col.better == "lower" else -1.0, margin)
    note = "Verdict: better or worse if the simultaneous interval excludes zero"
    if margin is not None:
        rate = 1 - study.level
        note += f", equivalent if two one-sided tests at {rate:.2g} show a difference within ±{margin:g}"
    return {"verdict": np.array(words, dtype=object)}, [f"{note}, else undecided."]


def _p_joint(request: Request) -> Answer:
    p = joint.table_p_values(request.values, request.study.group, request.study.baseline, request.evidence.model)
    return {"p_joint": p}, [
        f"p, adjusted: two-sided, in the {request.evidence.model} model, for all comparisons of the table."
    ]


def _p(request: Request) -> Answer:
    pairs = paired_matrix(request.study, request.metric)
    test = statistics.sign_flip(pairs, np.random.default_rng(0))
    return {"p": test.p}, [sign_flip_note(test, _most_pairs(pairs))]


def _p_holm(request: Request) -> Answer:
    pairs = paired_matrix(request.study, request.metric)
    test = statistics.sign_flip(pairs, np.random.default_rng(0))
    tests = int(np.isfinite(test.p).sum())
    notes = [sign_flip_note(test, _most_pairs(pairs)), f"p, Holm: corrected for the {tests} comparisons of this table."]
    return {"p_holm": statistics.holm(test.p)}, notes


def _most_pairs(pairs: Floats) -> int:
    return int((~np.isnan(pairs)).sum(axis=1).max(initial=0))


def _seeds_needed(request: Request) -> Answer:
    detect = request.evidence.detect
    if detect is None:
        raise ReportError("The column seeds_needed needs detect=, the difference to detect.")
    if detect <= 0:
        raise ReportError(f"The difference to detect is {detect:g}; it must be above 0.")
    study = request.study
    comparison = differences(study, request.metric, request.evidence.model)
    seeds = study.by_seed(request.metric).notna().sum(axis=1).to_numpy(dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = comparison.n if request.evidence.model == "paired" else 2 / (1 / seeds + 1 / seeds[study.baseline])
        has_interval = np.isfinite(comparison.half_width) & (mean > 1)
        sd = np.where(has_interval, comparison.error * np.sqrt(mean), np.nan)
        rows = np.where(has_interval, np.maximum(comparison.df / (mean - 1), 1.0), 1.0)
    low, high = statistics.sd_factors(comparison.df)
    columns = {
        f"seeds_needed{end}": statistics.seeds_needed(sd * factor, detect, rows=rows)
        for end, factor in (("", 1.0), (":low", low), (":high", high))
    }
    notes = [
        f"Seeds needed: to detect a difference of {detect:g} in 80 % of studies (t test at 0.05, variances of the "
        f"{request.evidence.model} model), with a 90 % interval, since the variance is an estimate."
    ]
    is_constant = (
        (comparison.n > 1) & np.isfinite(comparison.mean) & ~np.isfinite(comparison.half_width) & ~study.is_baseline
    )
    if len(names := study.variants["variant"][is_constant]):
        notes.append(f"No number of seeds, as all seeds have the same difference: {name_list(names)}.")
    return columns, notes


def _p_mcnemar(request: Request) -> Answer:
    p, note = predictions.mcnemar_column(request.study, request.metric)
    return {"p_mcnemar": p}, [note]


def _ranks(request: Request) -> Answer:
    ranking = ranks.rank_study(request.study, request.metric, _sign(request), np.random.default_rng(0))
    texts = [
        BLANK if np.isnan(low) else f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"
        for low, high in zip(ranking.low, ranking.high, strict=True)
    ]
    source = "seeds and test images" if ranking.images else "seeds alone"
    note = (
        f"Ranks (95 % interval), P(best) and P(better than no SE): of means within a group, by bootstrap over {source}"
    )
    data = {"rank": np.array(texts, dtype=object), "rank:mean": ranking.rank}
    data |= {"rank:low": ranking.low, "rank:high": ranking.high, "p_best": ranking.best, "p_better": ranking.better}
    return data, [f"{note}; not for single seeds."]


def _p_improvement(request: Request) -> Answer:
    study, values = request.study, _sign(request) * request.values
    is_compared = (study.baseline >= 0) & ~study.is_baseline
    p = [
        ranks.probability_of_improvement(values[row], values[base]) if has_base else np.nan
        for row, (base, has_base) in enumerate(zip(study.baseline, is_compared, strict=True))
    ]
    note = "P(improvement): probability that a trial is better than one of the baseline (Mann-Whitney, as in rliable)."
    return {"p_improvement": np.array(p)}, [note]


def _iqm(request: Request) -> Answer:
    means = np.array([ranks.interquartile_mean(row) for row in request.values])
    return {"iqm": means}, ["IQM: interquartile mean over seeds, as in rliable; needs at least four seeds."]


def _sign(request: Request) -> float:
    """Return 1 if a lower metric is better, else −1; raise ReportError if unknown."""
    direction = column(request.metric, request.study.trials).better
    if direction is None:
        raise ReportError(f"No ranks: it is unknown whether lower or higher {request.metric} is better.")
    return 1.0 if direction == "lower" else -1.0


def _difference_images(request: Request) -> Answer:
    estimate, half, note = predictions.image_differences(request.study, request.metric, np.random.default_rng(0))
    return {"difference_images": estimate, "difference_images:ci95": half}, [note]


def _params_over(request: Request) -> Answer:
    return _added_cost(request.study, "params")


def _macs_over(request: Request) -> Answer:
    return _added_cost(request.study, "macs")


def _added_cost(study: Study, key: str) -> Answer:
    """Return the cost that the units add, in % of the net without units."""
    for column_key in (key, f"{key}_se"):
        if column_key not in study.trials:
            raise ReportError(f"{key}_over needs the column {column_key!r}, which no trial has.")
    totals, units = study.per_variant(key, "first"), study.per_variant(f"{key}_se", "first")
    return {f"{key}_over": 100 * units / (totals - units)}, []


STATISTICS: dict[str, Callable[[Request], Answer]] = {
    "verdict": _verdict,
    "p_joint": _p_joint,
    "p": _p,
    "p_holm": _p_holm,
    "p_mcnemar": _p_mcnemar,
    "rank": _ranks,
    "p_best": _ranks,
    "p_better": _ranks,
    "p_improvement": _p_improvement,
    "iqm": _iqm,
    "difference_images": _difference_images,
    "seeds_needed": _seeds_needed,
    "params_over": _params_over,
    "macs_over": _macs_over,
}
