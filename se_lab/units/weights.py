"""A backbone's weights from a file, as public training scripts write them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from se_lab.spec import SpecError, expand_path

State = dict[str, Tensor]

HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of checkpoints that hold a state dict, the one to take first: timm's train.py (`state_dict`, and
`state_dict_ema` with a moving average, which timm loads too), torchvision's references (`model`, `model_ema`)."""


def load_weights(net: nn.Module, path: str) -> None:
    """Load a backbone's weights from a file of safetensors or of PyTorch's (weights only), in place.

    The file holds a state dict, or a checkpoint with one: of timm's train.py, torchvision's references, Lightning,
    SE-Lab, from a net in DataParallel or torch.compile. A moving average (EMA) is
    preferred to the weights. A classifier for another number of classes stays random, with a note on stderr, and
    a first convolution for another number of channels is adapted, as timm does for its own weights.

    Raises:
        SpecError: where the file cannot be read, holds no weights, or those of another net.
    """
    net_state = net.state_dict()
    state = _without_prefix(_read(path), net_state, path)
    _adapt_input(net, net_state, state)
    names = _classifier(net)
    head = {key for key in net_state if key.startswith(tuple(f"{name}." for name in names))}
    fits = all(key in state and state[key].shape == net_state[key].shape for key in head)
    skipped_keys = set() if fits else head
    state = {key: value for key, value in state.items() if key not in skipped_keys}
    missing = [
        key
        for key in net_state
        if key not in state and key not in skipped_keys and not key.endswith(".num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in net_state]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(net_state[key].shape)}"
        for key in net_state
        if key in state and state[key].shape != net_state[key].shape
    ]
    if missing or unexpected or misshapen:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        summary = "; ".join(f"{len(keys)} {kind}: {_few(keys)}" for kind, keys in problems.items() if keys)
        raise SpecError(f"model.pretrained is {path!r}, which holds the weights of another net: {summary}")
    net.load_state_dict(state, strict=False)
    if skipped_keys and not any(value.is_meta for value in net_state.values()):
        print(f"{path} has no classifier of this size: {', '.join(names)} starts from random weights", file=sys.stderr)


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _read(path: str) -> State:
    """Return the state dict of a file."""
    file = Path(expand_path(path))
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # timm's train.py saves its arguments
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpecError(f"model.pretrained is {path!r}, and there is no such file") from None
    except Exception as error:  # the readers may raise any exception
        raise SpecError(f"model.pretrained is {path!r}, which cannot be read as weights: {error}") from error
    for key in HOLDERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise SpecError(f"model.pretrained is {path!r}, which holds a {type(content).__name__} and no state dict")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise SpecError(f"model.pretrained is {path!r}, which holds {_few(list(map(str, content)))} and no weights")
    return state


def _without_prefix(state: State, net_state: Mapping[str, Tensor], path: str) -> State:
    """Return the entries that belong to a net, under the net's names.

    Whatever holds a net puts a prefix before its names: DataParallel `module.`, torch.compile `_orig_mod.`, Lightning
    the attribute's name. The right prefix is the one under which most of the net's names are found.
    """
    hits: dict[str, int] = {}
    for key in state:
        for prefix in _prefixes(key):
            hits[prefix] = hits.get(prefix, 0) + (key.removeprefix(prefix) in net_state)
    maximum = max(hits.values())
    candidates = [prefix for prefix, count in hits.items() if count == maximum and maximum]
    averages = [prefix for prefix in candidates if "ema" in prefix.split(".")]
    prefixes = averages if averages else candidates
    if len(prefixes) > 1:
        raise SpecError(
            f"model.pretrained is {path!r}, which holds {len(prefixes)} nets of this kind, under "
            f"{', '.join(prefixes)}: write one of them to a file of its own"
        )
    prefix = prefixes[0] if prefixes else ""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _prefixes(key: str) -> Iterable[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) + "." * bool(end) for end in range(len(parts))]


def _classifier(net: nn.Module) -> tuple[str, ...]:
    """Return the paths of a net's classifier, as timm's config names them."""
    names = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _adapt_input(net: nn.Module, net_state: Mapping[str, Tensor], state: State) -> None:
    """Adapt the first convolution of a state dict to a net for images of another number of channels, in place."""
    first = (getattr(net, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        if key in net_state and key in state and net_state[key].dim() == state[key].dim() == 4:
            channels = net_state[key].shape[1]
            if state[key].shape[1] == 3 and channels != 3:
                state[key] = adapt_input_conv(channels, state[key])
