"""Load a backbone's weights from files of public training scripts."""

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
from se_lab.spec.text import listed

State = dict[str, Tensor]

HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of checkpoints that contain a state dict, in order of preference: those of timm's train.py (`state_dict`,
`state_dict_ema`) and of torchvision's references (`model`, `model_ema`)."""


def load_weights(net: nn.Module, path: str) -> None:
    """Load a backbone's weights in place from a file of safetensors or PyTorch (weights only).

    The file contains a state dict or a checkpoint of timm's train.py, torchvision's references, Lightning or SE-Lab;
    the net may have been wrapped by DataParallel or torch.compile. A moving average (EMA) is preferred. A classifier
    for another number of classes stays random, with a message on stderr; a first convolution for another number of
    channels is adapted, as timm does.

    Raises:
        SpecError: if the file cannot be read, or contains no weights or those of another net.
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
        summary = "; ".join(f"{len(keys)} {kind}: {listed(keys, 5)}" for kind, keys in problems.items() if keys)
        raise SpecError(f"model.pretrained is {path!r}, which contains the weights of another net: {summary}")
    net.load_state_dict(state, strict=False)
    if skipped_keys and not any(value.is_meta for value in net_state.values()):
        print(f"{path} has no classifier of this size: {', '.join(names)} has random weights", file=sys.stderr)


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
        raise SpecError(f"model.pretrained is {path!r}, which does not exist") from None
    except Exception as error:  # the readers can raise any exception
        reason = f"{type(error).__name__}: {error}"  # the message of an EOFError is empty, and of a KeyError a number
        raise SpecError(f"model.pretrained is {path!r}, which cannot be read as weights: {reason}") from error
    for key in HOLDERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise SpecError(f"model.pretrained is {path!r}, which contains a {type(content).__name__}, not a state dict")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise SpecError(f"model.pretrained is {path!r}, which contains {listed(content, 5)} and no weights")
    return state


def _without_prefix(state: State, net_state: Mapping[str, Tensor], path: str) -> State:
    """Return a net's entries of a state dict, under the net's names.

    Wrappers add a prefix to the names: DataParallel `module.`, torch.compile `_orig_mod.`, Lightning the name of the
    attribute. The prefix with which the most names match is removed.
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
            f"model.pretrained is {path!r}, which contains {len(prefixes)} nets of this kind, under "
            f"{', '.join(prefixes)}; save one of them to a separate file"
        )
    prefix = prefixes[0] if prefixes else ""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _prefixes(key: str) -> Iterable[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) + "." * bool(end) for end in range(len(parts))]


def _classifier(net: nn.Module) -> tuple[str, ...]:
    """Return the paths of a net's classifier from its timm config."""
    names = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _adapt_input(net: nn.Module, net_state: Mapping[str, Tensor], state: State) -> None:
    """Adapt a state dict's first convolution in place to the net's number of image channels."""
    first = (getattr(net, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        if key in net_state and key in state and net_state[key].dim() == state[key].dim() == 4:
            channels = net_state[key].shape[1]
            if state[key].shape[1] == 3 and channels != 3:
                state[key] = adapt_input_conv(channels, state[key])
