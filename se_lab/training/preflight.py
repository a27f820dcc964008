"""Check for errors before a trial starts, so that no work is lost."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from se_lab.data import ImageData, check_split
from se_lab.spec import ExecSpec, RunSpec, SpecError, check_choice
from se_lab.spec.text import counted
from se_lab.spec.trainer_flags import LIMITS
from se_lab.store import check_store, cpu_model
from se_lab.training.optimize import check_optimizer
from se_lab.units.unit import Unit


def device_of(execution: ExecSpec) -> str:
    """Return the type of the device that a trial runs on: cpu, cuda or mps."""
    if execution.device != "auto":
        return execution.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_model(execution: ExecSpec) -> str:
    """Return the model of the device that a trial runs on, such as 'NVIDIA H100 80GB HBM3'."""
    kind = device_of(execution)
    if kind == "cuda":  # a trial that finished on another machine may be requested on one without a GPU
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return cpu_model() if kind == "cpu" else f"{cpu_model()} ({kind})"


WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def wandb_mode() -> str:
    """Return WANDB_MODE; by default online for an agent's trial, else offline.

    Empty variables of W&B are unset, since its client would reject them.

    Raises:
        SpecError: for an invalid mode.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    mode = os.environ.get("WANDB_MODE", "online" if "WANDB_SWEEP_ID" in os.environ else "offline")
    check_choice("WANDB_MODE", mode, WANDB_MODES)
    return mode


def check_before(spec: RunSpec, execution: ExecSpec) -> None:
    """Raise SpecError for an invalid store, or settings that this machine does not support."""
    check_store(execution.store)
    if execution.logger == "wandb":
        wandb_mode()
    if execution.logger == "tensorboard" and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise SpecError("logger is 'tensorboard', but its package is missing: pip install tensorboard")
    check_optimizer(spec.optim)
    train, device = spec.train, device_of(execution)
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device is 'cuda', but PyTorch finds no GPU; auto uses a GPU only if there is one")
    if device == "cuda" and train.devices > (count := torch.cuda.device_count()):
        raise SpecError(f"train.devices is {train.devices}, but PyTorch finds {counted(count, 'GPU')}")
    if device == "mps" and train.ranks > 1:
        raise SpecError(f"train.devices is {train.devices}, but mps is a single device")
    if train.precision == "fp16" and device == "cpu":
        raise SpecError("train.precision is 'fp16', which is for GPUs; bf16 runs on CPUs too")
    if train.precision == "fp64" and device == "mps":
        raise SpecError("train.precision is 'fp64', which mps does not support")
    if train.compile and (missing := _missing_compiler(device)):
        raise SpecError(f"train.compile is true, but no {missing} was found; set train.compile to false")


def check_no_limits(execution: ExecSpec) -> None:
    """Raise SpecError for limits on batches, which are for rehearsals only."""
    if limits := [name for name in LIMITS if name in execution.trainer]:
        raise SpecError(f"trainer.{limits[0]} would affect a trial's results; use it with se-lab train --dry_run only")


def _missing_compiler(device: str) -> str:
    """Return the name of a missing tool that torch.compile needs, or an empty string."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
    except Exception:  # Inductor's InvalidCxxCompiler, whose module differs between versions
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
    """Raise SpecError if the maps of a unit would be too small; `shape` is an image's (C, H, W)."""
    units = [(name, module) for name, module in net.named_modules() if isinstance(module, Unit)]
    if all(unit.fewest_pixels == 1 for _, unit in units):
        return

    def check(name: str) -> Callable[..., None]:
        return lambda unit, inputs: unit.check_map(spec.model.se.unit, name, *inputs[0].shape[2:])

    _pass_zeros(net, shape, {unit: check(name) for name, unit in units})


def check_norms(net: nn.Module, spec: RunSpec, shape: tuple[int, int, int]) -> None:
    """Raise SpecError if a batch norm would have one value per channel, which has no variance.

    Args:
        net: The net, whose mode is restored.
        spec: The trial, for the number of images that a norm sees.
        shape: The shape of an image, (C, H, W).
    """
    parts = spec.train.accumulate * (1 if spec.train.sync_bn else spec.train.ranks)
    if spec.data.batch_size > parts:
        return
    bad_norms: list[str] = []

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                bad_norms.append(name)

        return hook

    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    _pass_zeros(net, shape, {norm: check(name) for name, norm in norms})
    if bad_norms:
        raise SpecError(
            f"data.batch_size is {spec.data.batch_size}, which gives batch norm {bad_norms[0]} one value per channel, "
            "without a variance; it must be at least two images per device and micro-batch"
        )


def _pass_zeros(net: nn.Module, shape: tuple[int, int, int], hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    """Run a net in eval mode on an image of zeros with temporary forward pre-hooks."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    mode = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *shape))
    finally:
        net.train(mode)
        for handle in handles:
            handle.remove()
