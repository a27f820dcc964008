"""Published results of the SE paper (published.yaml), keyed like SE-Lab's columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from se_lab.report.columns import COLUMNS, Column, number_text, unknown_name, value_text, with_prefix
from se_lab.report.notes import name_list
from se_lab.report.render import PrintedColumn, Table
from se_lab.report.variants import INSERTION, Study
from se_lab.spec import SESpec, moot_fields

ABLATED = ("resnet50_v1", "resnet50")
"""Names of the net of Tables 10 to 16; the first has the paper's strides, and so its MACs."""
BACKBONES: Mapping[str, tuple[str, ...]] = {
    "ResNet-50": ABLATED,
    "ResNet-101": ("resnet101_v1", "resnet101"),
    "ResNet-152": ("resnet152_v1", "resnet152"),
    "ResNeXt-50": ("resnext50_32x4d",),
    "ResNeXt-101": ("resnext101_32x4d",),
    "VGG-16": ("vgg16_bn",),
    "BN-Inception": ("bn_inception",),
    "Inception-ResNet-v2": ("inception_resnet_v2",),
    "MobileNet": ("mobilenetv1_100",),
    "ShuffleNet": ("shufflenet_v1_g3",),
    "ResNet-110": ("cifar_resnet110",),
    "ResNet-164": ("cifar_preact_resnet164",),
    "WRN-16-8": ("cifar_wrn16_8",),
    "Shake-Shake 26 2x96d + Cutout": ("cifar_shake_shake26_2x96d",),
    "Shake-Even 29 2x4x64d + Cutout": ("cifar_shake_shake29_2x4x64d",),
}
BN_STATISTICS = 53_120
"""Number of running means and variances of ResNet-50, which the ablation tables count as parameters."""
PARAMS_SLACK = 0.12e6
"""Tolerance for the printed parameters of the ablation tables (published.yaml, notes)."""
BASELINE_ERRORS = {"test/top1_error": 23.30, "test/top5_error": 6.55}
"""Errors of ResNet-50 with the ablation recipe, the baseline of all of Tables 10 to 16."""

# The FC bias does not vary in the paper's tables.
_SE_KEYS = ("insertion", "unit", "reduction", "squeeze", "excitation", "stages")
# For each printed column: SE-Lab's key, the unit of the numbers, and the value of their last digit.
_FIGURES = {
    "top1": ("test/top1_error", 1.0, 0.01),
    "top5": ("test/top5_error", 1.0, 0.01),
    "error": ("test/top1_error", 1.0, 0.01),
    "gflops": ("macs", 1e9, 1e7),
    "mflops": ("macs", 1e6, 1e6),
    "params_M": ("params", 1e6, 1e5),
}
_PRINTED = ("test/top1_error", "test/top5_error", "params", "macs")


UNITS_PAPERS = "units"
"""Name of the table of ResNet-50 results from the papers of other units, not part of the SE paper."""

EARLIER_TABLE_3 = "table_3_mobile_earlier"
"""Table 3 in the CVPR edition of the paper, with worse baselines."""
EDITIONS = {"table_3_mobile": EARLIER_TABLE_3, EARLIER_TABLE_3: "table_3_mobile"}


@dataclass(frozen=True)
class _Paper:
    """A table: name, SE field set by the row labels, and pattern for names of the data set."""

    name: str
    axis: str | None
    data: str


_TABLES = {
    table.name: table
    for table in (
        _Paper("table_2_imagenet", None, "imagenet|ilsvrc"),
        _Paper("table_3_mobile", None, "imagenet|ilsvrc"),
        _Paper(EARLIER_TABLE_3, None, "imagenet|ilsvrc"),
        _Paper("table_4_cifar10", None, "cifar-?10(?!0)"),
        _Paper("table_5_cifar100", None, "cifar-?100"),
        _Paper("table_10_reduction", "reduction", "imagenet|ilsvrc"),
        _Paper("table_11_squeeze", "squeeze", "imagenet|ilsvrc"),
        _Paper("table_12_excitation", "excitation", "imagenet|ilsvrc"),
        _Paper("table_13_stage", "stages", "imagenet|ilsvrc"),
        _Paper("table_14_insertion", "insertion", "imagenet|ilsvrc"),
        _Paper("table_15_3x3", "insertion", "imagenet|ilsvrc"),
        _Paper("table_16_squeeze_effect", "squeeze", "imagenet|ilsvrc"),
        _Paper(UNITS_PAPERS, "unit", "imagenet|ilsvrc"),
    )
}


