"""Maps of the gates of spatial units, such as CBAM and coordinate attention, over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from se_lab.excitations.capture import capture_excitations
from se_lab.excitations.figures import paper_units
from se_lab.excitations.images import LabelledImages, class_label
from se_lab.report.figures.look import Look, fallback_fonts, settings_of_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def map_figure(model: nn.Module, images: LabelledImages, classes: Sequence[int], look: Look) -> Figure | None:
    """Draw maps of gates, averaged over channels, over one picture of each class.

    Columns are the units of Figures 6 and 7, with separate colour scales given in their titles. None if no gate varies
    over H×W.
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
    gate_maps = {name: np.concatenate([part[name] for part in maps]) for name in maps[0]}
    names = [name for name in paper_units(capture.sites) if name in gate_maps]
    labels = [class_label(images.classes[label]) for label in classes]
    with settings_of_style(look.settings(fallback_fonts(labels)[0])):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = 1 + len(names)
        figure = Figure(figsize=(look.inches, look.inches * len(pictures) / columns + 0.6 * look.scale))
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(len(pictures), columns, squeeze=False).flat)
        for row, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            row_axes = axes[row * columns : (row + 1) * columns]
            _show(row_axes[0], picture)
            row_axes[0].set_ylabel(label)
            for panel, name in zip(row_axes[1:], names, strict=True):
                _show(panel, picture)
                low, high = float(gate_maps[name].min()), float(gate_maps[name].max())
                extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
                overlay = panel.imshow(gate_maps[name][row], "viridis", vmin=low, vmax=high, alpha=0.6, extent=extent)
                overlay.set_interpolation("bilinear")
                if row == 0:
                    panel.set_title(f"{name}\n{low:.3f} to {high:.3f}", fontsize=look.small)
        title = "Gates by position" if look.title is None else look.title
        note = "mean over channels; dark is low, yellow is high"
        text = f"{title}\n{note}" if title else note
        figure.suptitle(text, fontsize=look.small)
        figure.set_label(text)
    return figure


def _grey(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert a net's input (C, H, W) to grey values from 0 to 1."""
    grey: NDArray[np.float32] = image.mean(0)
    low, high = grey.min(), grey.max()
    return (grey - low) / (high - low) if high > low else np.zeros_like(grey)


def _show(axes: Axes, picture: NDArray[np.float32]) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
