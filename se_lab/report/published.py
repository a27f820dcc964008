"""The SE paper's printed figures (published.yaml), row by row under our own keys, to compare with ours."""

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

from se_lab.report.columns import COLUMNS, Column, number_text, unknown, value_text, with_prefix
from se_lab.report.notes import some
from se_lab.report.render import Shown, Table
from se_lab.report.variants import INSERTION, Study
from se_lab.spec import SESpec, moot_fields

ABLATED = ("resnet50_v1", "resnet50")
"""The net of Tables 10 to 16; the first name strides as the paper's does, so its MACs are the paper's."""
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
"""ResNet-50's running means and variances, which the ablation tables count as parameters (published.yaml, notes)."""
PARAMS_SLACK = 0.12e6
"""The tolerated difference from a printed count of the ablation tables (published.yaml, notes)."""
BASELINE_ERRORS = {"test/top1_error": 23.30, "test/top5_error": 6.55}
"""ResNet-50 under the ablation recipe: the baseline of Tables 10 to 16, also of those that do not print it."""

# none of the papers' tables varies the FC bias
_SE_KEYS = ("insertion", "unit", "reduction", "squeeze", "excitation", "stages")
# A printed column: our key, the unit of its numbers, and the worth of their last digit.
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
"""The figures for ResNet-50 in the papers of all units: not a table of the SE paper, so not among all its tables."""

EARLIER_TABLE_3 = "table_3_mobile_earlier"
"""Table 3 in the paper's CVPR edition, whose baselines are worse."""
EDITIONS = {"table_3_mobile": EARLIER_TABLE_3, EARLIER_TABLE_3: "table_3_mobile"}


@dataclass(frozen=True)
class _Paper:
    """One table: the SE field that its row labels set, and the data sets on which its errors are comparable to ours."""

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
    """Return the rows of one of the paper's tables (`table_10_reduction`, or just `10`), or of all that have variants.

    `units` has the rows for ResNet-50 from the papers of other units, each with its source in the label.

    Columns: table, row (its printed label), the spec (`model.backbone`, `model.se.*`), and the printed
    test/top1_error and test/top5_error (%), params and macs (NaN for none), each with `KEY:digit`, the place value
    of the last printed digit. Raises ReportError for an unknown table.
    """
    names = (
        [name for name in _TABLES if name not in (UNITS_PAPERS, EARLIER_TABLE_3)]
        if paper == "all"
        else [_named(paper).name]
    )
    rows: pd.DataFrame = pd.DataFrame([row for name in names for row in _rows(_TABLES[name])], dtype=object)
    for key in _PRINTED:
        for column in (key, f"{key}:digit", f"{key}:base"):
            rows[column] = rows[column].astype(float)
    return rows


def beside_paper(study: Study, data: pd.DataFrame, paper: str) -> tuple[pd.DataFrame, list[Shown], list[str]]:
    """Join the published figures to a table's data; return the data, the columns to print of them, and notes.

    Variants meet the paper's rows by their SE spec (and by the backbone in Tables 2 to 5). Deviations and agreement are
    given where backbone and data set are the paper's. Elsewhere only the paper's own difference to its baseline can
    be compared.
    """
    table, rows = _named(paper), paper_rows(paper)
    specs = _specs(study)
    places = {_place(row, table): number for number, row in enumerate(rows.to_dict("records"))}
    row_numbers = np.array([places.get(_place(spec, table), -1) for spec in specs.to_dict("records")])
    printed = rows.reindex(row_numbers).reset_index(drop=True)
    is_paper = (row_numbers >= 0) & np.array([_is_papers(spec, table) for spec in specs.to_dict("records")])

    data, shown = data.copy(), []
    for key in ("test/top1_error", "test/top5_error"):
        if key not in data or printed[key].isna().all():
            continue
        col, figure = COLUMNS[key], printed[key].to_numpy()
        data[f"{key}:paper"] = figure
        data[f"{key}:paper_difference"] = np.where(study.is_baseline, np.nan, figure - _baselines(rows, printed, key))
        data[f"{key}:deviation"] = np.where(is_paper, data[key] - figure, np.nan)
        name = col.label.removesuffix(" error")
        shown.append(Shown(Column(f"{key}:paper", f"paper {name}", "metric", "%", decimals=2), f"{key}:paper"))
        suffix, label = ("deviation", f"{name} off by") if is_paper.any() else ("paper_difference", f"paper Δ {name}")
        column = Column(f"{key}:{suffix}", label, "statistic", "points", decimals=2)
        shown.append(Shown(column, column.key, signed=suffix == "paper_difference"))
    for key in ("params", "macs") if is_paper.any() else ():
        if key in data and printed[key].notna().any():
            data[f"{key}:paper"] = printed[key].to_numpy()
            data[f"{key}:agrees"] = np.where(is_paper, agreement(data[key], printed, key), "")
            shown += _cost_shown(printed, key)
    return data, shown, _notes(table, rows, row_numbers, is_paper)