def paper_rows(paper: str = "all") -> pd.DataFrame:
    """Return the rows of one table of the SE paper (`table_10_reduction`, or `10`), or of all.

    The table `units` has results for ResNet-50 from the papers of other units, with the source in the label.

    Columns: table, row (the printed label), the spec (`model.backbone`, `model.se.*`), and the printed test/top1_error
    and test/top5_error (%), params and macs (NaN if missing), each with `KEY:digit`, the place value of the last
    printed digit. Raises ReportError for an unknown table.
    """
    names = (
        [name for name in _TABLES if name not in (UNITS_PAPERS, EARLIER_TABLE_3)]
        if paper == "all"
        else [_find_table(paper).name]
    )
    rows: pd.DataFrame = pd.DataFrame([row for name in names for row in _rows(_TABLES[name])], dtype=object)
    for key in _PRINTED:
        for column in (key, f"{key}:digit", f"{key}:base"):
            rows[column] = rows[column].astype(float)
    return rows


def add_paper_columns(
    study: Study, data: pd.DataFrame, paper: str
) -> tuple[pd.DataFrame, list[PrintedColumn], list[str]]:
    """Add published results to a table's data; return data, columns to print, and notes.

    Variants match the paper's rows by SE spec (and by backbone in Tables 2 to 5). Deviations and agreement are given
    only for the paper's backbone and data set; otherwise only the paper's differences from its baseline are comparable.
    """
    table, rows = _find_table(paper), paper_rows(paper)
    specs = _specs(study)
    places = {_place(row, table): number for number, row in enumerate(rows.to_dict("records"))}
    row_numbers = np.array([places.get(_place(spec, table), -1) for spec in specs.to_dict("records")])
    printed = rows.reindex(row_numbers).reset_index(drop=True)
    is_paper = (row_numbers >= 0) & np.array([_is_papers(spec, table) for spec in specs.to_dict("records")])

    data, columns = data.copy(), []
    for key in ("test/top1_error", "test/top5_error"):
        if key not in data or printed[key].isna().all():
            continue
        col, figure = COLUMNS[key], printed[key].to_numpy()
        data[f"{key}:paper"] = figure
        data[f"{key}:paper_difference"] = np.where(study.is_baseline, np.nan, figure - _baselines(rows, printed, key))
        data[f"{key}:deviation"] = np.where(is_paper, data[key] - figure, np.nan)
        name = col.label.removesuffix(" error")
        columns.append(
            PrintedColumn(Column(f"{key}:paper", f"paper {name}", "metric", "%", decimals=2), f"{key}:paper")
        )
        suffix, label = ("deviation", f"{name} off by") if is_paper.any() else ("paper_difference", f"paper Δ {name}")
        column = Column(f"{key}:{suffix}", label, "statistic", "points", decimals=2)
        columns.append(PrintedColumn(column, column.key, signed=suffix == "paper_difference"))
    for key in ("params", "macs") if is_paper.any() else ():
        if key in data and printed[key].notna().any():
            data[f"{key}:paper"] = printed[key].to_numpy()
            data[f"{key}:agrees"] = np.where(is_paper, agreement(data[key], printed, key), "")
            columns += _cost_cells(printed, key)
    return data, columns, _notes(table, rows, row_numbers, is_paper)


def variant_paper_costs(study: Study) -> Table | None:
    """Return a table of counted and printed costs of variants in the paper, if any."""
    specs, records = _specs(study), []
    counts = {f"counted_{key}": study.per_variant(key, "first") for key in ("params", "macs") if key in study.trials}
    for table in (table for name, table in _TABLES.items() if name not in (UNITS_PAPERS, EARLIER_TABLE_3)):
        rows = paper_rows(table.name)
        rows = rows[rows[["params", "macs"]].notna().any(axis=1)]
        places = {_place(row, table): number for number, row in zip(rows.index, rows.to_dict("records"), strict=True)}
        for variant, spec in enumerate(specs.to_dict("records")):
            row_number = places.get(_place(spec, table)) if _is_papers(spec, table) else None
            if row_number is not None:
                values = {key: costs[variant] for key, costs in counts.items()}
                records.append({**rows.loc[row_number], **values, "model.backbone": spec["model.backbone"]})
    return paper_cost_table(pd.DataFrame(records)) if records and len(counts) == 2 else None


