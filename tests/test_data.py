"""Data: splits, keyed streams, folders, and what is refused."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from se_lab.data import DataError, create_data
from se_lab.data.base import stratified_split
from se_lab.data.memory import crop
from se_lab.spec import DataSpec


def all_batches(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def make_folder(root, splits=("train", "val"), classes=("cat", "dog"), images=6, size=20):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 255, (size, size + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return DataSpec(f"folder:{root}", image_size=16, batch_size=4, val_fraction=0.5)


def test_digits_are_scikit_learns_split_three_ways():
    data = create_data(DataSpec(augment="none"), seed=0)
    assert sum(data.sizes.values()) == 1797
    assert (data.in_chans, data.image_size, len(data.classes)) == (1, 8, 10)
    raw, target = load_digits().images, load_digits().target
    everything = np.concatenate([data.splits[split][0].numpy() for split in data.splits])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, raw.astype(np.uint8))), "an image is lost or doubled"
    keys = [int(key) for key in data.test_keys()]
    shares = np.bincount(target[keys]) / np.bincount(target)
    assert np.abs(shares - 0.2).max() < 0.01
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


def test_order_is_keyed_by_seed_and_epoch():
    def order(seed, epoch):
        loader = create_data(DataSpec(), seed).train_dataloader()
        return torch.cat([batch[2] for batch in all_batches(loader, epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_augmentation_is_keyed_by_image_not_by_its_place_in_the_batch():
    def augmented(batch_size):
        loader = create_data(DataSpec(batch_size=batch_size), seed=3).train_dataloader()
        return {int(i): x for images, _, number in all_batches(loader, 5) for x, i in zip(images, number, strict=True)}

    left, right = augmented(32), augmented(100)
    shared = left.keys() & right.keys()
    assert len(shared) > 1000
    assert all(torch.equal(left[number], right[number]) for number in shared)


@pytest.mark.parametrize("done", [0, 1, 7])
def test_interrupted_epoch_goes_on_with_the_batches_that_are_left(done):
    loader = create_data(DataSpec(), seed=0).train_dataloader()
    whole = all_batches(loader, 2)
    loader = create_data(DataSpec(), seed=0).train_dataloader()
    loader.load_state_dict({"done": done})
    rest = all_batches(loader, 2)
    assert len(rest) == len(whole) - done
    assert all(
        torch.equal(a, b)
        for left, right in zip(whole[done:], rest, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    assert len(all_batches(loader, 3)) == len(whole), "the epoch after it is whole"


def test_training_drops_the_rest_and_evaluation_does_not():
    data = create_data(DataSpec(batch_size=1000), seed=0)
    assert len(data.train_dataloader()) == data.sizes["train"] // 1000
    assert sum(len(batch[0]) for batch in data.test_dataloader()) == data.sizes["test"]
    assert len(create_data(DataSpec(batch_size=5000), seed=0).train_dataloader()) == 1


def test_crop_takes_each_image_at_its_own_corner():
    images = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6).float()
    out = crop(images, torch.tensor([[0, 2], [1, 0]]), 4)
    assert torch.equal(out[0], images[0, :, 0:4, 2:6])
    assert torch.equal(out[1], images[1, :, 1:5, 0:4])


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
    assert (data.sizes, data.image_size, data.classes[3]) == ({"train": 180, "val": 20, "test": 40}, 32, "class3")
    images = torch.cat([batch[0] for batch in data.test_dataloader()])
    reference = CIFAR10(cifar, train=False).data.transpose(0, 3, 1, 2).astype(np.float64)
    train = data.splits["train"][0].double().numpy()
    mean, std = train.mean((0, 2, 3), keepdims=True), train.std((0, 2, 3), keepdims=True, ddof=1)
    np.testing.assert_allclose(images, (reference - mean) / std, rtol=1e-4, atol=1e-5)


def test_a_torn_cifar_is_refused(cifar):
    (cifar / "cifar-10-batches-py/data_batch_3").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar10 is not in .*, or is torn; --download fetches it"):
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


def test_split_of_each_class_has_its_share():
    labels = torch.tensor([0] * 50 + [1] * 10)
    first, second, third = stratified_split(labels, (0.1, 0.2), seed=0)
    assert [int((labels[part] == 1).sum()) for part in (first, second, third)] == [7, 1, 2]
    assert sorted(torch.cat([first, second, third]).tolist()) == list(range(60))


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_of_images_is_read_with_keyed_augmentation(tmp_path, workers):
    spec = make_folder(tmp_path)
    data = create_data(spec, seed=0, workers=workers)
    assert data.classes == ["cat", "dog"]
    assert data.sizes == {"train": 6, "val": 6, "test": 12}
    (first, *_), (again, *_) = (all_batches(create_data(spec, 0, workers=w).train_dataloader()) for w in (workers, 0))
    assert first[0].shape == (4, 3, 16, 16)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], all_batches(data.train_dataloader(), 1)[0][0])


def test_folder_with_three_splits_keeps_its_own_validation_split(tmp_path):
    data = create_data(make_folder(tmp_path, splits=("train", "val", "test")), seed=0)
    assert data.sizes == {"train": 12, "val": 12, "test": 12}
    assert data.test_keys()[0] == "test/cat/0.png"


def test_wrong_folders_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"missing/train is missing"):
        create_data(DataSpec(f"folder:{tmp_path}/missing"), 0)
    make_folder(tmp_path / "one", classes=("cat",))
    with pytest.raises(DataError, match=r"one/train has 1 class folders \(cat\)"):
        create_data(DataSpec(f"folder:{tmp_path}/one"), 0)
    make_folder(tmp_path / "held", splits=("train",))
    with pytest.raises(DataError, match=r"neither val/ nor test/"):
        create_data(DataSpec(f"folder:{tmp_path}/held"), 0)
    make_folder(tmp_path / "empty")
    (tmp_path / "empty/train/cow").mkdir()
    with pytest.raises(DataError, match=r"train/cow has no image"):
        create_data(DataSpec(f"folder:{tmp_path}/empty"), 0)
    make_folder(tmp_path / "odd")
    (tmp_path / "odd/val/dog").rename(tmp_path / "odd/val/cow")
    with pytest.raises(DataError, match="different classes: cow, dog"):
        create_data(DataSpec(f"folder:{tmp_path}/odd"), 0)
    make_folder(tmp_path / "torn")
    (tmp_path / "torn/train/dog/3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 24 images cannot be read: .*train/dog/3\.png"):
        create_data(DataSpec(f"folder:{tmp_path}/torn"), 0)


def test_16_bit_images_are_scaled_not_clipped_and_odd_ones_refused(tmp_path):
    make_folder(tmp_path / "deep")
    ramp = np.linspace(300, 60000, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "deep/train/cat/0.png")
    spec = DataSpec(f"folder:{tmp_path}/deep", image_size=16, batch_size=12, val_fraction=0.0, augment="none")
    data = create_data(spec, 0)
    (images, _, number), *_ = all_batches(data.train_dataloader())
    picture = images[number.tolist().index(0)]
    assert picture.std() > 0.5, "a ramp of greys has become one colour"
    Image.fromarray(np.ones((20, 20), np.float32)).save(tmp_path / "deep/train/cat/1.tiff")
    with pytest.raises(DataError, match=r"train/cat/1\.tiff.*mode F"):
        create_data(spec, 0)


def test_a_truncated_jpeg_is_found_before_training(tmp_path):
    spec = make_folder(tmp_path)
    path = tmp_path / "val/dog/9.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"val/dog/9\.jpg cannot be read: image file is truncated"):
        create_data(spec, 0)