def costs_beside_paper(study: Study) -> Table | None:
    """Return a table of the variants that are the paper's nets, on its data set: counted and printed costs.

    None where no variant is one of them.
    """
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
    """Return a table of counted costs beside the paper's, without any training run.

    costs: rows of `paper_rows` with `counted_params` and `counted_macs` of our nets, NaN where none was built.
    """
    rows = costs[costs[["params", "macs"]].notna().any(axis=1)].reset_index(drop=True)
    data = pd.DataFrame({"variant": rows["row"], "group": rows["table"], "is_baseline": rows[INSERTION] == "none"})
    data["model.backbone"] = rows["model.backbone"]
    shown = [Shown(Column("table", "table", "text"), "group"), Shown(Column("row", "row", "text"), "variant")]
    shown.append(Shown(COLUMNS["model.backbone"], "model.backbone"))
    for key in ("params", "macs"):
        data[key] = rows[f"counted_{key}"]
        scaled, divisor = with_prefix(COLUMNS[key], float(np.nanmax(data[key], initial=0.0)))
        shown.append(Shown(scaled, key, divisor=divisor))
        if rows[key].notna().any():  # Table 10 prints no MACs
            data[f"{key}:paper"] = rows[key]
            data[f"{key}:agrees"] = agreement(data[key], rows, key)
            shown += _cost_shown(rows, key)
    return Table("Costs beside the SE paper's", data, tuple(shown), tuple(_cost_notes()))


def agreement(ours: pd.Series, printed: pd.DataFrame, key: str) -> NDArray[np.object_]:
    """Return (V,) whether our costs round to the printed ones (V rows of `paper_rows`), or the deviation.

    The ablation tables count parameters with the BN running statistics, so either count is accepted there, and so is
    a difference of 0.12 M. Empty where one side has no figure.
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


def _named(paper: str) -> _Paper:
    number = re.fullmatch(r"(?:table[_ ]?)?(\d+)", paper)
    for name, table in _TABLES.items():
        if paper == name or (number and name.startswith(f"table_{number[1]}_")):
            return table
    raise unknown("table of the paper", paper, _TABLES)


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
    """Return the SE spec of a row's label: `original` and `ResNet-50` are the plain net, `SE_Stage_3` is stages [3]."""
    if label in ("original", "ResNet-50"):
        return {"insertion": "none"}
    if axis == "unit":  # SimAM's paper puts it behind the 3×3 convolution
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
    """Return (V, …) the first trial of each variant, with defaults for unrecorded backbone, data and SE fields."""
    firsts: pd.DataFrame = study.trials.drop_duplicates("variant").set_index("variant")
    firsts = firsts.reindex(study.variants.index)
    for key, default in {"backbone": None, **{f"se.{key}": value for key, value in asdict(SESpec()).items()}}.items():
        if f"model.{key}" not in firsts:
            firsts[f"model.{key}"] = default
    return firsts if "data.name" in firsts else firsts.assign(**{"data.name": ""})


