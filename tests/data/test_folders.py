"""Folders of images: layouts, what becomes of bad files, and keyed augmentation."""

import dataclasses
import gc
import os
import pickle
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Places365

from se_lab.data import (
    DataError,
    create_data,
    data_shapes,
    digests,
    images,
    inspect_images,
    listing_of,
    scan,
    use_listing,
)
from se_lab.data.files import Files
from se_lab.spec import DataSpec, SpecError


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_of_images_is_read_with_keyed_augmentation(folders, batches, workers):
    spec = folders()
    data = create_data(spec, seed=0, workers=workers)
    assert data.classes == ["cat", "dog"]
    assert data.sizes == {"train": 6, "val": 6, "test": 12}
    loader = data.train_dataloader()
    passes = [batches(loader, epoch) for epoch in (0, 1, 0)]  # by the same workers, which live on
    alone = batches(create_data(spec, 0).train_dataloader())
    assert alone[0][0].shape == (4, 3, 16, 16)
    assert torch.equal(passes[0][0][0], alone[0][0])
    assert torch.equal(passes[2][0][0], alone[0][0])
    assert not torch.equal(passes[1][0][0], alone[0][0])


def test_a_loader_that_was_left_in_the_middle_begins_anew(folders, batches):
    loader = create_data(folders(batch_size=2), 0, workers=2).train_dataloader()
    whole = batches(loader)
    started = iter(loader)
    next(started)
    loader.load_state_dict({"done": 1})
    rest = list(loader)
    assert len(rest) == len(whole) - 1
    assert torch.equal(rest[0][0], whole[1][0])


def test_folder_with_three_splits_keeps_its_own_validation_split(folders):
    data = create_data(folders(splits=("train", "val", "test")), seed=0)
    assert data.sizes == {"train": 12, "val": 12, "test": 12}
    assert data.test_keys()[0] == "test/cat/0.png"


@pytest.fixture
def imagenet(folders):
    """Return a folder in torchvision's layout of ImageNet, with two of its classes."""
    spec = folders("imagenet", classes=("n01440764", "n02086240"))
    return os.path.dirname(spec.name.removeprefix("folder:")), spec  # noqa: PTH120


def test_wordnet_ids_have_their_names(imagenet):
    root, spec = imagenet
    data = create_data(spec, 0)
    assert data.classes == ["n01440764", "n02086240"]
    assert data.class_names()[0].startswith("tench")
    torch.save(({"n01440764": ("a fish",), "n02086240": ("a", "dog")}, []), f"{root}/imagenet/meta.bin")
    assert data.class_names() == ["a fish", "a, dog"]
    with pytest.raises(DataError, match="has 2 class folders; imagenet has 1000"):
        create_data(DataSpec("imagenet"), 0, root=root)


