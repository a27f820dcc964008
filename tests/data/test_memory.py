"""Sets in memory: digits and CIFAR, their splits, and the distribution of what is drawn for them."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from se_lab.data import DataError, create_data
from se_lab.spec import DataSpec


def all_batches(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_digits_are_scikit_learns_split_three_ways():
    data = create_data(DataSpec(augment="none"), seed=0)
    assert sum(data.sizes.values()) == 1797
    assert (data.in_chans, data.image_size, len(data.classes)) == (1, 8, 10)
    raw, target = load_digits().images, load_digits().target
    everything = np.concatenate([data.splits[split][0].numpy() for split in data.splits])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, raw.astype(np.uint8))), "an image is lost or doubled"
    keys = [int(key) for key in data.test_keys()]
    shares = np.bincount(target[keys]) / np.bincount(target)
    assert np.abs(shares - 0.5).max() < 0.005
    (images, labels, number), *_ = all_batches(data.test_dataloader())
    train = data.splits["train"][0].double().numpy()
    expected = (raw[keys][number] - train.mean()) / train.std(ddof=1)
    np.testing.assert_allclose(images[:, 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, target[keys][number])


def test_split_depends_on_its_own_seed_alone():
    first, second = create_data(DataSpec(), seed=0), create_data(DataSpec(), seed=1)
    other = create_data(DataSpec(split_seed=1), seed=0)
    assert all(torch.equal(first.splits[s][0], second.splits[s][0]) for s in first.splits)
    assert first.test_keys() == second.test_keys() != other.test_keys()


def test_an_order_seed_takes_the_place_of_the_seed():
    def first(seed, **fields):
        return next(iter(create_data(DataSpec("digits", **fields), seed=seed).train_dataloader()))

    plain, own = first(3), first(0, order_seed=3)
    assert torch.equal(plain[2], own[2]) and torch.equal(plain[0], own[0])
    assert not torch.equal(plain[2], first(0)[2])


def test_augmentation_is_keyed_by_image_not_by_its_place_in_the_batch():
    def augmented(batch_size):
        loader = create_data(DataSpec(batch_size=batch_size), seed=3).train_dataloader()
        return {int(i): x for images, _, number in all_batches(loader, 5) for x, i in zip(images, number, strict=True)}

    left, right = augmented(32), augmented(100)
    shared = left.keys() & right.keys()
    assert len(shared) >= 791  # of 809 training images an epoch of either has 800: the rest is dropped
    assert all(torch.equal(left[number], right[number]) for number in shared)


def test_digits_come_in_another_size_by_bilinear_interpolation():
    small, large = (
        torch.cat([b[0] for b in create_data(DataSpec(image_size=size, augment="none"), 0).test_dataloader()])
        for size in (8, 32)
    )
    assert torch.allclose(large, F.interpolate(small, size=32, mode="bilinear"))


def make_cifar(root, classes, images=40):
    """Write a small set in the very files that torchvision reads, with their checksums patched to match."""
    rng = np.random.default_rng(0)
    fine = classes == 100
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    label_key = b"fine_labels" if fine else b"labels"
    sums = {}
    files = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in files:
        data = rng.integers(0, 255, (images, 3072), dtype=np.uint8)
        sums[name] = write_pickle(folder / name, {b"data": data, label_key: [i % classes for i in range(images)]})
    names = {b"fine_label_names" if fine else b"label_names": [f"class{i}" for i in range(classes)]}
    meta = "meta" if fine else "batches.meta"
    sums[meta] = write_pickle(folder / meta, {key.decode(): value for key, value in names.items()})
    return sums


def write_pickle(path, content):
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Return the root of a small CIFAR-10 whose checksums torchvision accepts."""
    sums = make_cifar(tmp_path, 10)
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", dict(CIFAR10.meta, md5=sums["batches.meta"]))
    return tmp_path


def test_cifar_is_read_from_torchvisions_files_and_normalised_by_its_training_images(cifar):
    data = create_data(DataSpec("cifar10", batch_size=50, augment="none"), 0, root=cifar)
    assert data.digest == create_data(DataSpec("cifar10", split_seed=1), 0, root=cifar).digest
    assert (data.sizes, data.image_size, data.classes[3]) == ({"train": 180, "val": 20, "test": 40}, 32, "class3")
    images = torch.cat([batch[0] for batch in data.test_dataloader()])
    reference = CIFAR10(cifar, train=False).data.transpose(0, 3, 1, 2).astype(np.float64)
    train = data.splits["train"][0].double().numpy()
    mean, std = train.mean((0, 2, 3), keepdims=True), train.std((0, 2, 3), keepdims=True, ddof=1)
    np.testing.assert_allclose(images, (reference - mean) / std, rtol=1e-4, atol=1e-5)


def test_a_corrupt_cifar_is_refused(cifar):
    (cifar / "cifar-10-batches-py/data_batch_3").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar10 cannot be opened in .*corrupted.*; download it with --download"):
        create_data(DataSpec("cifar10"), 0, root=cifar)


def test_batched_crops_and_flips_are_distributed_as_torchvisions(cifar):
    """Every training image is one of torchvision's RandomCrop(32, padding=4) + flip outcomes, about equally often."""
    data = create_data(DataSpec("cifar10", batch_size=180), 0, root=cifar)
    raw = data.splits["train"][0]
    loader = data.train_dataloader()
    mean, std = data.mean, data.std
    seen = np.zeros((9, 9, 2))
    for epoch in range(10):
        (images, _, number), *_ = all_batches(loader, epoch)
        for image, i in zip((images * std + mean).round().to(torch.uint8), number.tolist(), strict=True):
            padded = v2.functional.pad(raw[i], [4])
            for mirrored in (False, True):
                original = v2.functional.horizontal_flip(image) if mirrored else image
                windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (C, 9, 9, 32, 32): all crops
                hits = (windows == original[:, None, None]).all(0).all(-1).all(-1).nonzero()
                if len(hits):
                    seen[hits[0][0], hits[0][1], int(mirrored)] += 1
    assert seen.sum() == 1800, "an image is no crop of its original"
    for axis in ((1, 2), (0, 2), (0, 1)):
        assert stats.chisquare(seen.sum(axis)).pvalue > 1e-3


def test_normalisation_is_torchvisions_of_the_same_mean_and_deviation(cifar):
    data = create_data(DataSpec("cifar10", batch_size=50, augment="none"), 0, root=cifar)
    mean, std = ((values / 255).flatten().tolist() for values in (data.mean, data.std))
    theirs = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    raw = CIFAR10(cifar, train=False).data
    ours = torch.cat([batch[0] for batch in all_batches(data.test_dataloader())])
    assert torch.allclose(ours, torch.stack([theirs(pixels) for pixels in raw]), atol=1e-5)
