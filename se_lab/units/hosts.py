"""Forward hooks that attach units to the modules of a net, and checks that no unit is lost.

The hooks are module-level functions, so that a patched net can be pickled, copied, scripted and exported. `self` is Any
because TorchScript compiles them as methods of the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from se_lab.spec import SpecError
from se_lab.units.unit import Unit


def attach(host: nn.Module, how: str, channels_last: bool, unit: Unit) -> str:
    """Make a unit a child of its host and register its hook; return the child's name."""
    runs_last = how not in ("input", *BLOCK_HOOKS) and is_sequential(host)
    child = "se_unit" if how in BLOCK_HOOKS or (runs_last and hasattr(host, "se")) else "se"
    host.add_module(child, unit)
    if runs_last:  # in a Sequential the child simply runs last
        return child
    if how in ("input", "joined", "argument"):
        hook = BLOCK_HOOKS.get(how) or (scale_input_channels_last if channels_last else scale_input)
        host.register_forward_pre_hook(hook)
    elif how == "block" and channels_last:
        host.register_forward_hook(scale_block_channels_last)
    else:
        host.register_forward_hook(BLOCK_HOOKS.get(how, scale_output))
    host.__class__ = visible(type(host))
    return child


def is_sequential(module: Any) -> bool:
    """Return whether a module only runs its children in order."""
    return isinstance(module, nn.Module) and type(module).forward is nn.Sequential.forward


def scale_input(self: Any, inputs: tuple[Tensor]) -> Tensor:
    """Forward pre-hook: scale the host's input, (N, C, H, W), by the host's unit."""
    scaled: Tensor = self.se(inputs[0])
    return scaled


def scale_input_channels_last(self: Any, inputs: tuple[Tensor]) -> Tensor:
    """Forward pre-hook: scale the host's input, (N, H, W, C), by the host's unit."""
    scaled: Tensor = self.se(inputs[0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return scaled


def scale_output(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: scale the host's output, (N, C, H, W), by the host's unit."""
    scaled: Tensor = self.se(output)
    return scaled


def scale_block(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: scale the block's output, (N, C, H, W), by the block's unit."""
    scaled: Tensor = self.se_unit(output)
    return scaled


def scale_block_channels_last(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: scale the block's output, (N, H, W, C), by the block's unit."""
    scaled: Tensor = self.se_unit(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return scaled


def scale_added_shortcut(self: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: scale the shortcut x in the block's output, branch + x, by its unit.

    With a gate of 1 the output does not change by a bit: x · 1 − x is 0.
    """
    x = inputs[0]
    scaled: Tensor = output + (self.se_unit(x) - x)
    return scaled


def scale_shortcut_argument(self: Any, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: scale the block's shortcut, its second argument or x, by its unit."""
    x, *rest = inputs
    shortcut = rest[0] if rest and rest[0] is not None else x
    return (x, self.se_unit(shortcut), *rest[1:])


def scale_joined_input(self: Any, inputs: tuple[Any]) -> tuple[list[Tensor]]:
    """Forward pre-hook: scale the block's input, a map or a list of maps, by its unit."""
    features = inputs[0]
    joined = features if isinstance(features, Tensor) else torch.cat(features, 1)
    return ([self.se_unit(joined)],)


BLOCK_HOOKS: dict[str, Callable[..., Any]] = {
    "block": scale_block,
    "added": scale_added_shortcut,
    "argument": scale_shortcut_argument,
    "joined": scale_joined_input,
}
"""Hooks on blocks, which may already have an attribute `se`."""


def visible(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class for a host: for a PyTorch layer, a subclass that torch.fx traces into.

    PyTorch's layers are leaves for torch.fx: its tools fold them into their neighbours, or replace them by quantised
    layers, and drop the unit.
    """
    is_leaf = getattr(nn, cls.__name__, None) is cls
    traceable = cls is nn.BatchNorm2d or not hasattr(cls, "_check_input_dim")
    return getattr(sys.modules[__name__], f"Host{cls.__name__}") if is_leaf and traceable else cls


class HostBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with a unit."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # PyTorch's check branches on the input, which torch.fx cannot trace


def __getattr__(name: str) -> Any:
    """Create the host class of a PyTorch layer, such as HostConv2d, on first use (also by pickle)."""
    base = getattr(nn, name.removeprefix("Host"), None)
    if not name.startswith("Host") or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, type(name, (base,), {"__module__": __name__}))


def watch(net: nn.Module, hosts: dict[str, str]) -> None:
    """Check in each forward pass of a net that no norm with a unit was replaced.

    Args:
        net: The patched net.
        hosts: Paths of norms, by site name.
    """
    if hosts:
        net.se_hosts = hosts  # type: ignore[assignment]
        net.register_forward_pre_hook(check_hosts)


def check_hosts(self: Any, inputs: tuple[Tensor]) -> None:
    """Forward pre-hook of the net: raise SpecError if a norm with a unit was replaced."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        _check_hosts(self)


def _check_hosts(net: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for name, path in net.se_hosts.items():
        host = net.get_submodule(path)
        if not any(hook in (scale_output, scale_block) for hook in host._forward_hooks.values()):
            raise SpecError(
                f"{name} no longer runs: its norm {path} was replaced by a {type(host).__name__} after the units were "
                "inserted; convert or freeze norms before insert_se (create_model converts them with sync_bn=True)"
            )