@pytest.mark.parametrize("size", ["256", "large"])
def test_places365_is_read_in_torchvisions_layout(tmp_path, noise, monkeypatch, size):
    root = tmp_path / "places365"
    classes = [f"/c/class{number:03}" for number in range(365)]
    root.mkdir()
    (root / "categories_places365.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(classes)))
    train = [(f"{name}/{n}.jpg", label) for label, name in enumerate(classes) for n in range(2)]
    val = [(f"Places365_val_{n}.jpg", n % 365) for n in range(5)]
    (root / "places365_train_standard.txt").write_text("".join(f"{name} {label}\n" for name, label in train))
    (root / "places365_val.txt").write_text("".join(f"{name} {label}\n" for name, label in val))
    for folder, listed in ((f"data_{size}_standard", train), (f"val_{size}", val)):
        for name, label in listed:
            path = root / folder / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(label, 8).save(path)
    spec = DataSpec("places365", image_size=16, val_fraction=0.5)
    with pytest.raises(DataError, match=r"incomplete: .*categories_places365\.txt"):
        create_data(spec, 0, root=tmp_path)
    monkeypatch.setattr(Places365, "_check_integrity", lambda *_: True)
    data = create_data(spec, 0, root=tmp_path)
    assert data.sizes == {"train": 365, "val": 365, "test": 5}
    assert data.classes == classes
    assert data.test_keys()[3] == f"val_{size}/Places365_val_3.jpg"
    assert data.splits["test"].labels == [0, 1, 2, 3, 4]
    (root / f"val_{size}").rename(root / "elsewhere")
    with pytest.raises(DataError, match=f"val_{size} is missing"):
        create_data(spec, 0, root=tmp_path)


def test_a_set_that_is_not_there_is_refused_with_the_fields_that_say_where(tmp_path):
    with pytest.raises(DataError, match=rf"data\.name is 'imagenet', data_root '{tmp_path}'"):
        create_data(DataSpec("imagenet"), 0, root=tmp_path)


def test_wrong_folders_are_refused_by_name(folders, tmp_path, noise):
    with pytest.raises(DataError, match=r"missing/train is missing"):
        create_data(DataSpec(f"folder:{tmp_path}/missing"), 0)
    with pytest.raises(DataError, match=r"one/train has 1 class folder \(.+\); training needs at least two"):
        create_data(folders("one", classes=("cat",)), 0)
    with pytest.raises(DataError, match=r"neither val/ nor test/"):
        create_data(folders("held", splits=("train",)), 0)
    spec = folders("empty")
    (tmp_path / "empty/train/cow").mkdir()
    with pytest.raises(DataError, match=r"train/cow has no images"):
        create_data(spec, 0)
    spec = folders("odd")
    (tmp_path / "odd/val/dog").rename(tmp_path / "odd/val/cow")
    with pytest.raises(DataError, match="different classes: cow, dog"):
        create_data(spec, 0)
    spec = folders("flat", splits=("train",))
    (tmp_path / "flat/val").mkdir()
    noise(0).save(tmp_path / "flat/val/0.png")
    with pytest.raises(DataError, match="move 1 image beside the class folders into them"):
        create_data(spec, 0)


@pytest.fixture
def spoilt(folders, tmp_path, noise):
    """Return a spec whose folder has a truncated, an empty, a textual and a deep image, and a file that is none."""
    spec = folders(images=9, classes=("cat", "dog"), batch_size=6, val_fraction=0.0)
    train = tmp_path / "set/train"
    noise(0, 64).save(train / "cat/cut.jpg")
    (train / "cat/cut.jpg").write_bytes((train / "cat/cut.jpg").read_bytes()[:2000])
    (train / "dog/empty.jpg").touch()
    (train / "dog/text.jpg").write_text("not a picture")
    (train / "dog/Thumbs.db").write_text("nor this, and it does not say so")
    Image.fromarray(np.ones((20, 20), np.float32)).save(tmp_path / "set/val/cat/float.tiff")
    return spec


BAD = {
    "train/cat/cut.jpg": "image file is truncated",
    "train/dog/empty.jpg": "it is empty",
    "train/dog/text.jpg": "it is not an image: it starts with b'not a pictur'",
    "val/cat/float.tiff": "its pixels have mode F",
}


def test_bad_images_are_listed_before_training(spoilt):
    with pytest.raises(DataError, match=r"4 images of folder:") as error:
        create_data(spoilt, 0)
    assert all(f"{name}: {reason}" in str(error.value) for name, reason in BAD.items())
    assert "Thumbs" not in str(error.value)


def test_bad_images_are_skipped_and_counted_on_request(spoilt, batches, capsys):
    data = create_data(DataSpec(**{**vars(spoilt), "on_error": "skip"}), 0)
    assert data.sizes == {"train": 18, "val": 0, "test": 18}
    assert len(data.skipped) == 4
    assert all(any(found.startswith(f"{name}: {reason}") for found in data.skipped) for name, reason in BAD.items())
    assert capsys.readouterr().err.count("left out") == 4
    assert sum(len(batch[0]) for batch in batches(data.test_dataloader())) == 18


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_of_a_large_set_are_found_in_passing(spoilt, batches, monkeypatch, workers):
    monkeypatch.setattr(images, "CHECKED", 0)
    with pytest.raises(DataError, match=r"(cut|text|empty)\.jpg: .*data.on_error=skip"):
        batches(create_data(spoilt, 0, workers=workers).train_dataloader())
    skipping = DataSpec(**{**vars(spoilt), "on_error": "skip", "batch_size": 20})
    data = create_data(skipping, 0, workers=workers)
    assert data.skipped == []
    (train,) = batches(data.train_dataloader())
    names = [data.splits["train"].names[number] for number in train[2].tolist()]
    assert len(names) == 20, "three of them are replaced"
    assert not any(name in BAD for name in names)
    assert all(name.split("/")[1] == data.classes[label] for name, label in zip(names, train[1].tolist(), strict=True))
    (test,) = batches(data.test_dataloader())
    assert len(test[0]) == 18
    assert {text.partition(":")[0] for text in data.skipped} == BAD.keys()
    batches(data.test_dataloader())
    assert len(data.skipped) == 4, "counted twice"
    again = create_data(skipping, 0)
    assert torch.equal(batches(again.train_dataloader())[0][0], train[0]), "replaced by others"
    kept = create_data(skipping, 0)
    kept.load_state_dict(data.state_dict())
    assert kept.skipped == data.skipped


@pytest.mark.parametrize("whole", [True, False])
def test_workers_of_batches_that_are_collected_in_a_cycle_are_asked_to_end(folders, whole, monkeypatch):
    """Else PyTorch waits 5 s for each: what it puts into a queue that is closed never arrives."""
    events = []
    close, put = Queue._finalize_close, Queue.put
    monkeypatch.setattr(Queue, "_finalize_close", staticmethod(lambda *args: (events.append("close"), close(*args))))
    monkeypatch.setattr(Queue, "put", lambda self, item, *args: (events.append(item), put(self, item, *args)))
    loader = create_data(folders(), 0, workers=2).train_dataloader()
    loader.cycle = (loader, iter(loader))
    next(loader.cycle[1])
    if whole:
        list(loader.cycle[1])
    events.clear()
    del loader
    gc.collect()
    assert events[:2] == [None, None] and "close" in events


def test_a_set_without_an_image_left_is_refused(spoilt, tmp_path, monkeypatch):
    for path in (tmp_path / "set/train").rglob("*.*g"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="has no readable training images"):
        create_data(DataSpec(**{**vars(spoilt), "on_error": "skip"}), 0)


def test_hidden_entries_are_ignored_and_what_is_left_out_is_counted(folders, tmp_path, noise):
    plain = create_data(folders("plain"), 0)
    spec = folders("odd")
    train = tmp_path / "odd/train"
    for name in (
        ".ipynb_checkpoints/0-checkpoint.png",
        "@eaDir/0.png",
        "#recycle/cat/0.png",
        "$RECYCLE.BIN/0.png",
        "System Volume Information/0.png",
        "lost+found/0.png",
        "cat/__MACOSX/0.png",
        "cat/.ipynb_checkpoints/0.png",
    ):
        (train / name).parent.mkdir(exist_ok=True, parents=True)
        noise(0).save(train / name)
    noise(0).save(train / "dog/._0.png")
    (train / "dog/Thumbs.db").touch()
    noise(0).save(train / "dog/0.gif")
    (train / "labels.txt").touch()
    os.mkfifo(train / "dog/pipe.png")
    data = create_data(spec, 0)
    assert (data.classes, data.sizes) == (plain.classes, plain.sizes)
    assert data.left_out == {"hidden": 10, ".gif": 1, ".txt": 1, "special file": 1}
    assert data.summary() == (
        f"{spec.name}: 6 train, 6 val, 12 test images of 16×16 pixels in 2 classes; "
        "left out: 1 .gif, 1 .txt, 10 hidden, 1 special file"
    )


def test_the_order_of_images_is_torchvisions(folders, tmp_path, noise):
    spec = folders("deep", val_fraction=0.0)
    for name in ("a/x.png", "a.png", "a-b/y.png"):
        (tmp_path / "deep/train/cat" / name).parent.mkdir(exist_ok=True)
        noise(0).save(tmp_path / "deep/train/cat" / name)
    theirs = [str(path) for path in sorted((tmp_path / "deep/train").rglob("*.png"))]
    ours = [str(tmp_path / "deep" / name) for name in create_data(spec, 0).splits["train"].names]
    assert ours == theirs


def test_names_that_are_not_utf_8_are_read(folders, tmp_path, batches):
    spec = folders("odd", classes=("cat", os.fsdecode(b"caf\xe9")))
    (tmp_path / "odd/train/cat/0.png").rename(tmp_path / "odd/train/cat" / os.fsdecode(b"\xe9.png"))
    data = create_data(dataclasses.replace(spec, val_fraction=0.0), 0)
    assert data.classes == ["caf\\xe9", "cat"]
    assert "train/cat/\\xe9.png" in data.splits["train"].names
    assert len(data.digest) == 16
    assert len(batches(data.train_dataloader())) == 3


def test_the_digest_is_of_the_bytes_and_unchanged_files_are_not_read_again(folders, tmp_path, monkeypatch):
    first = create_data(folders("one"), 0).digest
    assert create_data(DataSpec(folders("two").name, image_size=16, batch_size=4, val_fraction=0.5), 1).digest == first
    root = tmp_path / "one/train"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda *_: pytest.fail("read again"))
        assert create_data(DataSpec(f"folder:{tmp_path}/one", batch_size=4), 0).digest == first
    left, right = (root / "cat/1.png").read_bytes(), (root / "dog/1.png").read_bytes()
    size = max(len(left), len(right))  # the swapped files have the sizes, names and times that they had
    for name, content in (("cat/1.png", right), ("dog/1.png", left)):
        (root / name).write_bytes(content.ljust(size, b"\0"))
        os.utime(root / name, (1, 1))
    assert create_data(DataSpec(f"folder:{tmp_path}/one", batch_size=4), 0).digest != first


