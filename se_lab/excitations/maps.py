"""Where in a picture the gates of spatial units are high, such as CBAM's and coordinate attention's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from se_lab.excitations.capture import capture_excitations
from se_lab.excitations.figures import grid, papers_units
from se_lab.excitations.images import LabelledImages, class_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def map_figure(model: nn.Module, images: LabelledImages, classes: Sequence[int]) -> Figure | None:
    """Draw the gate's mean over channels over one picture of each class; None where no gate varies over H×W.

    Columns are the units of Figures 6 and 7, each with a colour scale of its own, which its title gives.
    """
    numbers = torch.tensor([int((images.labels == label).nonzero()[0]) for label in classes])
    device = next(model.parameters()).device
    pictures, maps = [], []
    with torch.inference_mode(), capture_excitations(model.eval(), maps=True) as capture:
        for batch, *_ in images.batches(numbers):
            model(batch.to(device))
            if not capture.maps:
                return None
            pictures += [_grey(image.numpy()) for image in batch]
            maps.append({name: values.float().cpu().numpy() for name, values in capture.maps.items()})
    found = {name: np.concatenate([part[name] for part in maps]) for name in maps[0]}
    names = [name for name in papers_units(capture.sites) if name in found]
    with grid(len(pictures), 1 + len(names), 1.25 * (1 + len(names)), 1.25 * len(pictures) + 0.5) as (figure, axes):
        for row, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
            here = axes[row * (1 + len(names)) : (row + 1) * (1 + len(names))]
            _show(here[0], picture)
            here[0].set_ylabel(class_label(images.classes[label]))
            for panel, name in zip(here[1:], names, strict=True):
                _show(panel, picture)
                low, high = float(found[name].min()), float(found[name].max())
                whole = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
                over = panel.imshow(found[name][row], "viridis", vmin=low, vmax=high, alpha=0.6, extent=whole)
                over.set_interpolation("bilinear")
                if row == 0:
                    panel.set_title(f"{name}\n{low:.3f} to {high:.3f}", fontsize="small")
        figure.suptitle("Gates by position, mean over channels: dark is low, yellow is high")
    return figure


def _grey(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a net's input, (C, H, W), as grey values from 0 to 1."""
    grey: NDArray[np.float32] = image.mean(0)
    low, high = grey.min(), grey.max()
    return (grey - low) / (high - low) if high > low else np.zeros_like(grey)


def _show(axes: Axes, picture: NDArray[np.float32]) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
