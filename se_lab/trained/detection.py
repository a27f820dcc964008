"""A trained net as the backbone of torchvision's detectors (SE paper, section 5.4)."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from se_lab.spec import SpecError
from se_lab.trained.inputs import open_pretrained
from se_lab.trained.load import load_trained
from se_lab.units.places import name_of

STRIDES = (4, 8, 16, 32)
"""Strides of C2 to C5, the ends of stages 2 to 5, in image pixels (Lin et al. 2017, Feature Pyramid Networks)."""
DETECTOR_FILE = "detector.safetensors"


def detection_backbone(
    source: str | Path | nn.Module, *, trainable_stages: int = 3, frozen_norms: bool = True, out_channels: int = 256
) -> BackboneWithFPN:
    """Build a backbone with a feature pyramid for torchvision's `FasterRCNN` and the like.

    The backbone maps images (N, C, H, W) to maps "0" to "3" of strides 4 to 32 and "pool", of `out_channels` channels
    each. Its `body` is a copy of the net without the classifier; parameters keep their names under `body`, which for a
    ResNet without SE units are those of torchvision.

    Args:
        source: A trial's folder or checkpoint, timm:NAME, or a timm net with or without SE units.
        trainable_stages: Number of final stages to train, with their SE units, as torchvision's
            `trainable_backbone_layers`: 0 to 5, where 5 adds the stem.
        frozen_norms: Freeze statistics, scale and shift of batch norms, as torchvision's FrozenBatchNorm2d.
        out_channels: Width of the pyramid.

    Raises:
        SpecError: if the net cannot be loaded, or its stages are unknown or fewer than two.

    Examples:
        >>> net = create_model(ModelSpec("resnet18", SESpec(reduction=8)), num_classes=10)
        >>> backbone = detection_backbone(net)
        >>> list(backbone(torch.randn(1, 3, 64, 64)))
        ['0', '1', '2', '3', 'pool']
    """
    if not 0 <= trainable_stages <= len(STRIDES) + 1:
        raise SpecError(f"trainable_stages is {trainable_stages}; it must be 0 to {len(STRIDES) + 1}")
    if isinstance(source, nn.Module):
        net = copy.deepcopy(source)
    elif str(source).startswith("timm:"):
        net, _ = open_pretrained(str(source).removeprefix("timm:"))
    else:
        net, _ = load_trained(source)
    return _Detector(StageMaps(net, frozen_norms).freeze(trainable_stages), out_channels)


def write_detector(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a net's weights with the keys of a detector's backbone, such as body.conv1.weight."""
    state = detection_backbone(model).body.state_dict()
    save_file({f"body.{key}": value.contiguous() for key, value in state.items()}, path, metadata)


class StageMaps(nn.Module):
    """Map images (N, C, H, W) to the outputs of a net's stages, {"0": (N, C2, H/4, W/4), …}."""

    def __init__(self, net: nn.Module, frozen_norms: bool = True) -> None:
        super().__init__()
        info: Any = list(getattr(net, "feature_info", None) or [])
        indices = {entry["reduction"]: number for number, entry in enumerate(info)}
        self.levels = [indices[stride] for stride in STRIDES if stride in indices]
        if len(self.levels) < 2:
            raise SpecError(
                f"the strides of {name_of(net)} are {', '.join(map(str, indices)) or 'unknown'}; "
                f"a feature pyramid needs at least two of {', '.join(map(str, STRIDES))}"
            )
        model: Any = net
        self.ends = [str(info[level]["module"]) for level in self.levels]
        if unknown_ends := [end for end in self.ends if end not in dict(net.named_modules())]:
            raise SpecError(f"{name_of(net)} has no module {', '.join(unknown_ends)}, where a stage should end")
        self.frozen_norms = frozen_norms
        if hasattr(net, "prune_intermediate_layers"):
            model.prune_intermediate_layers(self.levels, prune_norm=False, prune_head=True)
        else:
            model.reset_classifier(0, "")
        # The children are registered again, so that parameters keep their names; a tuple hides the net from PyTorch.
        self._net = (net,)
        for name, child in net.named_children():
            self.add_module(name, child)
        for name, parameter in net.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.se_sites = getattr(net, "se_sites", [])
        self.channels = self._measure()
        self.train(net.training)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps in order of increasing stride."""
        net: Any = self._net[0]
        if hasattr(net, "forward_intermediates"):
            maps = net.forward_intermediates(images, indices=self.levels, intermediates_only=True)
        else:
            maps = self._maps_at_ends(images)
        return OrderedDict((str(number), feature_map) for number, feature_map in enumerate(maps))

    def train(self, mode: bool = True) -> StageMaps:
        """Set the mode of all modules except frozen batch norms, which stay in eval mode."""
        super().train(mode)
        self._net[0].training = mode
        for norm in self._frozen():
            norm.training = False
        return self

    def freeze(self, trainable_stages: int) -> StageMaps:
        """Freeze all parameters except those of the last stages."""
        paths = [path for path, _ in self.named_modules()]
        ends = [max(n for n, path in enumerate(paths) if f"{path}.".startswith(f"{end}.")) for end in self.ends]
        stem = next(n for n, path in enumerate(paths) if f"{path}.".startswith(f"{self.ends[0]}.")) - 1
        starts = [-1, stem, *ends[:-1]]  # the index of the module before the stem and before each stage
        last_frozen = starts[len(starts) - trainable_stages] if trainable_stages else ends[-1]
        for number, module in enumerate(self.modules()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(last_frozen < number <= ends[-1])
        for norm in self._frozen():
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(False)
        return self

    def _frozen(self) -> list[nn.Module]:
        return [module for module in self.modules() if self.frozen_norms and isinstance(module, _BatchNorm)]

    def _maps_at_ends(self, images: Tensor) -> list[Tensor]:
        net: Any = self._net[0]
        outputs: dict[str, Tensor] = {}

        def keep(end: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[end] = output

        handles = [
            net.get_submodule(end).register_forward_hook(functools.partial(keep, end))
            for end in dict.fromkeys(self.ends)
        ]
        try:
            net.forward_features(images)
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[end] for end in self.ends]

    def _measure(self) -> list[int]:
        """Return the number of channels of each map, from a forward pass of a small image.

        Raises:
            SpecError: if a map is not smaller than the one before.
        """
        weight = next(self.parameters())
        side, mode = 128, self._net[0].training
        self.eval()
        with torch.inference_mode():
            channels = getattr(self._net[0], "in_chans", None) or weight.shape[1]  # or those of the first layer
            image = torch.zeros(1, int(channels), side, side, device=weight.device, dtype=weight.dtype)
            shapes = [tuple(feature_map.shape) for feature_map in self(image).values()]
        self.train(mode)
        heights = [shape[2] for shape in shapes]
        if any(fine <= coarse for fine, coarse in itertools.pairwise(heights)):
            raise SpecError(
                f"{name_of(self._net[0])} has maps of {heights} rows; each must be smaller than the one before"
            )
        return [shape[1] for shape in shapes]


class _Detector(BackboneWithFPN):  # type: ignore[misc]
    """BackboneWithFPN without torchvision's constructor, which takes sequential nets only."""

    def __init__(self, body: StageMaps, out_channels: int) -> None:
        nn.Module.__init__(self)
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, out_channels, LastLevelMaxPool())
        self.out_channels = out_channels
