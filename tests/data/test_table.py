"""The table of data sets: a user's own map-style sets, and torchvision's in their true formats."""

import itertools
import json
import struct

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import STL10, SVHN, Flowers102, ImageFolder

from se_lab import DATASETS, Splits
from se_lab.data import DataError, create_data, data_shape
from se_lab.data.torchvision_sets import TORCHVISION
from se_lab.spec import DataSpec, SpecError


class Pictures(Dataset):
    """PIL images whose labels are only in the items; those of `bad` numbers cannot be read."""

    def __init__(self, noise, count, first=0, bad=(), as_tensor=False):
        self.noise, self.count, self.first, self.bad, self.as_tensor = noise, count, first, bad, as_tensor

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number in self.bad:
            raise OSError("the disk has gone")
        picture = self.noise(self.first + number)
        if self.as_tensor:
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1), torch.tensor(number % 3)
        return picture, number % 3


@pytest.fixture
def mine(noise, monkeypatch):
    """Return a maker of a data set in the table, and of the spec that names it."""

    def make(bad=(), as_tensor=False, **more):
        def open_set(root):
            train, test = Pictures(noise, 24, bad=bad, as_tensor=as_tensor), Pictures(noise, 9, 100)
            return Splits(train, None, test, ["ant", "bee", "cat"], **more)

        monkeypatch.setitem(DATASETS, "mine", open_set)
        return lambda **spec: DataSpec("mine", **{"batch_size": 4, "val_fraction": 0.25, "image_size": 16} | spec)

    return make


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_users_set_has_keyed_order_and_augmentation_for_any_number_of_workers(mine, batches, as_tensor):
    spec = mine(as_tensor=as_tensor)()
    data = create_data(spec, 3)
    assert (data.classes, data.sizes) == (["ant", "bee", "cat"], {"train": 18, "val": 6, "test": 9})
    alone = batches(data.train_dataloader(), 1)
    loader = create_data(spec, 3, workers=2).train_dataloader()
    loader.load_state_dict({"done": 2})
    for ours, theirs in zip(batches(loader, 1), alone[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    (_, labels, numbers), *_ = batches(data.test_dataloader())
    assert labels.tolist() == [number % 3 for number in numbers.tolist()]


def test_images_of_a_users_set_that_cannot_be_read_stop_or_are_skipped(mine, batches):
    make = mine(bad={5})
    with pytest.raises(DataError, match=r"train/5: its label is -1; it must be from 0 to 2"):
        create_data(make(), 0)
    data = create_data(make(on_error="skip"), 0)
    assert sum(data.sizes.values()) == 32 and len(data.skipped) == 1


def test_the_digest_of_a_users_set_is_that_of_its_pixels(mine, noise, monkeypatch):
    first = create_data(mine()(), 0).digest
    assert create_data(mine()(), 1).digest == first == create_data(mine(as_tensor=True)(), 0).digest
    other = Splits(Pictures(noise, 24, first=1), None, Pictures(noise, 9, 100), ["ant", "bee", "cat"])
    monkeypatch.setitem(DATASETS, "mine", lambda root: other)
    assert create_data(DataSpec("mine", batch_size=4), 0).digest != first


def test_an_image_folder_in_the_table_is_read_as_files(folders, monkeypatch, batches):
    spec = folders(images=8)
    root = spec.name.removeprefix("folder:")
    monkeypatch.setitem(
        DATASETS,
        "mine",
        lambda _: Splits(ImageFolder(f"{root}/train"), None, ImageFolder(f"{root}/val"), ["cat", "dog"]),
    )
    ours = create_data(DataSpec("mine", image_size=16, batch_size=4, val_fraction=0.5), 0)
    theirs = create_data(spec, 0)
    assert torch.equal(batches(ours.train_dataloader())[0][0], batches(theirs.train_dataloader())[0][0])


def test_wrong_entries_are_refused(mine, monkeypatch, noise):
    mine()
    with pytest.raises(SpecError, match=r"data\.name is 'mien'; allowed are .*mnist.*; did you mean 'mine'"):
        DataSpec("mien")
    monkeypatch.setitem(DATASETS, "mine", lambda root: (1, 2))
    with pytest.raises(DataError, match=r"DATASETS\['mine'\] returned tuple; it must return se_lab\.Splits"):
        create_data(DataSpec("mine"), 0)
    monkeypatch.setitem(DATASETS, "mine", lambda root: 1 / 0)
    with pytest.raises(DataError, match=r"mine cannot be opened in .*ZeroDivisionError: division by zero"):
        create_data(DataSpec("mine"), 0)
    pictures = Pictures(noise, 9)
    monkeypatch.setitem(DATASETS, "mine", lambda root: Splits(pictures, None, iter(pictures), ["a", "b"]))
    with pytest.raises(DataError, match="its test split has type iterator; it must be a map-style data set"):
        create_data(DataSpec("mine"), 0)
    monkeypatch.setitem(DATASETS, "mine", lambda root: Splits(pictures, None, pictures, ["a", "b"]))
    with pytest.raises(DataError, match="train/2: its label is 2; it must be from 0 to 1"):
        create_data(DataSpec("mine"), 0)


def write_mnist(root, name):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 255, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = struct.pack(">4i", 0x803, count, 28, 28) + pixels.tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels.tobytes())
    return pixels, labels


@pytest.mark.parametrize(
    ("name", "folder", "flips"), [("mnist", "MNIST", False), ("fashion_mnist", "FashionMNIST", True)]
)
def test_mnist_lies_in_memory_and_digits_are_not_mirrored(tmp_path, batches, name, folder, flips):
    pixels, labels = write_mnist(tmp_path, folder)
    spec = DataSpec(name, batch_size=20, val_fraction=0.25, augment="none")
    data = create_data(spec, 0, root=tmp_path)
    assert (data.sizes, data.flips) == ({"train": 30, "val": 10, "test": 20}, flips)
    ((images, found, _),) = batches(data.test_dataloader())
    train = data.splits["train"][0].double()
    expected = (pixels[:, None] - float(train.mean())) / float(train.std())
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
    assert found.tolist() == labels.tolist()
    assert data_shape(spec, root="/nowhere").shape == (1, 28, 28) == (data.in_chans, *images.shape[2:])


def test_svhn_and_stl10_lie_in_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = np.arange(1, 21) % 10 + 1  # 10 stands for the digit 0
        found = {"X": rng.integers(0, 255, (32, 32, 3, 20), dtype=np.uint8), "y": labels[:, None]}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", found)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda *_: True)
    data = create_data(DataSpec("svhn", batch_size=4, val_fraction=0), 0, root=tmp_path)
    assert data.sizes["test"] == 20 and not data.flips
    assert data.splits["test"][1].tolist() == [int(label) % 10 for label in labels]
    assert np.array_equal(data.splits["test"][0][7], found["X"][..., 7].transpose(2, 0, 1))
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"class{n}" for n in range(10)))
    for split in ("train", "test"):
        pixels = rng.integers(0, 255, (10, 3, 96, 96), dtype=np.uint8)
        pixels.tofile(folder / f"{split}_X.bin")
        np.arange(1, 11, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    monkeypatch.setattr(STL10, "_check_integrity", lambda *_: True)
    data = create_data(DataSpec("stl10", batch_size=4, val_fraction=0), 0, root=tmp_path)
    assert data.splits["test"][1].tolist() == list(range(10)) and data.image_size == 96
    assert np.array_equal(data.splits["test"][0], pixels.transpose(0, 1, 3, 2)), "the files have columns first"


def test_sets_of_files_are_read_in_torchvisions_layouts(tmp_path, noise, monkeypatch):
    def save(path, number):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(path)

    (tmp_path / "food-101/meta").mkdir(parents=True)
    for split, names in (("train", (1, 2, 3)), ("test", (4,))):
        listed = {label: [f"{label}/{n}" for n in names] for label in ("apple_pie", "waffles")}
        (tmp_path / f"food-101/meta/{split}.json").write_text(json.dumps(listed))
        for path in itertools.chain.from_iterable(listed.values()):
            save(tmp_path / f"food-101/images/{path}.jpg", 1)
    flowers = tmp_path / "flowers-102"
    for number in range(1, 13):
        save(flowers / f"jpg/image_{number:05}.jpg", number)
    scipy.io.savemat(flowers / "imagelabels.mat", {"labels": np.arange(1, 13)})
    scipy.io.savemat(flowers / "setid.mat", {"trnid": [1, 2, 3, 4], "valid": [5, 6], "tstid": list(range(7, 13))})
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda *_: True)
    pets = tmp_path / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = [f"{pet}_{n} {label} 1 1" for label, pet in ((1, "Abyssinian"), (2, "pug")) for n in numbers]
        (pets / f"annotations/{split}.txt").write_text("\n".join(lines))
        for line in lines:
            save(pets / f"images/{line.split()[0]}.jpg", 2)
    for label in ("ant", "BACKGROUND_Google", "camera"):
        for number in range(1, 6):
            save(tmp_path / f"caltech101/101_ObjectCategories/{label}/image_{number:04}.jpg", number)
    for label in ("Forest", "River"):
        for number in range(1, 6):
            save(tmp_path / f"eurosat/2750/{label}/{label}_{number}.jpg", number)
    expected = {
        "food101": ({"train": 6, "val": 0, "test": 2}, 2, "food-101/images/apple_pie/4.jpg"),
        "flowers102": ({"train": 4, "val": 2, "test": 6}, 102, "flowers-102/jpg/image_00007.jpg"),
        "oxford_pets": ({"train": 4, "val": 0, "test": 2}, 2, "oxford-iiit-pet/images/Abyssinian_3.jpg"),
        "caltech101": ({"train": 8, "val": 0, "test": 2}, 2, "caltech101/101_ObjectCategories/ant/image_"),
        "eurosat": ({"train": 8, "val": 0, "test": 2}, 2, "eurosat/2750/Forest/Forest_"),
    }
    for name, (sizes, classes, first) in expected.items():
        data = create_data(DataSpec(name, batch_size=2, val_fraction=0), 0, root=tmp_path)
        assert (data.sizes, len(data.classes)) == (sizes, classes), name
        assert data.test_keys()[0].startswith(first)
        assert next(iter(data.test_dataloader()))[0].shape == (2, 3, data.image_size, data.image_size)


def test_sets_that_are_not_there_are_refused_without_a_download(tmp_path):
    for name in TORCHVISION:
        with pytest.raises(DataError, match=f"{name} cannot be opened in .*; download it with --download"):
            create_data(DataSpec(name), 0, root=tmp_path)


def test_deep_pictures_of_a_users_set_are_scaled(noise, monkeypatch):
    ramp = Image.fromarray(np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20))
    items = [(ramp, 0), (ramp, 1)] * 4
    monkeypatch.setitem(DATASETS, "mine", lambda root: Splits(items, None, items, ["a", "b"]))
    data = create_data(DataSpec("mine", batch_size=2, val_fraction=0, image_size=16), 0)
    images = next(iter(data.test_dataloader()))[0]
    assert images.min() < -1.5 and images.max() > 1.5, "clipped to white"
