"""se_lab.trained.detection: torchvision's detectors train on our nets, as the SE paper's COCO row does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.transforms import v2

from se_lab.spec import ModelSpec, SESpec, SpecError
from se_lab.trained.detection import detection_backbone, write_detector
from se_lab.units.model import create_model

IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def net(backbone: str = "test_resnet", se: SESpec | None = None, **options) -> torch.nn.Module:
    return create_model(ModelSpec(backbone, se or SESpec(reduction=4), **options), 10)


def test_a_resnet_without_units_is_torchvisions_backbone_under_its_names(tmp_path):
    model = net("resnet18", SESpec("none"))
    for name, value in model.state_dict().items():
        if "running" in name:
            value.add_(0.1 * torch.rand_like(value))
    write_detector(model, tmp_path / "d.safetensors", {})
    ours = detection_backbone(model)
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None)  # with FrozenBatchNorm2d
    weights = {key: value for key, value in load_file(tmp_path / "d.safetensors").items() if "tracked" not in key}
    result = theirs.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and all(key.startswith("fpn.") for key in result.missing_keys)
    for left, right in zip(ours.train().body(IMAGES).values(), theirs.train().body(IMAGES).values(), strict=True):
        assert torch.allclose(left, right, atol=1e-4, rtol=1e-4)
    learns = {key.removesuffix(".weight") for key, value in theirs.body.named_parameters() if value.requires_grad}
    assert {key.removesuffix(".weight") for key, value in ours.body.named_parameters() if value.requires_grad} == learns


@pytest.mark.parametrize(
    "backbone",
    [
        "test_resnet",
        "test_efficientnet",
        "test_convnext",
        "test_mambaout",
        "regnetx_002",
        "shufflenet_v1_g3",
        "tresnet_m",
    ],
)
def test_every_family_gives_maps_of_strides_4_to_32(backbone):
    ours = detection_backbone(net(backbone, SESpec(reduction=4), existing_se="replace"), out_channels=16)
    assert isinstance(ours, BackboneWithFPN)
    maps = ours(IMAGES)
    assert [tuple(one.shape[1:]) for one in maps.values()] == [
        (16, 24, 32), (16, 12, 16), (16, 6, 8), (16, 3, 4), (16, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "learn"),
    [(0, []), (1, ["layer4"]), (3, ["layer2", "layer3", "layer4"]), (4, ["layer1", "layer2", "layer3", "layer4"])],
)
def test_the_last_stages_learn_with_their_units_and_batch_norms_never(stages, learn):
    body = detection_backbone(net(), trainable_stages=stages).train().body
    for name, parameter in body.named_parameters():
        owner = body.get_submodule(name.rpartition(".")[0])
        wanted = name.split(".")[0] in learn and not isinstance(owner, torch.nn.BatchNorm2d)
        assert parameter.requires_grad == wanted, name
    before = body.bn1.running_mean.clone()
    body(IMAGES)
    assert torch.equal(body.bn1.running_mean, before) and body.layer4.training


def test_five_stages_are_all_and_norms_can_learn():
    body = detection_backbone(net(), trainable_stages=5, frozen_norms=False).train().body
    assert all(parameter.requires_grad for parameter in body.parameters())
    before = body.bn1.running_mean.clone()
    body(IMAGES)
    assert not torch.equal(body.bn1.running_mean, before)


def test_nets_without_a_feature_pyramid_are_refused():
    with pytest.raises(SpecError, match="are 1, 2, 4; a feature pyramid needs at least two of"):
        detection_backbone(net("cifar_resnet20"))
    with pytest.raises(SpecError, match="trainable_stages is 6"):
        detection_backbone(net(), trainable_stages=6)


@pytest.fixture
def coco(tmp_path):
    """Return a COCO set of eight images on disk, read by torchvision: a bright square or a dark bar on noise."""
    pytest.importorskip("pycocotools")
    noise, pictures, boxes = np.random.default_rng(0), [], []
    for number in range(8):
        pixels = noise.integers(90, 140, (96, 96, 3), dtype=np.uint8)
        kind = number % 2
        width, height = ((32, 32), (48, 20))[kind]
        x, y = (int(corner) for corner in noise.integers(4, 40, 2))
        pixels[y : y + height, x : x + width] = (250, 5)[kind]
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        pictures.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
        about = {"id": number + 1, "image_id": number, "category_id": kind + 1, "iscrowd": 0}
        boxes.append(about | {"bbox": [x, y, width, height], "area": width * height, "segmentation": []})
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}]
    annotations = {"images": pictures, "annotations": boxes, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    made = torchvision.datasets.CocoDetection(
        tmp_path,
        tmp_path / "instances.json",
        transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    )
    return torchvision.datasets.wrap_dataset_for_transforms_v2(made, target_keys=["boxes", "labels"])


def test_faster_r_cnn_learns_a_coco_set_and_the_units_with_it(coco):
    torch.manual_seed(0)
    backbone = detection_backbone(net(se=SESpec(reduction=4)), trainable_stages=3, out_channels=32)
    detector = FasterRCNN(backbone, num_classes=3, min_size=96, max_size=96, box_detections_per_img=5).train()
    images, targets = zip(*coco, strict=True)
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum(detector(list(images), list(targets)).values())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:2])
    for site in backbone.body.se_sites:
        gradient = backbone.body.get_submodule(site.path).reduce.weight.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == (site.stage >= 3), site.name
