"""Costs of a net by stage and unit, of the trials of a sweep, and of the paper's nets."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_lab.data import data_shapes
from se_lab.report.paper_costs import count_paper_costs, unit_of
from se_lab.report.published import BN_STATISTICS, PARAMS_SLACK
from se_lab.spec import ModelSpec, RunSpec, dotted
from se_lab.units.costs import Complexity, Trace, profile, trace
from se_lab.units.counting import ModuleCost
from se_lab.units.fused import form_of
from se_lab.units.insertion import Site
from se_lab.units.model import create_model
from se_lab.units.places import Place, survey
from se_lab.units.unit import Unit

Row = dict[str, Any]
Size = tuple[int, int, int]
_TOTALS = ("params", "params_se", "macs", "macs_se", "elementwise", "elementwise_se", "activations")
_NONE = ModuleCost(0, 0, 0, 0)


def net_costs(spec: ModelSpec, num_classes: int = 1000, input_size: Size = (3, 224, 224)) -> list[Row]:
    """Return a row for the net, each stage, each unit, and the rest (stem, transitions, head).

    Columns: part, channels, hidden width and fused form of the SE unit (`fused.form_of`), and the counts of
    `Complexity`, in total and for SE units only; for the net, also the cost of the units in % of the net without them.
    fvcore counts the net; `closed_form` compares with the closed forms of the units ("equal" is expected).

    Raises:
        SpecError: if the net cannot be built.
    """
    model = create_model(dataclasses.replace(spec, pretrained=False, init="timm"), num_classes, input_size[0])
    costs = profile(model, input_size)
    closed_form = trace(spec, num_classes, input_size).variant(spec.se)
    differences = {key: getattr(closed_form, key) - getattr(costs, key) for key in _TOTALS}
    agreement = ", ".join(f"{key} {value:+,}" for key, value in differences.items() if value) or "equal"
    if not all(module.has_closed_form() for module in model.modules() if isinstance(module, Unit)):
        agreement = "no closed form" + ("" if agreement == "equal" else f"; counted separately: {agreement}")
    rows = [{"part": "net", **{key: getattr(costs, key) for key in _TOTALS}, **_relative_costs(costs)}]
    rows[0]["closed_form"] = agreement
    sites = {site.name: site for site in model.se_sites}  # type: ignore[union-attr]
    places = [place for place in survey(model) if place.spots or place.name in sites]
    units = []
    for place in places:
        site = sites.get(place.name)
        se = costs.by_module.get(site.path, _NONE) if site else _NONE
        total = _sum_costs(costs, _paths(model, place))
        units.append(
            {"part": place.name, "stage": place.stage, **_columns(total, se)}
            | ({"channels": site.channels, "hidden": site.hidden, "fused": _form(spec, model, site)} if site else {})
        )
    for stage in sorted({place.stage for place in places}):
        rows.append({"part": f"stage {stage}", **_sum(unit for unit in units if unit["stage"] == stage)})
    rows.append({"part": "rest", **{key: rows[0][key] - _sum(units)[key] for key in _TOTALS}})
    return rows + [{key: value for key, value in unit.items() if key != "stage"} for unit in units]


def sweep_costs(trials: Iterable[RunSpec], root: str | Path = ".") -> list[Row]:
    """Return a row per trial: trial_id, the flat model spec, and the counts."""
    trials = list(trials)
    shapes = data_shapes((trial.data for trial in trials), root=root)
    traces: dict[str, Trace] = {}
    rows = []
    for trial in trials:
        data = shapes[trial.data]
        costs = cached_costs(trial.model, data.classes, data.shape, traces)
        model = {key: value for key, value in trial.flat().items() if key.startswith("model.")}
        counts = {key: getattr(costs, key) for key in _TOTALS}
        rows.append({"trial_id": trial.trial_id, **model, **counts, **_relative_costs(costs)})
    return rows


def cached_costs(spec: ModelSpec, num_classes: int, input_size: Size, traces: dict[str, Trace]) -> Complexity:
    """Return the costs of a spec, tracing its backbone unless `traces` contains it."""
    net = dotted(spec) | {"classes": num_classes, "size": input_size}
    key = json.dumps({k: v for k, v in net.items() if not k.startswith("se.") and k != "fused"}, sort_keys=True)
    if key not in traces:
        traces[key] = trace(spec, num_classes, input_size)
    return traces[key].variant(spec.se)


def paper_costs(paper: str = "all") -> list[Row]:
    """Return rows with counted and published costs of one or all of the paper's tables.

    published.yaml has the published values with notes. MACs are for 224 pixels, 299 for Inception-ResNet-v2.
    """
    rows: list[Row] = []
    for paper_row in count_paper_costs(paper, say=lambda _: None).to_dict("records"):
        spec, costs = ModelSpec(paper_row["model.backbone"], unit_of(paper_row)), paper_row["costs"]
        for key in ("params", "macs"):
            if math.isnan(paper_row[key]):
                continue
            count = getattr(costs, key)
            deviation = 100 * (count / paper_row[key] - 1)
            rows.append(
                {
                    "table": paper_row["table"],
                    "row": paper_row["row"],
                    "figure": key,
                    "ours": count,
                    "published": round(paper_row[key]),
                    "deviation_%": round(deviation, 2),
                    "reason": _reason(paper_row, spec, key, costs),
                }
            )
    return rows


def measure_latency(spec: ModelSpec, num_classes: int, input_size: Size, device: str, repeats: int = 20) -> Row:
    """Return the median latency of one image in ms, in eval mode, and the peak memory in MB.

    `device` is as in ExecSpec. On a GPU the memory is that of PyTorch, elsewhere that of the whole process.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model(dataclasses.replace(spec, pretrained=False, init="timm"), num_classes, input_size[0])
    model.eval().to(device)
    image = torch.randn(1, *input_size, device=device)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):  # the first three are warm-up
            start = time.perf_counter()
            model(image)
            if device in ("cuda", "mps"):
                getattr(torch, device).synchronize()
            times.append(1000 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = torch.cuda.max_memory_allocated() if on_gpu else peak
    latency = round(statistics.median(times[3:]), 3)
    return {"device": device, "latency_ms": latency, "peak_memory_MB": round(memory / 1e6, 1)}


def render(rows: Sequence[Row], form: str) -> str:
    """Format rows as json, csv, or a table for the terminal."""
    if form == "json":
        return json.dumps(list(rows), indent=2)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip()
    cells = [columns, *([_cell(row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    is_number = [any(isinstance(row.get(key), (int, float)) for row in rows) for key in columns]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, is_number, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _reason(printed: dict[Any, Any], spec: ModelSpec, key: str, costs: Complexity) -> str:
    """Return the reason for a difference from the printed cost, if known."""
    our_count = getattr(costs, key)
    half = printed[f"{key}:digit"] / 2

    def fits(count: int) -> bool:
        return bool(abs(count - printed[key]) <= half * (1 + 1e-9))

    if fits(our_count):
        return "as printed"
    is_ablation = not printed["table"].startswith(("table_2_", "table_3_"))
    if key == "params" and is_ablation:
        if fits(our_count + BN_STATISTICS):
            return f"as printed with the {BN_STATISTICS:,} running statistics of batch norms"
        if abs(our_count - printed[key]) <= PARAMS_SLACK:
            return "less than 0.12M from the printed value, but not equal, with or without statistics of batch norms"
    if key == "params" and spec.backbone == "shufflenet_v1_g3":
        if spec.se.insertion != "none":
            return "the paper does not specify the units; model.se.units=stride_1 gives its 2.4M"
        return "the published architecture has 1.87M, which the paper truncates"
    if spec.backbone == "inception_resnet_v2":
        return "unexplained: at 299 pixels, the convolutions and linear layers of the published net have 13.156G"
    if spec.se.insertion != "none" and fits(our_count + costs.elementwise_se // 2):
        return "as printed with one more operation per element scaled by SE"
    return "unexplained: the paper does not specify which operations it counts"


def _relative_costs(costs: Complexity) -> Row:
    """Return the parameters and MACs that the units add, in % of the net without them."""
    pairs = {"params": (costs.params, costs.params_se), "macs": (costs.macs, costs.macs_se)}
    return {f"{key}_over_%": round(100 * units / (total - units), 3) for key, (total, units) in pairs.items()}


def _form(spec: ModelSpec, model: nn.Module, site: Site) -> str:
    return "off" if spec.fused == "off" else form_of(model, site.path)


def _paths(model: nn.Module, place: Place) -> list[str]:
    """Return the module paths of a block; for an activation, also of the layers before it."""
    name, dot, leaf = place.path.rpartition(".")
    siblings = dict(model.get_submodule(name).named_children())
    paths = [place.path]
    for sibling in reversed(list(siblings)[: list(siblings).index(leaf)]):
        if not isinstance(siblings[sibling], (nn.Conv2d, nn.BatchNorm2d)):
            break
        paths.append(f"{name}{dot}{sibling}")
    return paths


def _sum_costs(costs: Complexity, paths: Iterable[str]) -> ModuleCost:
    rows = [dataclasses.astuple(costs.by_module.get(path, _NONE)) for path in paths]
    return ModuleCost(*map(sum, zip(*rows, strict=True)))


def _columns(whole: ModuleCost, se: ModuleCost) -> Row:
    return {
        "params": whole.params,
        "params_se": se.params,
        "macs": whole.macs,
        "macs_se": se.macs,
        "elementwise": whole.elementwise,
        "elementwise_se": se.elementwise,
        "activations": whole.activations,
    }


def _sum(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return {key: sum(row[key] for row in rows) for key in _TOTALS}
