"""Write a folder of reports: an index, a page per study, and pages of excitation figures."""

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
from se_lab.report.variants import Study, filter_records, group_variants
from se_lab.spec import SpecError
from se_lab.store import guard_outputs, write_text_whole

INDEX = "index.html"


@dataclass(frozen=True)
class Chapter:
    """A study in the index."""

    title: str
    question: str
    records: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the chapter's files."""
        return re.sub(r"[^\w.-]+", "-", self.title).strip("-.") or "study"


def by_data_set(chapter: Chapter) -> list[Chapter]:
    """Split the trials of a store by data set; trials without a record are put into the first."""
    names = chapter.records.get("data.name", pd.Series(dtype=object)).dropna()
    if names.nunique() < 2:
        return [chapter]
    by_name = chapter.records["data.name"].fillna(names.iloc[0])
    groups = chapter.records.groupby(by_name, sort=False)
    return [Chapter(f"{chapter.title}, {name}", chapter.question, records) for name, records in groups]


def write_site(
    chapters: Sequence[Chapter],
    folder: str | Path,
    *,
    metric: str = "test/top1_error",
    where: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write an index, a page for each study, and pages with excitation figures.

    Args:
        chapters: The studies, in the order of the index.
        folder: The output folder.
        metric: The metric to compare.
        where: A filter on trials, as for `filter_records`.
        overwrite: Replace files that SE-Lab did not write.

    Returns:
        The paths of the index and of the pages of studies.

    Raises:
        ReportError: if no study has a report; otherwise the index lists those without one.
    """
    folder = Path(folder)
    names = _make_distinct([chapter.name for chapter in chapters])
    folders = [folder / name for name in names]
    pages = [folder / f"{name}.html" for name in names]
    extra_pages = [
        page for study, sub in zip(chapters, folders, strict=True) for page in _variant_pages(study, sub, where or {})
    ]
    rows, reports = [], []
    with guard_outputs([folder / INDEX, *pages, *extra_pages], overwrite=overwrite):
        for chapter, page, sub in zip(chapters, pages, folders, strict=True):
            try:
                question = [chapter.question] if chapter.question else []
                records = filter_records(chapter.records, where or {})
                reports.append(
                    write_report(records, page, title=chapter.title, question=question, metric=metric, subfolder=sub)
                )
                cells = [f'<a href="{html.escape(page.name)}">{html.escape(chapter.title)}</a>']
                cells += map(html.escape, _summary(group_variants(records), metric))
                cells.append(html.escape(chapter.question))
            except SpecError as error:  # a ReportError, or a corrupt file
                cells = [html.escape(chapter.title), html.escape(str(error)), "", ""]
            rows.append("<tr>" + "".join(f'<td class="text">{cell}</td>' for cell in cells) + "</tr>")
        if not reports:
            raise ReportError(f"None of {len(chapters)} studies has a report: {_why(rows[0])}")
        head = "".join(
            f'<th scope="col" class="text">{name}</th>' for name in ("study", "trials", "best variant", "question")
        )
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>"
        write_text_whole(folder / INDEX, plain_page("Studies", f'<div class="scroll">{table}</div>'))
    return [folder / INDEX, *reports]


def _variant_pages(chapter: Chapter, folder: Path, where: Mapping[str, object]) -> list[Path]:
    try:
        return list(excitation_pages(group_variants(filter_records(chapter.records, where)), folder))
    except SpecError:  # the index reports it
        return []


def _summary(study: Study, metric: str) -> list[str]:
    """Return the numbers of trials by status, and the best variant."""
    counts = study.trials["status"].value_counts(sort=False)
    winner = ""
    if metric in study.trials and (study.trials["status"] == "finished").any():
        col, estimate = column(metric, study.trials), computed.interval(study, metric)
        if col.better is not None and np.isfinite(estimate.mean).any():
            index = int((np.nanargmax if col.better == "higher" else np.nanargmin)(estimate.mean))
            (text,) = range_texts(*(ends[[index]] for ends in estimate[:3]), decimals=col.decimals)
            winner = f"{study.variants['variant'].iloc[index]}: {col.label} {text} {col.unit}".rstrip()
    return [", ".join(f"{count} {status}" for status, count in counts.items()), winner]


def _make_distinct(names: Sequence[str]) -> list[str]:
    """Append numbers to duplicate names, and to the name of the index."""
    counts: dict[str, int] = {Path(INDEX).stem: 1}
    answer = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        answer.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return answer


def _why(row: str) -> str:
    return html.unescape(re.findall(r"<td[^>]*>(.*?)</td>", row)[1])
