"""Checks for errors that can be found before a trial trains and any work is lost."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from se_lab.data import ImageData, check_split
from se_lab.spec import ExecSpec, RunSpec, SpecError, check_choice
from se_lab.spec.trainer_flags import LIMITS
from se_lab.store import check_store, cpu_model
from se_lab.training.optimize import check_optimizer
from se_lab.units.unit import Unit


def device_of(execution: ExecSpec) -> str:
    """Return the kind of device a trial runs on: cpu, cuda or mps; auto takes a GPU where there is one."""
    if execution.device != "auto":
        return execution.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_model(execution: ExecSpec) -> str:
    """Return the model of the device that a trial runs on, such as 'NVIDIA H100 80GB HBM3'."""
    kind = device_of(execution)
    if kind == "cuda":  # a trial finished on another machine may be requested without a GPU
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return cpu_model() if kind == "cpu" else f"{cpu_model()} ({kind})"


WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def wandb_mode() -> str:
    """Return WANDB_MODE; where that is not set, online for an agent's trial, else offline.

    Unset W&B's variables that are empty: its client would reject them.

    Raises:
        SpecError: for a mode that W&B does not have.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    mode = os.environ.get("WANDB_MODE", "online" if "WANDB_SWEEP_ID" in os.environ else "offline")
    check_choice("WANDB_MODE", mode, WANDB_MODES)
    return mode


def check_before(spec: RunSpec, execution: ExecSpec) -> None:
    """Raise SpecError for a store with foreign files, and for what this machine, timm or W&B lacks."""
    check_store(execution.store)
    if execution.logger == "wandb":
        wandb_mode()
    if execution.logger == "tensorboard" and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise SpecError("logger is 'tensorboard', and its package is missing: pip install tensorboard")
    check_optimizer(spec.optim)
    train, device = spec.train, device_of(execution)
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device is 'cuda', and PyTorch finds no GPU here; auto takes one where there is one")
    if device == "cuda" and train.devices > torch.cuda.device_count():
        raise SpecError(f"train.devices is {train.devices}, and PyTorch finds {torch.cuda.device_count()} GPU(s) here")
    if device == "mps" and train.ranks > 1:
        raise SpecError(f"train.devices is {train.devices}, and mps is one device")
    if train.precision == "fp16" and device == "cpu":
        raise SpecError("train.precision is 'fp16', which is for GPUs; bf16 runs on a CPU too")
    if train.precision == "fp64" and device == "mps":
        raise SpecError("train.precision is 'fp64', which mps does not have")
    if train.compile and (missing := _missing_compiler(device)):
        raise SpecError(f"train.compile is true, and there is no {missing} here; without it, leave compile off")


def check_no_limits(execution: ExecSpec) -> None:
    """Raise SpecError for limits of batches: they are for a rehearsal."""
    if limits := [name for name in LIMITS if name in execution.trainer]:
        raise SpecError(f"trainer.{limits[0]} would change the numbers of a trial; it is for se-lab train --dry_run")


def _missing_compiler(device: str) -> str:
    """Return the tool that torch.compile lacks on a device, or an empty string."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
    except Exception:  # Inductor's InvalidCxxCompiler, whose home has moved
        return "C++ compiler (g++ or clang++)"
    return "" if shutil.which(compiler) else f"C++ compiler ({compiler})"


def check_built(spec: RunSpec, data: ImageData) -> None:
    """Raise SpecError for settings that need validation images if none are held out."""
    for key, is_set in (
        ("optim.schedule=plateau", spec.optim.schedule == "plateau"),
        ("train.select=best", spec.train.select == "best"),
    ):
        if is_set:
            check_split(spec.data, data.sizes, key)


def check_maps(net: nn.Module, spec: RunSpec, shape: tuple[int, int, int]) -> None:
    """Raise SpecError where a unit would see a smaller map than it is defined for; `shape` is (C, H, W) of an image."""
    units = [(name, module) for name, module in net.named_modules() if isinstance(module, Unit)]
    if all(unit.fewest_pixels == 1 for _, unit in units):
        return

    def look(name: str) -> Callable[..., None]:
        return lambda unit, inputs: unit.check_map(spec.model.se.unit, name, *inputs[0].shape[2:])

    _pass_zeros(net, shape, {unit: look(name) for name, unit in units})


def check_norms(net: nn.Module, spec: RunSpec, shape: tuple[int, int, int]) -> None:
    """Raise SpecError where a batch norm would see one value per channel, which has no variance.

    Args:
        net: The net, in any mode; it is left as it was.
        spec: How many images a norm sees.
        shape: (C, H, W) of an image.
    """
    parts = spec.train.accumulate * (1 if spec.train.sync_bn else spec.train.ranks)
    if spec.data.batch_size > parts:
        return
    bad_norms: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                bad_norms.append(name)

        return hook

    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    _pass_zeros(net, shape, {norm: look(name) for name, norm in norms})
    if bad_norms:
        raise SpecError(
            f"data.batch_size is {spec.data.batch_size}, which gives batch norm {bad_norms[0]} one value a channel, of "
            "which it cannot take the variance; use batches of two or more images a device and micro-batch"
        )


def _pass_zeros(net: nn.Module, shape: tuple[int, int, int], hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    """Run a net in eval mode on one image of zeros, with pre-hooks on some modules; the net is left as it was."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    mode = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *shape))
    finally:
        net.train(mode)
        for handle in handles:
            handle.remove()
