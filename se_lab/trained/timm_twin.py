"""Find the timm net that equals a net with SE-Lab's units, and convert its weights.

timm's SE units have biases, and their hidden width is rounded up to a multiple of 8. SE-Lab's weights are padded with
zeros, which change no output, so they fit unless SE-Lab's units are wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from se_lab.spec import ModelSpec
from se_lab.units.insertion import Site

State = dict[str, Tensor]

LAYERS = (("fc1", "fc2"), ("conv_reduce", "conv_expand"))
"""Names of the two layers of timm's SEModule, and of its SqueezeExcite."""


def find_twin(
    model: nn.Module, spec: ModelSpec, classes: int, in_chans: int, is_same: Callable[[nn.Module], bool]
) -> tuple[str, dict[str, Any], State] | None:
    """Return name, keyword arguments and weights of the equal timm net, if there is one.

    Args:
        model: A net with SE-Lab's units.
        spec: The spec of the net.
        classes: Number of classes.
        in_chans: Number of image channels.
        is_same: Returns whether a candidate, with its weights and in eval mode, has the outputs of the net.
    """
    sites: Any = model.se_sites
    if not sites or (spec.se.unit, spec.se.squeeze, spec.se.excitation) != ("se", "avg", "sigmoid"):
        return None
    candidates = [
        (f"se{spec.backbone}", spec.kwargs),
        (spec.backbone, spec.kwargs),  # a backbone whose own SE units were replaced
        (spec.backbone, spec.kwargs | {"block_args": {"attn_layer": "se"}}),  # a timm ResNet
    ]
    for name, arguments in candidates:
        if not timm.is_model(name):
            continue
        try:
            twin = timm.create_model(name, num_classes=classes, in_chans=in_chans, **arguments).eval()
            weights = to_twin(model, sites, twin)
            twin.load_state_dict(weights)
        except (TypeError, AttributeError, RuntimeError):
            continue  # the candidate takes no such arguments, or has other units
        if is_same(twin):
            return name, dict(arguments), weights
    return None


def to_twin(model: nn.Module, sites: Sequence[Site], twin: nn.Module) -> State:
    """Return a net's weights with the keys and shapes of its twin.

    Raises:
        AttributeError: if a unit of the twin is missing or narrower.
    """
    state = {key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith(_under(sites))}
    for site in sites:
        unit, twin_unit = model.get_submodule(site.path).state_dict(), twin.get_submodule(site.path)
        first, last = next((pair for pair in LAYERS if hasattr(twin_unit, pair[0])), LAYERS[0])
        hidden = len(unit["reduce.weight"])
        pad: int = getattr(twin_unit, first).out_channels - hidden
        if pad < 0:
            raise AttributeError(f"{site.path} of {type(twin).__name__} is narrower than SE-Lab's unit")
        biases = unit.get("reduce.bias", torch.zeros(hidden)), unit.get("expand.bias", torch.zeros(site.channels))
        state |= {
            f"{site.path}.{first}.weight": F.pad(unit["reduce.weight"], (0, 0, 0, pad))[:, :, None, None].contiguous(),
            f"{site.path}.{first}.bias": F.pad(biases[0], (0, pad)),
            f"{site.path}.{last}.weight": F.pad(unit["expand.weight"], (0, pad))[:, :, None, None].contiguous(),
            f"{site.path}.{last}.bias": biases[1].clone(),
        }
    return state


def from_twin(state: State, sites: Sequence[Site], bias: bool) -> State:
    """Return a twin's weights with SE-Lab's keys and shapes: the inverse of `to_twin`."""
    weights = {key: value for key, value in state.items() if not key.startswith(_under(sites))}
    for site in sites:
        first, last = next(pair for pair in LAYERS if f"{site.path}.{pair[0]}.weight" in state)
        weights[f"{site.path}.reduce.weight"] = state[f"{site.path}.{first}.weight"][: site.hidden, :, 0, 0]
        weights[f"{site.path}.expand.weight"] = state[f"{site.path}.{last}.weight"][:, : site.hidden, 0, 0]
        if bias:
            weights[f"{site.path}.reduce.bias"] = state[f"{site.path}.{first}.bias"][: site.hidden]
            weights[f"{site.path}.expand.bias"] = state[f"{site.path}.{last}.bias"]
    return weights


def _under(sites: Sequence[Site]) -> tuple[str, ...]:
    return tuple(f"{site.path}." for site in sites)
