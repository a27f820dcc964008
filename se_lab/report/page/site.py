"""A folder of reports: an index, a page a study, and pages of what does not fit on those."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from se_lab.report import computed
from se_lab.report.columns import ReportError, column, range_texts
from se_lab.report.page.excitations import excitation_pages, plain_page
from se_lab.report.page.report import write_report
from se_lab.report.variants import group_variants
from se_lab.store import replacing, write_text_whole

INDEX = "index.html"


@dataclass(frozen=True)
class Chapter:
    """A study of the index."""

    title: str
    question: str
    records: pd.DataFrame

    @property
    def name(self) -> str:
        """What its files are called."""
        return re.sub(r"[^\w.-]+", "-", self.title).strip("-.") or "study"


def by_data_set(chapter: Chapter) -> list[Chapter]:
    """Split a store's trials by data set, as no table compares two."""
    if "data.name" not in chapter.records:
        return [chapter]
    groups = list(chapter.records.groupby("data.name", sort=False))
    if len(groups) < 2:
        return [chapter]
    return [Chapter(f"{chapter.title}, {name}", chapter.question, own) for name, own in groups]


def write_site(
    chapters: Sequence[Chapter],
    folder: str | Path,
    *,
    metric: str = "test/top1_error",
    where: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write an index and a page a study, each with the excitation figures of all its variants on pages beside it.

    Args:
        chapters: The studies, in the index's order.
        folder: The folder to write into.
        metric: The metric to compare.
        where: Keep only these trials, as in `ablation_table`.
        overwrite: Replace files that SE-Lab did not write.

    Returns:
        The index and the studies' pages.

    Raises:
        ReportError: where of no study a page can be made; one that cannot is named in the index.
    """
    folder = Path(folder)
    names = _distinct([chapter.name for chapter in chapters])
    beside = [folder / name for name in names]
    pages = [folder / f"{name}.html" for name in names]
    more = [page for one, place in zip(chapters, beside, strict=True) for page in _pages_beside(one, place, where)]
    rows, written = [], []
    with replacing([folder / INDEX, *pages, *more], overwrite=overwrite):
        for chapter, page, place in zip(chapters, pages, beside, strict=True):
            try:
                question = [chapter.question] if chapter.question else []
                about = {"title": chapter.title, "question": question, "metric": metric, "where": where}
                written.append(write_report(chapter.records, page, beside=place, **about))  # type: ignore[arg-type]
                cells = [f'<a href="{html.escape(page.name)}">{html.escape(chapter.title)}</a>']
                cells += map(html.escape, _summary(chapter, metric, where))
            except ReportError as error:
                cells = [html.escape(chapter.title), html.escape(str(error)), "", ""]
            rows.append("<tr>" + "".join(f'<td class="text">{cell}</td>' for cell in cells) + "</tr>")
        if not written:
            raise ReportError(f"None of the {len(chapters)} studies has a report: {_why(rows[0])}")
        head = "".join(
            f'<th scope="col" class="text">{name}</th>' for name in ("study", "trials", "best variant", "question")
        )
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>"
        write_text_whole(folder / INDEX, plain_page("Studies", f'<div class="scroll">{table}</div>'))
    return [folder / INDEX, *written]


def _pages_beside(chapter: Chapter, folder: Path, where: Mapping[str, object] | None) -> list[Path]:
    try:
        return list(excitation_pages(group_variants(chapter.records, where=where), folder))
    except ReportError:  # the index will say so
        return []


def _summary(chapter: Chapter, metric: str, where: Mapping[str, object] | None) -> list[str]:
    """Return the counts of trials, the best variant, and the question."""
    study = group_variants(chapter.records, where=where)
    counts = study.trials["status"].value_counts(sort=False)
    best = ""
    if metric in study.trials and (study.trials["status"] == "finished").any():
        of, estimate = column(metric, study.trials), computed.interval(study, metric)
        if np.isfinite(estimate.mean).any():
            first = int((np.nanargmax if of.better == "higher" else np.nanargmin)(estimate.mean))
            (text,) = range_texts(*(ends[[first]] for ends in estimate[:3]), decimals=of.decimals)
            best = f"{study.variants['variant'].iloc[first]}: {of.label} {text} {of.unit}".rstrip()
    return [", ".join(f"{count} {status}" for status, count in counts.items()), best, chapter.question]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names with a number at those that come twice or are the index's."""
    seen: dict[str, int] = {Path(INDEX).stem: 1}
    answer = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        answer.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return answer


def _why(row: str) -> str:
    return html.unescape(re.findall(r"<td[^>]*>(.*?)</td>", row)[1])
