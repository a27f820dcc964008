"""What a net costs: parameters and multiply-accumulates, counted by fvcore with handles for what it leaves out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from se_lab.insertion import Site
from se_lab.squeeze_excite import SqueezeExcite

MAC_OPS = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum")
"""fvcore's names for what counts as multiply-accumulates: convolutions, linears and matrix products."""


@dataclass(frozen=True)
class ModuleCost:
    """The cost of one module, its children included."""

    params: int
    macs: int
    elementwise: int


@dataclass(frozen=True)
class Complexity:
    """The cost of one image's forward pass. 1 FLOP = 1 multiply-accumulate (MAC), as in the paper."""

    params: int
    """Trainable parameters."""
    params_se: int
    """Those of the SE units."""
    macs: int
    """Multiply-accumulates of convolutions and linears."""
    macs_se: int
    """Those of the SE units."""
    elementwise: int
    """Operations of everything else that is counted: norms (2 an element, as fvcore has it), pools, means, gates,
    activations, scalings and additions (1 an element of the larger side)."""
    elementwise_se: int
    """Those of the SE units: squeeze, inner ReLU, gate and scale."""
    by_module: dict[str, ModuleCost]
    """Costs by module path; "" is the whole net."""
    uncounted: dict[str, int]
    """Operators that neither fvcore nor SE-Lab counts, and how often they ran."""


def profile(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Complexity:
    """Count a net with one traced forward pass of one image, (1, *input_size), in eval mode.

    The net's mode is restored; its weights and buffers are not touched.
    """
    training = {module: module.training for module in model.modules()}
    weight = next(model.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    try:
        analysis = FlopCountAnalysis(model.eval(), image).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False).tracer_warnings("none").set_op_handle(**_handles())
        with torch.no_grad():
            counts = analysis.by_module_and_operator()
        uncounted = dict(analysis.unsupported_ops())
    finally:
        for module, mode in training.items():
            module.training = mode
    by_module = {path: _module_cost(module, counts[path]) for path, module in model.named_modules() if path in counts}
    units = [by_module[path] for path, module in model.named_modules() if isinstance(module, SqueezeExcite)]
    whole = by_module[""]
    return Complexity(
        params=whole.params,
        params_se=sum(unit.params for unit in units),
        macs=whole.macs,
        macs_se=sum(unit.macs for unit in units),
        elementwise=whole.elementwise,
        elementwise_se=sum(unit.elementwise for unit in units),
        by_module=by_module,
        uncounted=uncounted,
    )


def closed_form(sites: Iterable[Site], *, bias: bool = False) -> int:
    """Return the parameters of SE units, (2/r) Σ_s N_s C_s² (equation 5), with C/r the whole-numbered hidden width.

    Without biases it is also their MACs for one image, where the squeeze pools.
    """
    return sum(2 * site.channels * site.hidden + bias * (site.hidden + site.channels) for site in sites)


def _module_cost(module: nn.Module, counts: Counter[str]) -> ModuleCost:
    macs = sum(counts[op] for op in MAC_OPS)
    params = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return ModuleCost(params, int(macs), int(sum(counts.values()) - macs))


def _handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    reads = ("mean", "sum", "amax", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d")  # one operation an input element
    writes = ("add", "mul", "sub", "div", "sigmoid", "tanh", "relu", "silu", "gelu", "hardsigmoid", "hardswish")
    handles: dict[str, Callable[[list[Any], list[Any]], int]] = {f"aten::{op}": _elements_read for op in reads}
    for op in writes:
        handles[f"aten::{op}"] = handles[f"aten::{op}_"] = _elements_written
    return handles


def _elements_read(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(inputs[0].type().sizes() or ())


def _elements_written(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(outputs[0].type().sizes() or ())


logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
