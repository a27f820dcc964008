"""Write the report of a study as one HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from se_lab.report.figures.gallery import COSTS, draw_figures, page_sections
from se_lab.report.page.assemble import ASSETS, assemble, script_safe
from se_lab.report.page.curves import curve_data
from se_lab.report.page.excitations import excitation_data
from se_lab.report.page.predictions import class_data
from se_lab.report.page.tables import bases, table_data
from se_lab.report.page.trials import folders, records_in, trial_data
from se_lab.report.published import variant_paper_costs
from se_lab.report.ranks import can_rank
from se_lab.report.tables import ablation_table, default_columns, refuse_absent_metric
from se_lab.report.variants import BASELINE, group_variants
from se_lab.store import write_text_whole

SCRIPTS = ("filter", "table", "figures", "curves", "classes", "trials", "report")
PAGE_BYTES = 5_900_000
"""Maximum size of a page with excitation figures; further figures are only listed."""


def write_report(
    records: pd.DataFrame,
    path: str | Path,
    *,
    title: str = "SE ablation",
    question: Sequence[str] = (),
    metric: str = "test/top1_error",
    subfolder: Path | None = None,
) -> Path:
    """Write a page with table, figures, paper costs, classes, excitations and all trials.

    Specs, environments and tracebacks are included if the trials' folders are available. All data is inserted as text,
    never as markup. Without JavaScript, the page shows the table and static figures.

    Args:
        records: One row per trial, from `load_records`.
        path: The file to write.
        title: Title of the page, such as the name of the sweep.
        question: Introductory paragraphs, such as the description of the sweep.
        metric: The metric to compare.
        subfolder: A folder for pages with all excitation figures.

    Raises:
        ReportError: as `ablation_table`, except if all trials failed, which the page reports.
    """
    study = group_variants(records)
    places = folders(study)
    trial_records = records_in(places)
    data: dict[str, Any] = {"title": title, "question": list(question), "figures": []}
    data |= trial_data(study, trial_records, metric)
    static = f"<h1>{html.escape(title)}</h1>\n"
    if study.trials["status"].eq("finished").any() or not study.trials["status"].eq("failed").any():
        refuse_absent_metric(study, metric)
        ranks = ["rank", "p_best", "p_better"] if can_rank(study, metric) else []
        columns = [*default_columns(study, metric), *ranks]
        table = ablation_table(records, metric=metric, columns=columns)
        static += table.render("html") + _static_figures(records, metric)
        baselines = bases(study, metric)
        data["table"] = table_data(table)
        data["figures"] = page_sections(study, metric, [base.pop("study") for base in baselines])
        for figure in data["figures"]:
            if figure["id"] == "differences":
                for choice, base in zip(figure["choices"], baselines, strict=True):
                    heading = choice["layout"]["xaxis"]["title"]
                    heading["text"] = heading["text"].replace(BASELINE, base["name"])
        data["bases"] = baselines if len(baselines) > 1 else None
        data["curves"] = curve_data(study, metric, trial_records)
        data["classes"] = class_data(study, places, trial_records)
    costs = variant_paper_costs(study)
    data["paper"] = table_data(costs) if costs else None
    template, scripts = ASSETS / "report.html", [ASSETS / f"{name}.js" for name in SCRIPTS]
    size = len(assemble(template, {}, scripts, static=static).encode()) + len(script_safe(data).encode())
    data["excitations"], data["left_out"] = excitation_data(study, PAGE_BYTES - size, subfolder)
    path = Path(path)
    write_text_whole(path, assemble(template, data, scripts, static=static))
    return path


def _static_figures(records: pd.DataFrame, metric: str) -> str:
    """Return the figures as img elements, for readers without JavaScript."""
    images = []
    for _, figure in draw_figures(records, costs=COSTS[:1], metric=metric):
        if isinstance(figure, str):
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        source = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<img src="data:image/png;base64,{source}" alt="{html.escape(str(figure.get_label()))}">')
    return "\n".join(images)
