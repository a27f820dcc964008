"""Uploads of reports and figures to W&B, offline by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from se_lab.report.columns import ReportError, value_texts
from se_lab.report.render import Table
from se_lab.report.tables import ablation_table
from se_lab.training.preflight import wandb_mode


def send_report(
    records: pd.DataFrame,
    page: Path,
    project: str,
    *,
    title: str,
    metric: str = "test/top1_error",
) -> str:
    """Log a study's table and page to a W&B run with the job type report.

    There is no table before any trial has finished. Returns the URL of the run, or its folder for `wandb sync` if
    offline. Raises ReportError if W&B reports an error.
    """
    import wandb

    with wandb_run(project, page.parent, name=title, job_type="report") as run:
        run.config.update({"metric": metric, "trials": len(records)})
        values: dict[str, Any] = {"report/page": wandb.Html(str(page), inject=False)}
        if records["status"].eq("finished").any():
            table = ablation_table(records, metric=metric)
            values["report/table"] = wandb.Table(dataframe=as_frame(table))
            run.summary["notes"] = "\n".join(table.notes)
        run.log(values)
        return str(Path(run.dir).parent if run.offline else run.url)


@contextmanager
def wandb_run(project: str, folder: Path, **about: Any) -> Iterator[Any]:
    """Yield a W&B run with files in `folder`, offline unless WANDB_MODE is set.

    Raises ReportError if W&B reports an error.
    """
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    mode: Any = wandb_mode()
    try:
        # create_new does not affect another active run
        with wandb.init(project=project, dir=folder, mode=mode, settings=settings, reinit="create_new", **about) as run:
            yield run
    except wandb.errors.Error as error:
        raise ReportError(f"W&B reported an error: {error}") from error


def as_frame(table: Table) -> pd.DataFrame:
    """Return a table's columns and intervals as numbers in the printed unit."""
    columns: dict[str, Any] = {}
    for col in table.columns:
        heading = col.column.heading
        if col.is_text:
            columns[heading] = value_texts(table.data[col.value])
            continue
        columns[heading] = pd.to_numeric(table.data[col.value], errors="coerce").astype(float) / col.divisor
        if col.ends:
            columns |= {f"{heading}, {end}": table.data[key] for end, key in zip(("from", "to"), col.ends, strict=True)}
        if col.half:
            columns[f"± {heading}"] = table.data[col.half].astype(float) / col.divisor
    frame: pd.DataFrame = pd.DataFrame({"variant": table.data["variant"].astype(str), **columns})
    return frame
