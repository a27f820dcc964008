"""timm's interface for SE-Lab's own backbones: head, classifier access, parameter groups."""

# no postponed annotations: torch.fx copies those of `forward` into its graphs, and TorchScript has to resolve them
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from timm.layers.classifier import create_classifier
from timm.layers.create_act import get_act_layer
from timm.layers.create_norm import get_norm_layer
from timm.layers.drop import DropPath
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import nn
from torch.nn import functional as F


class Factory(TypedDict):
    """Device and dtype of a module's tensors."""

    device: torch.device | str | None
    dtype: torch.dtype | None


@dataclass(frozen=True)
class NetOptions:
    """The arguments that all of timm's nets accept."""

    num_classes: int = 1000
    in_chans: int = 3
    global_pool: str = "avg"
    act_layer: Any = nn.ReLU
    norm_layer: Any = nn.BatchNorm2d
    drop_rate: float = 0.0
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    @property
    def factory(self) -> Factory:
        """The device and dtype of the net's tensors."""
        return {"device": self.device, "dtype": self.dtype}

    @property
    def layers(self) -> dict[str, Any]:
        """The arguments of a block: the classes of activation and norm, device and dtype."""
        norm: Any = get_norm_layer
        return {"act_layer": get_act_layer(self.act_layer), "norm_layer": norm(self.norm_layer), **self.factory}


@dataclass(frozen=True)
class ResidualOptions(NetOptions):
    """The arguments that all of timm's residual nets accept."""

    drop_path_rate: float = 0.0
    zero_init_last: bool = False


class ConvNet(nn.Module):
    """Base class of convolutional classifiers with timm's interface.

    A subclass defines `forward_features`. Its constructor calls `super().__init__`, registers modules in the order of
    the forward pass (timm's feature extraction depends on it), calls `add_feature` for each stage, and ends with
    `add_head` and `init_weights`.
    """

    def __init__(self, options: NetOptions) -> None:
        super().__init__()
        self.num_classes = options.num_classes
        self.in_chans = options.in_chans
        self.drop_rate = float(options.drop_rate)
        self.feature_info: list[dict[str, Any]] = []

    def add_feature(self, module: str, channels: int, reduction: int) -> None:
        """Add a stage to timm's `feature_info`: its last module, channels and reduction of size."""
        self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": module})

    def add_head(self, num_features: int, global_pool: str, factory: Factory) -> None:
        """Create the pooling and the classifier: (N, num_features, H, W) to (N, num_classes)."""
        self.num_features = num_features
        self.global_pool, self.fc = create_classifier(num_features, self.num_classes, pool_type=global_pool, **factory)
        self.head_hidden_size: int = num_features * self.global_pool.feat_mult()

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Draw convolution weights from N(0, 2 / fan_out) (He et al. 2015, arXiv 1502.01852).

        With `zero_init_last`, also call the method of that name of each block, if any, so that branches start at 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init_last:
            for module in self.modules():
                zero = getattr(module, "zero_init_last", None)
                if zero is not None:
                    zero()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of the layer groups, for timm's layer-wise learning-rate decay."""
        return {"stem": r"^(?!layer|fc|norm)", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise NotImplementedError if enabled: these nets do not support it."""
        if enable:
            raise NotImplementedError(f"{type(self).__name__} has no gradient checkpointing")

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the final linear layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the final linear layer, and the pooling if `global_pool` is given.

        With `num_classes` 0 there is no linear layer: `forward` returns the pooled features (N, C), or, with
        `global_pool` "", the maps (N, C, H, W).
        """
        self.num_classes = num_classes
        pool: str = self.global_pool.pool_type if global_pool is None else global_pool
        reference = next(self.parameters())
        self.add_head(self.num_features, pool, {"device": reference.device, "dtype": reference.dtype})
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to features (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final features and the stages' outputs (`feature_info`), as timm's nets do.

        Args:
            x: Images, (N, in_chans, H, W).
            indices: Indices into `feature_info`: a list, the last N, or None for all.
            norm: Ignored; part of timm's interface.
            stop_early: Stop after the last of these stages.
            output_fmt: Must be NCHW.
            intermediates_only: Return only the outputs of the stages.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; it must be NCHW")
        stage_indices, last = feature_take_indices(len(self.feature_info), indices)
        ends = [info["module"] for info in self.feature_info]
        maps = []
        for path, module in self._steps():
            x = module(x)
            stage = next((number for number, end in enumerate(ends) if path == end), None)
            if stage in stage_indices:
                maps.append(x)
            if stop_early and stage == last:
                break
        return maps if intermediates_only else (x, maps)

    def _steps(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (path, module) for the modules before the head, and for each module of a stage."""
        for name, child in self.named_children():
            if name == "global_pool":
                return
            if not isinstance(child, nn.Sequential):
                yield name, child
                continue
            *first, (end, block) = child.named_children()
            yield from ((f"{name}.{path}", module) for path, module in first)
            yield (f"{name}.{end}" if self._is_end(f"{name}.{end}") else name), block

    def _is_end(self, path: str) -> bool:
        return any(info["module"] == path for info in self.feature_info)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features (N, num_features, h, w) to logits, or with `pre_logits` to pooled features."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(drop_path_rate: float, depth: int) -> list[float]:
    """Return a drop rate per block, which rises linearly from 0 to `drop_path_rate`."""
    return [drop_path_rate * block / max(depth - 1, 1) for block in range(depth)]


def residual_stages(
    make_block: Callable[..., nn.Module],
    in_channels: int,
    channels: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
    drop_path_rate: float,
) -> list[nn.Sequential]:
    """Return stages of residual blocks; the first block of each stage has the stage's stride.

    `make_block(in_channels, channels, stride)` makes a block; its drop path has the rate of `drop_path_rates`.
    """
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
    stages = []
    for width, count, stride in zip(channels, depths, strides, strict=True):
        blocks = []
        for position in range(count):
            block = make_block(in_channels, width, 1 if position else stride)
            if (rate := next(rates)) > 0:
                block.drop_path = DropPath(rate)
            blocks.append(block)
            in_channels = width
        stages.append(nn.Sequential(*blocks))
    return stages


def imagenet_cfg(paper: str, first_conv: str) -> dict[str, Any]:
    """Return timm's default cfg for a net on ImageNet at 224 pixels; `paper` is an arXiv number."""
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "interpolation": "bilinear",
        "first_conv": first_conv,
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": f"arXiv:{paper}",
    }


def build(net: Callable[..., nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Build a registered net with its default cfg; all of timm's arguments are accepted."""
    return build_model_with_cfg(net, variant, pretrained, **kwargs)
