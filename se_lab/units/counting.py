"""Count parameters and multiply-accumulates by fvcore, with handles for further operators."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import addmm_flop_jit, conv_flop_jit, linear_flop_jit
from torch import nn

MAC_OPS = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum")
"""fvcore's names of the operators counted as multiply-accumulates."""


@dataclass(frozen=True)
class ModuleCost:
    """The cost of a module, children included."""

    params: int
    macs: int
    elementwise: int
    activations: int


def count(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[dict[str, ModuleCost], dict[str, int]]:
    """Return costs by module path ("" is the whole net), and calls by uncounted operator.

    They come from a traced forward pass of one image, (1, *input_size), in eval mode. The modes of all modules are
    restored; weights and buffers are not changed.
    """
    training = {module: module.training for module in model.modules()}
    weight = next(model.parameters(), torch.zeros(()))
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
    return by_module, uncounted


def _module_cost(module: nn.Module, counts: Counter[str]) -> ModuleCost:
    macs = sum(counts[op] for op in MAC_OPS)
    activations = counts[_ACTIVATIONS]
    params = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return ModuleCost(params, int(macs), int(sum(counts.values()) - macs - activations), int(activations))


_ACTIVATIONS = "activations"
Handle = Callable[[list[Any], list[Any]], Any]


def _handles() -> dict[str, Handle]:
    reads = ("mean", "sum", "amax", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d")  # counted by input elements
    writes = ("add", "mul", "sub", "div", "sigmoid", "tanh", "sqrt", "relu", "silu", "gelu", "hardsigmoid", "hardswish")
    handles: dict[str, Handle] = {f"aten::{op}": _elements_read for op in reads}
    for op in writes:
        handles[f"aten::{op}"] = handles[f"aten::{op}_"] = _elements_written
    for op, name, macs in (
        ("_convolution", "conv", conv_flop_jit),
        ("addmm", "addmm", addmm_flop_jit),
        ("linear", "linear", linear_flop_jit),
    ):
        handles[f"aten::{op}"] = _with_activations(name, macs)
    return handles


def _with_activations(name: str, macs: Handle) -> Handle:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        result = macs(inputs, outputs)  # a number, or numbers by operator
        total = sum(result.values()) if isinstance(result, Mapping) else result
        return Counter({name: total, _ACTIVATIONS: _elements_written(inputs, outputs)})

    return handle


def _elements_read(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(inputs[0].type().sizes() or ())


def _elements_written(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(outputs[0].type().sizes() or ())


logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