def test_of_a_large_set_a_sample_is_read_beside_all_names_sizes_and_times(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 0)
    monkeypatch.setattr(digests, "SAMPLE", 3)
    spec = folders("one")
    read = []
    monkeypatch.setattr(images, "CHECKED", 0)
    monkeypatch.setattr(Files, "read", lambda files, numbers: read.append(numbers) or [b""])
    first = create_data(spec, 0).digest
    assert len(read) == 3
    os.utime(tmp_path / "one/val/dog/5.png", (1, 1))
    assert create_data(spec, 0).digest != first


def test_all_images_can_be_read_again(folders, tmp_path, noise):
    spec = folders("one")
    inspection = inspect_images(spec)
    assert (inspection.digest, inspection.images, inspection.unreadable) == (create_data(spec, 0).digest, 24, [])
    (tmp_path / "one/val/dog/5.png").write_bytes(b"torn")
    inspection = inspect_images(spec)
    assert inspection.digest != create_data(folders("two"), 0).digest
    assert inspection.unreadable == ["val/dog/5.png: it is not an image: it starts with b'torn'"]


def test_a_folder_without_its_prefix_is_told_its_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    for name in ("/some/folder", "pets"):
        with pytest.raises(SpecError, match=f"for a folder of images use 'folder:{name}'"):
            DataSpec(name)


