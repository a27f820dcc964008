"""Uploads to W&B: the report of a study, and runs to which figures are added. Offline unless set otherwise."""

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
    """Log a study's table (wandb.Table) and page (wandb.Html) to a W&B run of the job type report.

    The table is left out where no trial has finished. Returns where the run is: an address, or offline the folder that
    `wandb sync` takes. Raises ReportError where W&B refuses.
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
    """Yield a W&B run, offline unless WANDB_MODE says otherwise, whose files are under `folder`.

    Raises ReportError where W&B refuses.
    """
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    mode: Any = wandb_mode()
    try:
        # leaves a run that the caller has open alone
        with wandb.init(project=project, dir=folder, mode=mode, settings=settings, reinit="create_new", **about) as run:
            yield run
    except (wandb.errors.Error, wandb.errors.UsageError) as error:
        raise ReportError(f"W&B did not take it: {error}") from error


def as_frame(table: Table) -> pd.DataFrame:
    """Return a table's printed columns: numeric in the printed unit, with half-widths of intervals beside them."""
    columns: dict[str, Any] = {}
    for shown in table.shown:
        heading = shown.column.heading
        if shown.is_text:
            columns[heading] = value_texts(table.data[shown.value])
            continue
        columns[heading] = pd.to_numeric(table.data[shown.value], errors="coerce").astype(float) / shown.divisor
        if shown.ends:
            columns |= {
                f"{heading}, {end}": table.data[key] for end, key in zip(("from", "to"), shown.ends, strict=True)
            }
        if shown.half:
            columns[f"± {heading}"] = table.data[shown.half].astype(float) / shown.divisor
    frame: pd.DataFrame = pd.DataFrame({"variant": table.data["variant"].astype(str), **columns})
    return frame
