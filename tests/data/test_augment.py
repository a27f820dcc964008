"""Augmentation in batches: against the papers' definitions, timm's, and torchvision's."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing

from se_lab.data import create_data
from se_lab.data.augment import DRAWS, Mixer, crop, keyed_globals, remove
from se_lab.spec import DataSpec, SpecError
from se_lab.training.run import run


def test_crop_takes_each_image_at_its_own_corner():
    images = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6).float()
    out = crop(images, torch.tensor([[0, 2], [1, 0]]), 4)
    assert torch.equal(out[0], images[0, :, 0:4, 2:6])
    assert torch.equal(out[1], images[1, :, 1:5, 0:4])


def test_cutout_zeroes_a_square_around_any_pixel_cut_at_the_borders():
    """DeVries & Taylor 2017: every centre is as likely, and a part of the square may lie outside."""
    draws = torch.zeros(32 * 32, DRAWS)
    draws[:, :2] = torch.cartesian_prod(torch.arange(32), torch.arange(32)) / 32 + 0.01
    images = remove(torch.ones(32 * 32, 3, 32, 32), draws, DataSpec(cutout=16))
    for row, image in enumerate(images):
        y, x = divmod(row, 32)
        expected = np.ones((32, 32))
        expected[max(y - 8, 0) : min(y + 8, 32), max(x - 8, 0) : min(x + 8, 32)] = 0
        assert np.array_equal(image[0], expected)
        assert torch.equal(image[0], image[2])


def erased(images):
    """Return the boxes' areas in shares and log aspects, for images of ones of which some are erased with noise."""
    found = []
    for image in images:
        rows, columns = ((image[0] != 1).any(1 - axis).nonzero()[:, 0] for axis in (0, 1))
        if len(rows):
            high, wide = (int(part[-1] - part[0]) + 1 for part in (rows, columns))
            found.append((high * wide / image[0].numel(), math.log(high / wide), int(rows[0]), int(columns[0])))
    return np.array(found)


def test_random_erasing_is_distributed_as_timms():
    stream = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, DRAWS, generator=stream)
    ours = remove(torch.ones(2000, 3, 32, 32), draws, DataSpec(random_erasing=0.3))
    with keyed_globals(1):
        theirs = RandomErasing(0.3, mode="pixel", device="cpu")(torch.ones(2000, 3, 32, 32))
    boxes, reference = erased(ours), erased(theirs)
    assert stats.binomtest(len(boxes), 2000, 0.3).pvalue > 1e-3
    for column in range(4):
        assert stats.ks_2samp(boxes[:, column], reference[:, column]).pvalue > 1e-3
    noise = ours[ours != 1]
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    again = remove(torch.ones(5, 3, 32, 32), draws[100:105], DataSpec(random_erasing=0.3))
    assert torch.equal(again, ours[100:105]), "depends on the batch"


def test_mixup_mixes_mirrored_pairs_with_the_share_that_the_labels_have():
    images, labels = torch.randn(8, 3, 6, 6), torch.arange(8)
    mixed, shares = Mixer(DataSpec(mixup=0.8), 10)(images.clone(), labels, seed=5)
    share = float(shares[0, 0])
    assert 0 < share < 1
    expected = torch.zeros(8, 10)
    expected[range(8), range(8)] += share
    expected[range(8), [7 - n for n in range(8)]] += 1 - share
    assert torch.allclose(shares, expected)
    assert torch.allclose(mixed, share * images + (1 - share) * images.flip(0), atol=1e-6)


def test_cutmix_pastes_a_box_of_the_share_that_the_labels_have():
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    for seed in range(20):
        mixed, shares = Mixer(DataSpec(cutmix=1.0), 4)(images.clone(), labels, seed)
        pasted = mixed != images
        assert torch.equal(mixed[pasted], images.flip(0)[pasted])
        assert float(shares[0, 3]) == pytest.approx(pasted[0, 0].float().mean().item(), abs=1e-6)


def test_the_share_of_mixup_is_keyed_by_step_and_beta_distributed():
    mixer = Mixer(DataSpec(mixup=0.5), 2)
    images, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    found = [float(mixer(images, labels, seed)[1][0, 0]) for seed in range(400)]
    assert found[7] == float(mixer(images, labels, 7)[1][0, 0])
    assert stats.kstest(found, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "option", [{"mixup": 0.5}, {"cutmix": 1.0}, {"random_erasing": 0.5}, {"cutout": 3}, {"repeats": 3}]
)
def test_options_do_not_depend_on_how_a_step_is_dealt_out(option):
    def steps(accumulate):
        loader = create_data(DataSpec(batch_size=24, **option), 3, accumulate=accumulate).train_dataloader()
        parts = [next(batches) for batches in [iter(loader)] for _ in range(accumulate)]
        images, labels, numbers = (torch.cat(part) for part in zip(*parts, strict=True))
        found = sorted(zip(numbers.tolist(), images.sum((1, 2, 3)).tolist(), labels.tolist(), strict=True))
        return found

    assert steps(1) == steps(2) == steps(3)


def test_repeated_augmentation_shows_an_image_several_times_each_time_anew():
    data = create_data(DataSpec(batch_size=30, repeats=3), 0)
    loader = data.train_dataloader()
    images, _, numbers = next(iter(loader))
    assert numbers.unique(return_counts=True)[1].tolist() == [3] * 10
    plain = create_data(DataSpec(batch_size=30), 0).train_dataloader()
    assert len(loader) == len(plain)
    alike = [torch.equal(images[a], images[b]) for a in range(30) for b in range(a) if numbers[a] == numbers[b]]
    assert sum(alike) < len(alike) / 3, "of nine crops of a digit, two are the same by chance alone"


def test_every_option_trains_and_counts_errors_by_the_dominant_class(quick, here):
    options = {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.25, "cutout": 2, "repeats": 2}
    record = run(quick(data=DataSpec(batch_size=256, **options), epochs=1), here)
    assert record.status == "finished"
    assert 0 < record.metrics["train/top1_error"] <= 100


def test_options_that_cannot_be_are_refused():
    with pytest.raises(SpecError, match=r"augment is .none. and data\.mixup is set"):
        DataSpec(augment="none", mixup=0.1)
    with pytest.raises(SpecError, match=r"timm's form is rand-m9-mstd0\.5-inc1"):
        DataSpec(rand_augment="randaug")
    with pytest.raises(SpecError, match="even number of images, and they have 3"):
        create_data(DataSpec(batch_size=6, mixup=0.1), 0, accumulate=2).train_dataloader()
    with pytest.raises(SpecError, match="digits has no colour images"):
        create_data(DataSpec(rand_augment="rand-m9"), 0)
