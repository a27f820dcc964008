"""Small nets and images whose excitations are known, for the tests of the excitations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from se_lab.excitations.capture import GateSite
from se_lab.excitations.collect import TrainedNet
from se_lab.excitations.images import LabelledImages
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.spec import DataSpec, ModelSpec, RunSpec, SESpec
from se_lab.store import RunRecord, write_record
from se_lab.units.model import create_model
from se_lab.units.squeeze_excite import SqueezeExcite

CLASSES = ["cat", "dog", "pug"]


def write_trial(store: Path, *, seed: int = 0, epoch: int = 0, data: str = "digits", **se: object) -> Path:
    """A finished trial of an untrained net on digits, its checkpoint as Lightning lays it out."""
    spec = RunSpec(ModelSpec("cifar_resnet20", SESpec(**se)), DataSpec(name=data), seed=seed)
    folder = store / spec.trial_id
    (folder / "claims").mkdir(parents=True)
    model = create_model(spec.model, 10, 1, seed=seed)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    for name in ("last.ckpt", "best.ckpt"):
        torch.save({"state_dict": state, "epoch": epoch}, folder / name)
    record = RunRecord(spec.trial_id, "finished", spec.flat(), {"plugins": ""}, data={"classes": 10})
    record.metrics = {"test/top1_error": 90.0}
    write_record(folder, record)
    return folder


class Driven(nn.Module):
    """One SE unit of four channels, then a classifier: class 2's images drive the gate of channel 3, nothing else.

    The images' first channel is bright for class 2; the gates of channels 0 to 2 are constant, 1/2.
    """

    def __init__(self) -> None:
        super().__init__()
        unit = SqueezeExcite(4, SESpec(reduction=2, bias=True))
        for parameter in unit.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            unit.reduce.weight[0, 0] = 1.0
            unit.expand.weight[3, 0] = 2.0
        self.blocks = nn.Sequential(nn.Sequential(unit))
        self.num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        """Channel 3, which is 1 everywhere in the images, carries the gate: above 0.8 the image is of class 2."""
        gate = self.blocks(x)[:, 3].mean((1, 2))
        return torch.stack([torch.full_like(gate, 0.8), torch.zeros_like(gate), gate], dim=1)


def driven_images(n: int = 90) -> LabelledImages:
    stream = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 3
    images = torch.rand(n, 4, 5, 5, generator=stream) * 0.1
    images[:, 0] += 2.0 * (labels == 2)[:, None, None]
    images[:, 3] = 1.0

    def batches(numbers: Tensor):
        for part in numbers.split(16):
            yield images[part], labels[part], part

    def picture(number: int) -> Image.Image:
        return Image.fromarray(np.full((20, 20, 3), number, dtype=np.uint8))

    return LabelledImages("made up", CLASSES, labels, "d0", batches, picture)


def of_gates(gates: Tensor, classes: int = 2) -> ExcitationStatistics:
    """Statistics of one unit, SE_2_1, from its gates (N, C) of images whose classes take turns."""
    statistics = ExcitationStatistics(
        [GateSite("SE_2_1", 2, 1, gates.shape[1], "u")], [f"c{k}" for k in range(classes)]
    )
    statistics.update({"SE_2_1": gates}, torch.arange(len(gates)) % classes)
    return statistics


def driven_net() -> TrainedNet:
    return TrainedNet("driven", Driven().eval(), None, {"source": "here", "variant": "driven"})
