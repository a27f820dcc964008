"""Find timm's own SE net with the same outputs as SE-Lab's, and convert weights between the two.

timm rounds the hidden width up to a multiple of 8 and has biases: hidden channels of zeros, and biases of 0, change
nothing, so that our weights fit unless our units are wider.
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
"""The two layers of timm's SEModule, and of its SqueezeExcite."""


def find_twin(
    model: nn.Module, spec: ModelSpec, classes: int, in_chans: int, is_same: Callable[[nn.Module], bool]
) -> tuple[str, dict[str, Any], State] | None:
    """Return the name of timm's net with units like ours, the arguments that make it, and its weights.

    Args:
        model: A net with SE-Lab's units.
        spec: What it was built from.
        classes: Outputs of its classifier.
        in_chans: Channels of its images.
        is_same: Asked of each candidate, with the weights in it and in eval mode.
    """
    sites: Any = model.se_sites
    if not sites or (spec.se.unit, spec.se.squeeze, spec.se.excitation) != ("se", "avg", "sigmoid"):
        return None
    candidates = [
        (f"se{spec.backbone}", spec.kwargs),
        (spec.backbone, spec.kwargs),  # its own units were replaced
        (spec.backbone, spec.kwargs | {"block_args": {"attn_layer": "se"}}),  # any ResNet of timm's
    ]
    for name, arguments in candidates:
        if not timm.is_model(name):
            continue
        try:
            twin = timm.create_model(name, num_classes=classes, in_chans=in_chans, **arguments).eval()
            weights = to_twin(model, sites, twin)
            twin.load_state_dict(weights)
        except (TypeError, AttributeError, RuntimeError):
            continue  # it takes no such arguments, or has other units
        if is_same(twin):
            return name, dict(arguments), weights
    return None


def to_twin(model: nn.Module, sites: Sequence[Site], twin: nn.Module) -> State:
    """Return a net's weights under the names and in the shapes of its twin's.

    Raises:
        AttributeError: where the twin has no such unit, or a narrower one.
    """
    state = {key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith(_under(sites))}
    for site in sites:
        unit, twin_unit = model.get_submodule(site.path).state_dict(), twin.get_submodule(site.path)
        first, last = next((pair for pair in LAYERS if hasattr(twin_unit, pair[0])), LAYERS[0])
        hidden = len(unit["reduce.weight"])
        pad: int = getattr(twin_unit, first).out_channels - hidden
        if pad < 0:
            raise AttributeError(f"{site.path} of {type(twin).__name__} is narrower than ours")
        biases = unit.get("reduce.bias", torch.zeros(hidden)), unit.get("expand.bias", torch.zeros(site.channels))
        state |= {
            f"{site.path}.{first}.weight": F.pad(unit["reduce.weight"], (0, 0, 0, pad))[:, :, None, None].contiguous(),
            f"{site.path}.{first}.bias": F.pad(biases[0], (0, pad)),
            f"{site.path}.{last}.weight": F.pad(unit["expand.weight"], (0, pad))[:, :, None, None].contiguous(),
            f"{site.path}.{last}.bias": biases[1].clone(),
        }
    return state


def from_twin(state: State, sites: Sequence[Site], bias: bool) -> State:
    """Return the weights of a twin under our names, with or without the units' biases: the inverse of `to_twin`."""
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