def paper_cost_table(costs: pd.DataFrame) -> Table:
    """Return a table of counted and printed costs.

    costs: rows of `paper_rows` with `counted_params` and `counted_macs`, NaN for nets that were not built.
    """
    rows = costs[costs[["params", "macs"]].notna().any(axis=1)].reset_index(drop=True)
    data = pd.DataFrame({"variant": rows["row"], "group": rows["table"], "is_baseline": rows[INSERTION] == "none"})
    data["model.backbone"] = rows["model.backbone"]
    columns = [
        PrintedColumn(Column("table", "table", "text"), "group"),
        PrintedColumn(Column("row", "row", "text"), "variant"),
    ]
    columns.append(PrintedColumn(COLUMNS["model.backbone"], "model.backbone"))
    for key in ("params", "macs"):
        data[key] = rows[f"counted_{key}"]
        scaled, divisor = with_prefix(COLUMNS[key], float(np.nanmax(data[key], initial=0.0)))
        columns.append(PrintedColumn(scaled, key, divisor=divisor))
        if rows[key].notna().any():  # Table 10 has no MACs
            data[f"{key}:paper"] = rows[key]
            data[f"{key}:agrees"] = agreement(data[key], rows, key)
            columns += _cost_cells(rows, key)
    return Table("Costs beside the SE paper's", data, tuple(columns), tuple(_cost_notes()))


def agreement(ours: pd.Series, printed: pd.DataFrame, key: str) -> NDArray[np.object_]:
    """Return whether counted costs (V,) round to the printed ones, or the deviation, as text.

    `printed` has V rows of `paper_rows`. For ablation tables, counts with the running statistics of batch norms and
    differences of up to 0.12 M are accepted. The text is empty if a cost is missing.
    """
    count, paper = ours.to_numpy(dtype=float), printed[key].to_numpy(dtype=float)
    digit = printed[f"{key}:digit"].to_numpy(dtype=float)
    is_ablation = printed["model.backbone"].isin(ABLATED).to_numpy() & (key == "params")
    target = np.round(paper / digit)
    text = np.select(
        [
            np.isnan(count) | np.isnan(paper),
            np.round(count / digit) == target,
            is_ablation & (np.round((count + BN_STATISTICS) / digit) == target),
            is_ablation & (np.abs(count - paper) <= PARAMS_SLACK),
        ],
        ["", "yes", "yes, with BN statistics", "within 0.12 M"],
        [f"no, {number_text(share, 1, signed=True)} %" for share in 100 * (count / paper - 1)],
    )
    return np.asarray(text, dtype=object)


@cache
def _figures() -> dict[str, Any]:
    tables, units = (
        yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        for name in ("published.yaml", "published_units.yaml")
    )
    return {**tables, UNITS_PAPERS: units}


def _find_table(paper: str) -> _Paper:
    number = re.fullmatch(r"(?:table[_ ]?)?(\d+)", paper)
    for name, table in _TABLES.items():
        if paper == name or (number and name.startswith(f"table_{number[1]}_")):
            return table
    raise unknown_name("table of the paper", paper, _TABLES)


def _rows(table: _Paper) -> list[dict[str, Any]]:
    source = _figures()[table.name]
    rows = []
    for label, values in source["rows"].items():
        figures = dict(zip(source["columns"], values, strict=True))
        if table.axis is not None:
            spec = _ablation_spec(table.axis, label)
            name = f"{label}, {source['sources'][label]}" if table.name == UNITS_PAPERS else str(label)
            rows.append(_row(table.name, name, ABLATED[0], spec, figures))
            continue
        backbone = BACKBONES[label][0]
        plain_figures = {
            key.split("_", 1)[1]: value for key, value in figures.items() if key.startswith(("reimpl_", "base_"))
        }
        se_figures = {key.removeprefix("se_"): value for key, value in figures.items() if key.startswith("se_")}
        rows.append(_row(table.name, str(label), backbone, {"insertion": "none"}, plain_figures))
        rows.append(_row(table.name, f"SE-{label}", backbone, {}, se_figures))
    return rows


def _ablation_spec(axis: str, label: object) -> dict[str, Any]:
    """Return the SE spec for a row label; `original` is the plain net, `SE_Stage_3` stages [3]."""
    if label in ("original", "ResNet-50"):
        return {"insertion": "none"}
    if axis == "unit":  # SimAM's paper inserts SimAM after the 3×3 convolution
        places = {"none": "none", "simam": "conv3x3"}
        return {"unit": label if label != "none" else "se", "insertion": places.get(str(label), "standard")}
    stage = re.fullmatch(r"SE_Stage_(\d)", str(label))
    return {axis: [int(stage[1])] if stage else "all" if label == "SE_All" else label}


def _row(table: str, label: str, backbone: str, se: dict[str, Any], printed: Mapping[str, Any]) -> dict[str, Any]:
    spec = asdict(SESpec()) | se
    spec |= dict.fromkeys(moot_fields(spec["insertion"], spec["unit"]))
    row: dict[str, Any] = {"table": table, "row": label, "model.backbone": backbone}
    row |= {f"model.se.{key}": value for key, value in spec.items()}
    for key in _PRINTED:
        row[key] = row[f"{key}:digit"] = row[f"{key}:base"] = np.nan
    for name, (key, unit, digit) in _FIGURES.items():
        if printed.get(name) is not None:
            row[key], row[f"{key}:digit"] = printed[name] * unit, digit
            row[f"{key}:base"] = printed.get(f"base_{name}") or np.nan
    return row