def _place(spec: Mapping[Any, Any], table: _Paper) -> tuple[str, ...]:
    """Return the key of a spec in the paper's table: its net where rows are nets, and its relevant SE fields."""
    nets = [label for label, names in BACKBONES.items() if spec["model.backbone"] in names]
    net = (nets[0] if nets else "another",) if table.axis is None else ()
    moot = moot_fields(spec[INSERTION], spec["model.se.unit"])
    keys = [key for key in _SE_KEYS if key not in moot]
    return net + tuple(value_text(spec[f"model.se.{key}"]) for key in keys)


def _is_papers(spec: Mapping[Any, Any], table: _Paper) -> bool:
    """Return whether a trial's data set, and in an ablation its net, are those of the paper's table."""
    on_data = re.search(table.data, value_text(spec["data.name"]).lower()) is not None
    return on_data and (table.axis is None or spec["model.backbone"] in ABLATED)


def _baselines(rows: pd.DataFrame, printed: pd.DataFrame, key: str) -> NDArray[np.float64]:
    """Return (V,) the paper's own baseline of each of its rows."""
    base_errors = rows[rows[INSERTION] == "none"].set_index("model.backbone")[key]
    if len(base_errors) > 1:
        return printed["model.backbone"].map(base_errors).to_numpy(dtype=float)
    row_bases = printed[f"{key}:base"].to_numpy(dtype=float)  # for papers that each print their own
    return np.where(
        np.isnan(row_bases), np.nan if rows[f"{key}:base"].notna().any() else BASELINE_ERRORS[key], row_bases
    )


def _cost_shown(printed: pd.DataFrame, key: str) -> list[Shown]:
    scaled, divisor = with_prefix(COLUMNS[key], float(np.nanmax(printed[key])))
    decimals = round(-np.log10(printed[f"{key}:digit"].min() / divisor))
    column = Column(f"{key}:paper", f"paper {scaled.label}", "cost", scaled.unit, decimals=max(0, decimals))
    verdict = Column(f"{key}:agrees", f"{scaled.label} agree", "text")
    return [Shown(column, column.key, divisor=divisor), Shown(verdict, verdict.key)]


def _notes(table: _Paper, rows: pd.DataFrame, row_numbers: NDArray[np.intp], is_paper: NDArray[np.bool_]) -> list[str]:
    if (row_numbers < 0).all():
        return [f"None of these variants is in the paper's {table.name}."]
    edition = "the earlier edition, about CVPR 2018" if table.name == EARLIER_TABLE_3 else "arXiv 1709.01507 v4"
    source = f"{table.name} of Hu et al. ({edition})"
    if table.name == UNITS_PAPERS:
        source = "; ".join(rows["row"][rows.index.isin(row_numbers)]) + ", each under its own recipe"
    notes = [f"Paper: {source}, one run each, single centre crop."]
    if table.name in EDITIONS:
        notes.append(f"Table 3 differs between the paper's editions; the other one: --paper {EDITIONS[table.name]}.")
    if not is_paper.any():
        notes.append("Another net or data set than the paper's: of its errors only the differences can be compared.")
    missing = rows["row"][~rows.index.isin(row_numbers)]
    if len(missing):
        notes.append(f"In the paper's table but not here: {some(missing)}.")
    return notes + (_cost_notes() if is_paper.any() and rows[["params", "macs"]].notna().any(axis=None) else [])


def _cost_notes() -> list[str]:
    return [
        "Agree: our count rounds to the printed digit. The ablation tables print parameters with the BN running "
        "statistics, so either count will do there.",
        f"The paper's ResNets stride in the first 1×1 of a bottleneck ({ABLATED[0]}), timm's {ABLATED[1]} in the 3×3, "
        "which costs 0.23 GMACs more.",
        "The paper's MACs of SE nets seem to hold the scaling too, one multiplication an element, which ours list as "
        "elementwise: with it SE-ResNet-50 has 3.866 G, SE-VGG-16 15.484 G and SE-MobileNet 571.9 M, as printed.",
    ]
