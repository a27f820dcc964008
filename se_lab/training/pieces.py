"""Create the callbacks and loggers that an ExecSpec names."""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger

from se_lab.spec import ExecSpec, SpecError, nearest
from se_lab.spec.flags import import_plugins

CHANGES_NUMBERS = {
    "EarlyStopping": "use early_terminate in a sweep spec instead",
    "Timer": "set train.epochs instead",
    "StochasticWeightAveraging": "set train.ema instead",
    "WeightAveraging": "set train.ema instead",
    "GradientAccumulationScheduler": "set train.accumulate instead",
    "LearningRateFinder": "set optim.lr instead",
    "BatchSizeFinder": "set data.batch_size instead",
    "ModelPruning": "a trial trains all weights of its net",
    "BaseFinetuning": "a trial trains all weights of its net",
    "InsertSE": "set model.se instead",
}
"""Callbacks of Lightning and SE-Lab that would affect a trial's results, and what to use instead."""


def create_callbacks(execution: ExecSpec) -> list[L.Callback]:
    """Return the callbacks that an ExecSpec names.

    Raises:
        SpecError: for a class that does not exist, is not a callback, would affect results, rejects its arguments, or
            has a state that checkpoints cannot contain.
    """
    callbacks = [
        _create("callbacks", piece, L.Callback, lightning_callbacks, execution) for piece in execution.callbacks
    ]
    for callback in callbacks:
        _check_state(callback)
    return callbacks


def create_loggers(execution: ExecSpec, folder: Path) -> list[Logger]:
    """Return the additional loggers of an ExecSpec, with the trial's folder as save_dir.

    Raises:
        SpecError: for a class that does not exist, is not a logger, or rejects its arguments.
    """
    defaults = {"save_dir": str(folder)}
    return [_create("loggers", piece, Logger, lightning_loggers, execution, defaults) for piece in execution.loggers]


def _create(
    key: str,
    piece: str | Mapping[str, Any],
    base: type,
    home: ModuleType,
    execution: ExecSpec,
    defaults: Mapping[str, Any] = {},
) -> Any:
    """Return an object of the class that a piece names; it gets the `defaults` that it accepts."""
    path: object = piece
    arguments: Mapping[str, Any] = {}
    if isinstance(piece, Mapping):
        path, arguments = piece.get("class_path"), piece.get("init_args") or {}
        if piece.keys() - {"class_path", "init_args"} or not isinstance(arguments, Mapping):
            raise SpecError(f"{key} has {piece!r}; it must be a name, or a mapping of class_path and init_args")
    if not isinstance(path, str) or not path:
        raise SpecError(f"{key} has {piece!r}; class_path must be the name of a class")
    kind = _class(key, path, base, home, execution)
    for ancestor in kind.__mro__:
        if ancestor.__name__ in CHANGES_NUMBERS and ancestor.__module__.startswith(("lightning.", "se_lab.")):
            alternative = CHANGES_NUMBERS[ancestor.__name__]
            raise SpecError(f"{key} has {ancestor.__name__}, which would affect a trial's results: {alternative}")
    parameters = inspect.signature(kind).parameters
    try:
        return kind(**{name: value for name, value in defaults.items() if name in parameters} | dict(arguments))
    except Exception as error:  # a user's class can raise any exception
        raise SpecError(f"{key} has {path}, which cannot be created: {type(error).__name__}: {error}") from error


def _class(key: str, path: str, base: type, home: ModuleType, execution: ExecSpec) -> type:
    """Return a class by its import path, or by its name in a plugin or in Lightning."""
    module, _, name = path.rpartition(".")
    if module:
        import_plugins(module, key)
        homes = [importlib.import_module(module)]
    else:
        import_plugins(execution.plugins)
        plugins = filter(None, map(str.strip, execution.plugins.split(",")))
        homes = [*map(importlib.import_module, plugins), home]
    candidate = next((getattr(owner, name) for owner in homes if hasattr(owner, name)), None)
    if not (isinstance(candidate, type) and issubclass(candidate, base)):
        names = [attribute for owner in homes for attribute, value in vars(owner).items() if _is_kind(value, base)]
        problem = f"is not a Lightning {base.__name__}" if candidate is not None else "does not exist"
        raise SpecError(f"{key} has {path!r}, which {problem}{nearest(name, names)}")
    return candidate


def _is_kind(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _check_state(callback: L.Callback) -> None:
    """Raise SpecError if a callback's state cannot be loaded with weights_only=True."""
    buffer = io.BytesIO()
    try:
        torch.save(callback.state_dict(), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:  # pickle can raise any exception
        raise SpecError(
            f"callbacks has {type(callback).__name__}, whose state_dict() cannot be loaded from a checkpoint; it must "
            f"contain only tensors, numbers, text, lists and dicts: {error}"
        ) from error
