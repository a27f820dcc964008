"""The images that a net is shown: those that a trial is tested on, read when they are asked for."""

import dataclasses
import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Places365

from se_lab.data import DataError, create_data
from se_lab.data import images as encoded_images
from se_lab.data.shards import Shards
from se_lab.excitations.capture import ExcitationError
from se_lab.excitations.images import choose_classes, class_label, open_images
from se_lab.spec import DataSpec

datasets.disable_progress_bars()


def noise(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8))


def encoded(number):
    file = io.BytesIO()
    noise(number).save(file, "png")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def shards(tmp_path):
    """Return a spec of shards, of which the test has 9 images of 3 classes."""
    for name in ("train", "test"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in range(9):
                for kind, part in (("png", encoded(number)), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"{number}.{kind}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    return DataSpec("wds:train.tar,test.tar", image_size=16, batch_size=4)


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Return a spec of a set of the hub that is streamed, with the same images."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    columns = {"image": [{"bytes": encoded(n), "path": None} for n in range(9)], "label": [n % 3 for n in range(9)]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "hub/data").mkdir(parents=True)
    text = "---\ndataset_info:\n  features:\n  - {name: image, dtype: image}\n  - name: label\n"
    text += "    dtype: {class_label: {names: {'0': a, '1': b, '2': c}}}\n  splits:\n"
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
        text += f"  - {{name: {split}, num_bytes: 1, num_examples: 9}}\n"
    (tmp_path / "hub/README.md").write_text(text + "---\n")
    monkeypatch.chdir(tmp_path)
    return DataSpec("hf:hub", image_size=16, batch_size=4, val_fraction=0.0)


@pytest.mark.parametrize(("kind", "workers"), [("shards", 0), ("shards", 2), ("stream", 2)])
def test_images_are_those_of_the_trials_own_test(kind, workers, request, tmp_path):
    spec = request.getfixturevalue(kind)
    root = str(tmp_path / ("elsewhere" if kind == "stream" else ""))
    shown = open_images(spec, root=root, workers=workers)
    tested = list(create_data(spec, 0, root=root).batches("test"))
    images, labels, _ = (torch.cat(part) for part in zip(*tested, strict=True))
    assert torch.equal(shown.labels, labels)
    numbers = torch.tensor([1, 3, 4, 7, 8])
    for _ in range(2):
        batches = list(shown.batches(numbers))
        assert [len(batch[0]) for batch in batches] == [4, 1]
        for found, wanted in zip(zip(*batches, strict=True), (images, labels, torch.arange(9)), strict=True):
            assert torch.equal(torch.cat(found), wanted[numbers])
    for number in (6, 2):
        assert np.array_equal(shown.picture(number), noise(number))
    other = dataclasses.replace(spec, crop_pct=0.5)
    assert open_images(other, root=root).digest != shown.digest


def test_only_the_images_that_are_asked_for_are_read(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_images, "CHECKED", 0)
    asked, read = [], Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, numbers: asked.extend(numbers) or read(self, numbers))
    shown = open_images(shards, root=str(tmp_path))
    assert asked == []
    list(shown.batches(torch.tensor([2, 5])))
    assert asked == [2, 5]


def test_places365_is_shown_in_torchvisions_layout(tmp_path, monkeypatch):
    root = tmp_path / "places365"
    root.mkdir()
    classes = [f"/c/class{number:03}" for number in range(365)]
    (root / "categories_places365.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(classes)))
    train = [(f"{name}/0.jpg", label) for label, name in enumerate(classes)]
    val = [("b.jpg", 7), ("a.jpg", 300)]
    for split, folder, listed in (("train_standard", "data_256_standard", train), ("val", "val_256", val)):
        (root / f"places365_{split}.txt").write_text("".join(f"{name} {label}\n" for name, label in listed))
        for name, label in listed:
            path = root / folder / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(label).save(path)
    monkeypatch.setattr(Places365, "_check_integrity", lambda *_: True)
    shown = open_images(DataSpec("places365", image_size=16), root=str(tmp_path))
    assert (shown.classes, shown.labels.tolist()) == (classes, [7, 300])
    (root / "val_256/a.jpg").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read: it is not an image"):
        list(shown.batches(torch.arange(2)))


IMAGENET = sorted(
    ["n01443537", "n02110958", "n02690373", "n04552348", "n03954731", "n09246464", "n02012849", "n03126707"]
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("goldfish", "n01443537"),
        ("PUG", "n02110958"),
        ("n04552348", "n04552348"),
        ("0", "n01443537"),
        ("cliff", "n09246464"),
    ],
)
def test_classes_are_chosen_by_name_id_or_number(asked: str, expected: str) -> None:
    assert [IMAGENET[label] for label in choose_classes([asked], IMAGENET)] == [expected]


def test_an_ambiguous_class_names_its_candidates() -> None:
    with pytest.raises(ExcitationError, match=r"n03954731 \(plane, carpenter's plane.*airliner.*warplane"):
        choose_classes(["plane"], IMAGENET)
    with pytest.raises(ExcitationError, match=r"is ambiguous: n02012849 .*n03126707"):
        choose_classes(["crane"], IMAGENET)


def test_an_unknown_class_names_the_nearest() -> None:
    with pytest.raises(ExcitationError, match="did you mean 'goldfish'"):
        choose_classes(["goldfsh"], IMAGENET)
    with pytest.raises(ExcitationError, match=r"unknown class '12'; the classes are 0, 1, 2"):
        choose_classes(["12"], [str(digit) for digit in range(10)])


def test_without_a_wish_the_papers_classes_are_chosen_or_evenly_spaced_ones() -> None:
    names = [class_label(IMAGENET[label]) for label in choose_classes([], IMAGENET)]
    assert names == ["goldfish", "pug", "airliner", "cliff"]
    assert choose_classes([], [str(digit) for digit in range(10)]) == [0, 3, 6, 9]
