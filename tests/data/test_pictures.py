"""Encoded images: what becomes of odd ones, and crops, flips and RandAugment against torchvision's and timm's."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy import stats
from timm.data.auto_augment import RandAugment
from torchvision import transforms as v1
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

from se_lab.data import create_data
from se_lab.data.augment import keyed_globals
from se_lab.data.pictures import PictureTransform, decode, why_unreadable
from se_lab.spec import DataSpec, SpecError


@pytest.mark.parametrize(
    ("size", "crop_pct", "short_side"), [(224, 0.875, 256), (299, 299 / 352, 352), (299, 0.8494, 352)]
)
def test_evaluation_is_torchvisions_resize_and_central_crop(folders, batches, size, crop_pct, short_side):
    spec = folders(images=1, image_size=size, crop_pct=crop_pct)
    data = create_data(spec, 0)
    transform = v2.Compose(
        [
            v2.Resize(short_side),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    ((found, _, numbers),) = batches(data.test_dataloader())
    for image, number in zip(found, numbers.tolist(), strict=True):
        assert torch.allclose(image, transform(pil_loader(data.root / data.test_keys()[number])), atol=1e-6)


def box_of(image):
    """Return left, top, width and height of a crop of the image whose red is x and whose green is y; and if flipped."""
    red, green = image[0, 5].float(), image[1, :, 5].float()
    flipped = bool(red[0] > red[-1])
    return *(float(v) for v in (red.min(), green.min(), red.max() - red.min(), green.max() - green.min())), flipped


def test_training_crops_and_flips_are_distributed_as_torchvisions():
    x, y = np.meshgrid(np.arange(250), np.arange(250))
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    transform = PictureTransform(DataSpec("folder:x"), 100, training=True)
    theirs = v1.Compose([v1.RandomResizedCrop(100), v1.RandomHorizontalFlip(), v1.PILToTensor()])
    with keyed_globals(3):
        ours, reference = (np.array([box_of(made(picture)) for _ in range(600)]) for made in (transform, theirs))
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], reference[:, column]).pvalue > 1e-3
    assert stats.binomtest(int(ours[:, 4].sum()), 600).pvalue > 1e-3


def test_rand_augment_is_timms_and_comes_after_crop_and_flip(noise):
    config, picture = "rand-m9-mstd0.5-inc1", noise(1, 150)
    ours = PictureTransform(DataSpec("folder:x", rand_augment=config), 64, training=True)
    theirs = timm.data.create_transform((3, 64, 64), is_training=True, auto_augment=config, interpolation="bilinear")
    (augment,) = (step for step in theirs.transforms if isinstance(step, RandAugment))
    first = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip()])
    changed = 0
    for key in range(20):
        with keyed_globals(key):
            cropped = first(picture)
            expected = v1.functional.pil_to_tensor(augment(cropped))
        with keyed_globals(key):
            assert torch.equal(ours(picture), expected)
        changed += not torch.equal(expected, v1.functional.pil_to_tensor(cropped))
    assert changed > 10
    with pytest.raises(
        SpecError, match=r"data\.rand_augment is 'rand-x9', which timm cannot parse.*rand-m9-mstd0\.5-inc1"
    ):
        PictureTransform(DataSpec("folder:x", rand_augment="rand-x9"), 64, training=True)


def test_pictures_become_rgb_as_torchvision_makes_them(tmp_path, noise):
    turned = Image.Exif()
    turned[0x0112] = 6  # by 90 degrees
    noise(1).save(tmp_path / "exif.jpg", exif=turned)
    noise(2, mode="CMYK").save(tmp_path / "cmyk.jpg")
    noise(3, mode="P").save(tmp_path / "palette.png", transparency=0)
    noise(4, mode="LA").save(tmp_path / "alpha.png")
    noise(5, mode="1").save(tmp_path / "bits.png")
    noise(6).save(tmp_path / "webp.png", "webp")
    for path in tmp_path.iterdir():
        ours = decode(path.read_bytes())
        assert ours.mode == "RGB"
        assert np.array_equal(ours, pil_loader(path)), path


def test_16_bits_are_scaled_not_clipped_as_torchvision_clips_them(tmp_path):
    ramp = np.linspace(300, 60000, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    ours = np.asarray(decode((tmp_path / "deep.png").read_bytes()))
    assert np.array_equal(ours[..., 0], ramp // 256)
    assert (np.asarray(pil_loader(tmp_path / "deep.png")) == 255).mean() > 0.9, "torchvision clips no more: follow it"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"not a picture", "it is not an image: it starts with b'not a pictur'")],
)
def test_what_is_no_image_is_said(content, reason):
    assert why_unreadable(content) == reason
