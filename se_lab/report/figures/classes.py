"""The difference between two variants' errors in each class."""

from __future__ import annotations

import numpy as np

from se_lab.report.columns import ReportError, interval_text, number_text, unknown_name
from se_lab.report.figures.chart import Axis, Chart, Panel, Series, Text, interval_limits
from se_lab.report.predictions import class_differences
from se_lab.report.variants import Study

MOST_CLASSES = 40


def classes(study: Study, metric: str, contrast: tuple[str, str] | None = None) -> Chart:
    """Chart the difference between two variants' errors in each class, with Holm's correction.

    By default, the variant with the lowest mean is compared with its baseline. Filled squares have a corrected p below
    0.05. At most forty classes are shown, those with the largest differences. Raises ReportError for an unknown
    variant, and if trials have no predictions of the same images.
    """
    first, second = _pair(study, metric, contrast)
    names = study.variants["variant"]
    differences = class_differences(study, metric, first, second)
    candidates = np.flatnonzero(np.isfinite(differences.mean))
    selection = candidates[np.sort(np.argsort(-np.abs(differences.mean[candidates]), kind="stable")[:MOST_CLASSES])]
    mean, half, p = differences.mean[selection], differences.half_width[selection], differences.p[selection]
    heights = np.arange(len(selection), dtype=np.float64)
    labels = [differences.names[c] for c in selection]
    texts = [interval_text(*pair, 1, signed=True) for pair in zip(mean, half, strict=True)]
    hover = [
        f"{label}\n{text} points\np, Holm: {number_text(p_value, 3)}\n{differences.images[c]} images"
        for label, text, p_value, c in zip(labels, texts, p, selection, strict=True)
    ]
    squares = Series(
        mean, heights, marker="square", color="#0072B2", hollow=~(p < 0.05), x_half=half, hover=hover, front=1,
        keys=[(first, -1)] * len(heights),
    )  # fmt: skip
    panel = Panel(
        Axis("Δ error of the class (points)", interval_limits(mean, half, np.append(mean, 0.0))),
        Axis("class", (heights[-1] + 0.7, -0.7), ticks=list(zip(heights, labels, strict=True)), names=True),
        [squares],
        texts=[Text(0, y, text, at_edge=True) for y, text in zip(heights, texts, strict=True)],
        zero="x",
    )
    method = (
        "Welch's t test over seeds, for fixed images" if differences.seeds > 1 else "McNemar's test, without intervals"
    )
    note = f"{names.iloc[first]} − {names.iloc[second]}: {method}; filled squares have p < 0.05, corrected (Holm)"
    if len(candidates) > len(selection):
        note += f"; {len(candidates) - len(selection)} smaller differences are omitted"
    title = f"Errors by class: {names.iloc[first]} against {names.iloc[second]}"
    return Chart("classes", title, f"{note}.", [panel], rows=len(heights) + 1.4, choice=str(names.iloc[first]))


def _pair(study: Study, metric: str, contrast: tuple[str, str] | None) -> tuple[int, int]:
    """Return the numbers of the two variants."""
    names = list(study.variants["variant"])
    if contrast is not None:
        for name in contrast:
            if name not in names:
                raise unknown_name("variant", name, names)
        if contrast[0] == contrast[1]:
            raise ReportError(f"A contrast needs two different variants, not {contrast[0]!r} twice.")
        return names.index(contrast[0]), names.index(contrast[1])
    means = study.by_seed(metric).mean(axis=1).to_numpy()
    candidates = np.flatnonzero((study.baseline >= 0) & ~study.is_baseline & np.isfinite(means))
    if not len(candidates):
        raise ReportError("No variant has a baseline (insertion none); give two variants to compare.")
    variant = int(candidates[np.argmin(means[candidates])])
    return variant, int(study.baseline[variant])