def _specs(study: Study) -> pd.DataFrame:
    """Return the first trial of each variant, with defaults for missing fields."""
    firsts: pd.DataFrame = study.trials.drop_duplicates("variant").set_index("variant")
    firsts = firsts.reindex(study.variants.index)
    for key, default in {"backbone": None, **{f"se.{key}": value for key, value in asdict(SESpec()).items()}}.items():
        if f"model.{key}" not in firsts:
            firsts[f"model.{key}"] = default
    return firsts if "data.name" in firsts else firsts.assign(**{"data.name": ""})


def _place(spec: Mapping[Any, Any], table: _Paper) -> tuple[str, ...]:
    """Return the key of a spec in a table: relevant SE fields, and the net if rows are nets."""
    nets = [label for label, names in BACKBONES.items() if spec["model.backbone"] in names]
    net = (nets[0] if nets else "another",) if table.axis is None else ()
    moot = moot_fields(spec[INSERTION], spec["model.se.unit"])
    keys = [key for key in _SE_KEYS if key not in moot]
    return net + tuple(value_text(spec[f"model.se.{key}"]) for key in keys)


def _is_papers(spec: Mapping[Any, Any], table: _Paper) -> bool:
    """Return whether a trial has the data set, and in an ablation table the net, of a table."""
    on_data = re.search(table.data, value_text(spec["data.name"]).lower()) is not None
    return on_data and (table.axis is None or spec["model.backbone"] in ABLATED)


def _baselines(rows: pd.DataFrame, printed: pd.DataFrame, key: str) -> NDArray[np.float64]:
    """Return the published result of each row's baseline, (V,)."""
    base_errors = rows[rows[INSERTION] == "none"].set_index("model.backbone")[key]
    if len(base_errors) > 1:
        return printed["model.backbone"].map(base_errors).to_numpy(dtype=float)
    row_bases = printed[f"{key}:base"].to_numpy(dtype=float)  # if each row is from a different paper
    return np.where(
        np.isnan(row_bases), np.nan if rows[f"{key}:base"].notna().any() else BASELINE_ERRORS[key], row_bases
    )


def _cost_cells(printed: pd.DataFrame, key: str) -> list[PrintedColumn]:
    scaled, divisor = with_prefix(COLUMNS[key], float(np.nanmax(printed[key])))
    decimals = round(-np.log10(printed[f"{key}:digit"].min() / divisor))
    column = Column(f"{key}:paper", f"paper {scaled.label}", "cost", scaled.unit, decimals=max(0, decimals))
    verdict = Column(f"{key}:agrees", f"{scaled.label} agree", "text")
    return [PrintedColumn(column, column.key, divisor=divisor), PrintedColumn(verdict, verdict.key)]


def _notes(table: _Paper, rows: pd.DataFrame, row_numbers: NDArray[np.intp], is_paper: NDArray[np.bool_]) -> list[str]:
    if (row_numbers < 0).all():
        return [f"No variant is in the paper's {table.name}."]
    edition = "the earlier edition, about CVPR 2018" if table.name == EARLIER_TABLE_3 else "arXiv 1709.01507 v4"
    source = f"{table.name} of Hu et al. ({edition})"
    if table.name == UNITS_PAPERS:
        source = "; ".join(rows["row"][rows.index.isin(row_numbers)]) + ", each with its own recipe"
    notes = [f"Paper: {source}, one run each, single centre crop."]
    if table.name in EDITIONS:
        notes.append(f"Table 3 differs in the paper's other edition: --paper {EDITIONS[table.name]}.")
    if not is_paper.any():
        notes.append("Only differences from the baseline are comparable: the net or data set is not the paper's.")
    missing = rows["row"][~rows.index.isin(row_numbers)]
    if len(missing):
        notes.append(f"Rows of the paper's table without a variant: {name_list(missing)}.")
    return notes + (_cost_notes() if is_paper.any() and rows[["params", "macs"]].notna().any(axis=None) else [])


def _cost_notes() -> list[str]:
    return [
        "Agree: the count rounds to the printed digit, with or without the running statistics of batch norms in "
        "ablation tables.",
        f"The paper's ResNets stride in the first 1×1 of a bottleneck ({ABLATED[0]}), timm's {ABLATED[1]} in the 3×3, "
        "which costs 0.23 GMACs more.",
        "The paper's MACs of SE nets seem to include the scaling, one multiplication per element, which SE-Lab counts "
        "as elementwise: with it SE-ResNet-50 has 3.866 G, SE-VGG-16 15.484 G, SE-MobileNet 571.9 M, as printed.",
    ]