def test_a_listing_opens_a_set_elsewhere_without_a_look_at_its_folders(folders):
    spec = folders()
    opened = create_data(spec, 0)
    digest = opened.digest
    listing = pickle.loads(pickle.dumps(listing_of(spec)))
    root = Path(spec.name.removeprefix("folder:"))
    root.rename(root.with_name("gone"))
    with pytest.raises(DataError):
        create_data(spec, 0)
    with use_listing(listing, spec):
        inherited = create_data(spec, 0)
        with pytest.raises(DataError):  # another root may have another set of this name
            create_data(spec, 0, root="elsewhere")
    with pytest.raises(DataError):
        create_data(spec, 0)
    assert (inherited.sizes, inherited.classes, inherited.digest) == (opened.sizes, opened.classes, digest)
    assert inherited.splits["val"].names == opened.splits["val"].names


def test_a_set_with_images_that_cannot_be_read_is_opened_by_each_trial(folders):
    spec = folders(on_error="skip")
    Path(spec.name.removeprefix("folder:"), "train", "cat", "broken.png").write_bytes(b"no image")
    assert listing_of(spec) is None
    assert listing_of(DataSpec("digits")) is None


def test_many_trials_of_one_set_open_it_once(folders, monkeypatch):
    spec, looks = folders(), []
    monkeypatch.setattr("se_lab.data.folders.scan", lambda folder: looks.append(folder) or scan(folder))
    shapes = data_shapes([spec] * 25)
    assert shapes[spec].sizes["train"] == 6
    assert len(looks) == 2  # train/ and val/
