"""Fuse the units of a net, by classes whose forward runs fused."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from se_lab.parallel.sync_bn import SyncBatchNorm
from se_lab.units.fused import units
from se_lab.units.fused.passes import compiles
from se_lab.units.fused.torch_state import has_hooks, needs_plain_modules, only_forward_hook
from se_lab.units.hosts import scale_output, visible
from se_lab.units.squeeze_excite import SqueezeExcite
from se_lab.units.unit import Unit


def fuse(model: nn.Module) -> nn.Module:
    """Fuse the SE units of a net in place, and return the net.

    Parameters, state-dict keys and hooks do not change: the net can be copied, pickled, checkpointed, compiled,
    exported and wrapped by DistributedDataParallel, and both forms can load each other's weights. torch.jit.script
    undoes it, as `unfuse` does. Second derivatives need the plain form.
    """
    return _swap(model, FUSED)


def unfuse(model: nn.Module) -> nn.Module:
    """Undo `fuse` in place, and return the net."""
    return _swap(model, {fused: plain for plain, fused in FUSED.items()})


def form_of(model: nn.Module, path: str) -> str:
    """Return how the SE unit at a path runs in a fused net: tail, inner, unit or plain.

    tail fuses BN → SE → [drop path] → add → act, inner fuses BN → ReLU → SE, and unit only the unit; unit and plain may
    be followed by a reason, such as "unit: drop_block before the activation".
    """
    unit = model.get_submodule(path)
    assert isinstance(unit, Unit)
    if why_not := unit.why_not_fused():
        return f"plain: {why_not}"
    parent, _, name = path.rpartition(".")
    host = model.get_submodule(parent)
    if isinstance(host, (BasicBlock, Bottleneck)) and name == "se":
        last = 3 if isinstance(host, Bottleneck) else 2
        why_not = _no_tail(host, getattr(host, f"bn{last}"), getattr(host, f"act{last}"))
        return f"unit: {why_not}" if why_not else "tail"
    block = model.get_submodule(parent.rpartition(".")[0])
    middle = 2 if isinstance(block, Bottleneck) else 1
    if isinstance(block, (BasicBlock, Bottleneck)) and parent.endswith(f"act{middle}"):
        why_not = _no_inner(getattr(block, f"bn{middle}"), block.drop_block, host)
        return f"unit: {why_not}" if why_not else "inner"
    return "unit"


class _Fused(nn.Module):
    def __prepare_scriptable__(self) -> nn.Module:
        return unfuse(self)  # TorchScript compiles the result


class FusedSqueezeExcite(_Fused, SqueezeExcite):
    """A fused unit, x · gate(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (N, C, H, W), by its gate."""
        if not self.why_not_fused() and _suits(x):
            return units.scale(x, self)
        return super().forward(x)


class FusedBasicBlock(_Fused, BasicBlock):
    """timm's basic block with a fused tail, or BN → ReLU → SE after its first convolution."""

    aa: nn.Module  # timm annotates it as None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        y = self.aa(_inner(self.conv1(x), self.bn1, self.drop_block, self.act1))
        return _tail(self, self.conv2, y, self.bn2, self.act2, x)


class FusedBottleneck(_Fused, Bottleneck):
    """timm's bottleneck with a fused tail, or BN → ReLU → SE after its 3×3 convolution."""

    aa: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.aa(_inner(self.conv2(y), self.bn2, self.drop_block, self.act2))
        return _tail(self, self.conv3, y, self.bn3, self.act3, x)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    SqueezeExcite: FusedSqueezeExcite,
    BasicBlock: FusedBasicBlock,
    Bottleneck: FusedBottleneck,
}


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model


def _inner(x: Tensor, norm: Any, drop_block: nn.Module, act: Any) -> Tensor:
    if not _no_inner(norm, drop_block, act) and _suits(x, norm):
        return units.inner(x, norm, act.se)
    activated: Tensor = act(drop_block(norm(x)))
    return activated


def _tail(block: Any, conv: nn.Module, y: Tensor, norm: Any, act: nn.Module, shortcut: Tensor) -> Tensor:
    x = conv(y)
    if block.downsample is not None:
        shortcut = block.downsample(shortcut)
    same_kind = (shortcut.shape, shortcut.dtype, shortcut.device) == (x.shape, x.dtype, x.device)
    if same_kind and not _no_tail(block, norm, act) and _suits(x, norm):
        drop_path = None if isinstance(block.drop_path, nn.Identity) else block.drop_path
        reuse = type(conv) is nn.Conv2d and not _hooks(conv)  # nothing else uses its output
        return units.tail(x, shortcut, norm, block.se, drop_path, ACTIVATIONS[type(act)], reuse)
    x = norm(x)
    if block.se is not None:
        x = block.se(x)
    if block.drop_path is not None:
        x = block.drop_path(x)
    x += shortcut
    joined: Tensor = act(x)
    return joined


ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Identity: "identity"}


def _no_inner(norm: nn.Module, drop_block: nn.Module, act: Any) -> str:
    """Return why BN → ReLU → SE of these modules cannot be fused, or ""."""
    unit = getattr(act, "se", None)
    if not isinstance(unit, Unit) or unit.why_not_fused():
        return "no unit with a fused form after the activation"
    if type(act) is not visible(nn.ReLU):
        return f"the activation is {type(act).__name__}"
    if type(drop_block) is not nn.Identity:
        return "drop_block before the activation"
    if not only_forward_hook(act, scale_output):
        return "hooks on the activation"
    return _other_norm(norm) or _hooks(norm, drop_block, unit)


def _no_tail(block: Any, norm: nn.Module, act: nn.Module) -> str:
    """Return why BN → SE → add → act of these modules cannot be fused, or ""."""
    if not isinstance(block.se, Unit) or block.se.why_not_fused():
        return "no unit with a fused form before the addition"
    if type(act) not in ACTIVATIONS:
        return f"the activation is {type(act).__name__}"
    if block.drop_path is not None and type(block.drop_path) not in (DropPath, nn.Identity):
        return f"drop_path is {type(block.drop_path).__name__}"
    return _other_norm(norm) or _hooks(norm, block.se, act, *([] if block.drop_path is None else [block.drop_path]))


def _other_norm(norm: nn.Module) -> str:
    supported = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm) and not hasattr(norm, "act")
    return "" if supported else f"the norm is {type(norm).__name__}"


def _hooks(*modules: nn.Module) -> str:
    """Return 'hooks on the …' for the first module with hooks, or "" if there are none."""
    for module in modules:
        if has_hooks(module):
            return f"hooks on the {type(module).__name__}"
    return ""


def _suits(x: Tensor, norm: units.Norm | None = None) -> bool:
    """Return whether the passes can run on x."""
    if x.dim() != 4 or x.device.type not in ("cpu", "cuda") or not x.is_floating_point() or x.numel() == 0:
        return False
    if torch.compiler.is_exporting():
        return False  # an exported net has the plain operators
    if norm is not None and units.uses_batch(norm) and x.numel() == x.shape[1] and units.group_of(norm) is None:
        return False  # one value per channel, for which PyTorch raises an error
    if torch.compiler.is_compiling():
        return True
    if type(x) not in (Tensor, nn.Parameter) or needs_plain_modules():
        return False
    return x.dtype == torch.float64 or compiles(x.device.type)
