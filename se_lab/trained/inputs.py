"""Preprocessing of images for a trained net, as in its trial or as in timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from se_lab.data import KNOWN, create_data, data_shape
from se_lab.data.folders import class_folders
from se_lab.data.memory import MemoryData
from se_lab.spec import DATA_SETS, DataSpec, RunSpec, SpecError, expand_path, nearest


def is_opened(name: str) -> bool:
    """Return whether the preprocessing of a data set is known only once it is opened."""
    info = KNOWN.get(name)
    return info.in_memory if info else name in DATA_SETS["table"]


def open_pretrained(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a pretrained timm net in eval mode on the CPU, and its data config.

    Args:
        name: A model name with or without a tag, such as seresnet50.ra2_in1k.

    Raises:
        SpecError: if timm does not know the name, or the weights cannot be loaded.
    """
    check_pretrained(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise SpecError(
            f"the weights of {name} cannot be loaded: {str(error).splitlines()[0]}; timm downloads them once from the "
            "Hugging Face hub, into HF_HOME"
        ) from error
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return model.eval(), config


def check_pretrained(name: str) -> None:
    """Raise SpecError if timm does not know a model name; folders and hub repositories pass."""
    if ":" not in name and not timm.is_model(arch := name.split(".")[0]):
        raise SpecError(f"timm has no net called {arch!r}{nearest(arch, timm.list_models())}")


def input_size(data: DataSpec, root: str | Path = ".") -> tuple[int, int, int]:
    """Return the shape (C, H, W) of a data set's images after preprocessing."""
    if data.name in KNOWN or is_opened(data.name):
        return data_shape(data, root=root).shape
    side = data.image_size or 224
    return 3, side, side


def trial_config(spec: RunSpec, root: str | Path = ".") -> dict[str, Any]:
    """Return timm's data config for a trial's net.

    Its keys are input_size (C, H, W), crop_pct, interpolation, mean and std, for pixels from 0 to 1.

    Args:
        spec: The trial.
        root: Folder of the data set; mean and std of a set in memory are those of its training images.

    Raises:
        DataError: if the data set is missing, and its mean and std are needed.
    """
    data = spec.data
    config: dict[str, Any] = {"input_size": input_size(data, root), "interpolation": "bilinear"}
    images: Any = create_data(data, spec.seed, root=root) if is_opened(data.name) else None
    if not isinstance(images, MemoryData):
        return config | {"crop_pct": data.crop_pct, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    mean, std = (tuple((values / 255).flatten().tolist()) for values in (images.mean, images.std))
    return config | {"crop_pct": 1.0, "mean": mean, "std": std}


def class_names(spec: RunSpec, classes: int, root: str | Path = ".") -> list[str] | None:
    """Return a trial's class names in the order of the outputs; None if its data is missing."""
    if is_opened(spec.data.name):
        return list(create_data(spec.data, spec.seed, root=root).classes)
    folder = expand_path(spec.data.name.removeprefix("folder:"), root) / "train"
    names = class_folders(folder) if folder.is_dir() else []
    return names if len(names) == classes else None


def pick_device(name: str) -> torch.device:
    """Return the device with a name; auto means the GPU, if there is one.

    Raises:
        SpecError: for cuda if PyTorch finds no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SpecError("device is 'cuda', but PyTorch finds no GPU; use cpu or auto")
    return torch.device(name)
