"""Images decoded by NVIDIA DALI: those that PIL makes, by the same keys, to within a level or so of 255."""

import dataclasses
import gc
import importlib.util
import io
import tarfile
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms

from se_lab.cli import main
from se_lab.data import DataError, create_data, images
from se_lab.data.augment import keyed_globals
from se_lab.data.dali import DaliTransform
from se_lab.data.pictures import decode
from se_lab.spec import DataSpec, SpecError
from se_lab.store import read_record


def installed():
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


needs_dali = pytest.mark.skipif(not installed(), reason="NVIDIA DALI is not installed: pip install 'se-lab[dali]'")
datasets.disable_progress_bars()


def gradient(number):
    """Return a picture whose red is x and green is y, so that a shift by a pixel is 2 levels; blue has fine stripes."""
    height, width = 80 + 7 * (number % 5), 90 + 11 * (number % 4)
    y, x = np.mgrid[:height, :width]
    blue = 28 + 200 * ((x + number) // 2 % 2)
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, blue], -1).astype(np.uint8))


def encoded(picture, kind="jpeg", **options):
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 95} if kind == "jpeg" else {}) | options)
    return file.getvalue()


def odd():
    """Return images of every kind that PIL turns into RGB."""
    turned = Image.Exif()
    turned[0x0112] = 6  # by 90 degrees
    picture = gradient(3)
    deep = np.linspace(300, 60000, 9000).astype(np.uint16).reshape(90, 100)
    return {
        "exif.jpg": encoded(picture, exif=turned),
        "grey.jpg": encoded(picture.convert("L")),
        "progressive.jpg": encoded(picture, progressive=True),
        "full_chroma.jpg": encoded(picture, subsampling=0),
        "rgb.jpg": encoded(picture, keep_rgb=True),
        "cmyk.jpg": encoded(picture.convert("CMYK")),
        "named_wrongly.jpg": encoded(picture, "png"),
        "palette.png": encoded(picture.convert("P"), "png", transparency=0),
        "alpha.png": encoded(picture.convert("LA"), "png"),
        "bits.png": encoded(picture.convert("1"), "png"),
        "deep.png": encoded(Image.fromarray(deep), "png"),
        "webp.webp": encoded(picture, "webp"),
    }


@pytest.fixture
def photos(tmp_path):
    """Return a maker of specs of a folder of JPEGs, 9 of each of two classes in either split."""
    for number in range(36):
        path = tmp_path / "photos" / ("train", "val")[number % 2] / ("cat", "dog")[number // 2 % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(gradient(number)))

    def make(decoder="dali", **spec):
        usual = {"image_size": 32, "batch_size": 4, "val_fraction": 0.0}
        return DataSpec(f"folder:{tmp_path}/photos", decoder=decoder, **usual | spec)

    return make


def levels(batch):
    """Return a batch's images as they were before they were normalised, 0 to 255."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (batch[0] * std + mean) * 255


def check_alike(ours, theirs, limit=1.0):
    """Hold batches against PIL's: the same images of the same parts."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        assert float((levels(a) - levels(b)).abs().mean((1, 2, 3)).max()) < limit


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(x, y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True)
    )


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_training_shows_the_windows_and_flips_that_pil_shows(photos, batches, workers):
    ours = create_data(photos(), 5, workers=workers).train_dataloader()
    theirs = create_data(photos("pil"), 5).train_dataloader()
    for epoch in (0, 1, 0):
        check_alike(batches(ours, epoch), batches(theirs, epoch))


@needs_dali
def test_evaluation_shows_the_central_crops_that_pil_shows(photos, batches):
    for spec in ({}, {"crop_pct": 0.8, "image_size": 45}, {"image_size": 99, "augment": "none"}):
        ours, theirs = (
            batches(create_data(photos(decoder, **spec), 0).test_dataloader()) for decoder in ("dali", "pil")
        )
        check_alike(ours, theirs)


@needs_dali
def test_images_of_every_kind_become_what_pil_makes_of_them(photos, batches, tmp_path):
    for name, content in odd().items():
        for split in ("train", "val"):
            (tmp_path / "photos" / split / "cat" / name).write_bytes(content)
    ours, theirs = (create_data(photos(decoder), 2) for decoder in ("dali", "pil"))
    assert len(ours.test_keys()) == 18 + len(odd())
    check_alike(batches(ours.test_dataloader()), batches(theirs.test_dataloader()))
    check_alike(batches(ours.train_dataloader()), batches(theirs.train_dataloader()))


def test_windows_and_flips_are_distributed_as_torchvisions():
    picture = Image.new("RGB", (250, 180))
    ours, flips = [], 0
    make = DaliTransform(DataSpec("folder:x"), 100, training=True)
    opened = make.open(encoded(picture))
    with keyed_globals(3):
        theirs = [transforms.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(600)]
        for _ in range(600):
            cut = make(opened)
            ours.append(cut.window)
            flips += cut.mirror
    for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    assert stats.binomtest(flips, 600).pvalue > 1e-3


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_with_the_very_same_batches(photos, batches, workers):
    options = {"cutout": 8, "random_erasing": 0.5, "mixup": 0.4, "repeats": 2}
    whole = batches(create_data(photos(**options), 0).train_dataloader(), 2)
    loader = create_data(photos(**options), 0, workers=workers).train_dataloader()
    loader.sampler.set_epoch(2)
    started = iter(loader)
    next(started)
    del started
    loader.load_state_dict({"done": 1, "accumulate": 1})
    assert same(batches(loader, 2), whole[1:])
    assert same(batches(loader, 2), whole), "the epoch after it is whole"


@needs_dali
@pytest.mark.parametrize(("split", "ranks", "size"), [("train", 2, 4), ("test", 4, 16)])
def test_ranks_share_the_images_of_a_step(photos, split, ranks, size):
    alone = list(create_data(photos(batch_size=size if split == "train" else 18), 3).batches(split))
    dealt = []
    for rank in range(ranks):
        data = create_data(photos(batch_size=size), 3)
        device = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, strategy=device)
        dealt.append(list(data.batches(split)))
    assert split == "train" or {len(rank[0][0]) for rank in dealt} == {4, 5}, "the rest goes with the batch before"
    for step, whole in enumerate(alone):
        parts = [torch.cat(part) for part in zip(*(rank[step] for rank in dealt), strict=True)]
        ours, theirs = ([part[batch[2].argsort()] for part in batch] for batch in (parts, whole))
        assert same([ours], [theirs])


@needs_dali
def test_shards_and_hub_sets_are_decoded_too(photos, batches, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = [encoded(gradient(number)) for number in range(8)]
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number, image in enumerate(content):
                for kind, part in (("jpg", image), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{number}.{kind}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": [{"bytes": image, "path": None} for image in content], "label": [0, 1] * 4}
    rows = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "disk")
    for name in ("wds:a.tar,b.tar", "hf:disk"):
        ours, theirs = (
            create_data(dataclasses.replace(photos(decoder), name=name), 0, root=tmp_path)
            for decoder in ("dali", "pil")
        )
        check_alike(batches(ours.train_dataloader()), batches(theirs.train_dataloader()))
        check_alike(batches(ours.test_dataloader()), batches(theirs.test_dataloader()))


@pytest.fixture
def spoilt(tmp_path, photos, monkeypatch):
    """Return the maker of specs; of the training images of a set too large to be checked, three cannot be read."""
    monkeypatch.setattr(images, "CHECKED", 0)
    folder = tmp_path / "photos/train/cat"
    (folder / "0.jpg").write_bytes((folder / "0.jpg").read_bytes()[:1500])
    (folder / "4.jpg").write_text("not a picture")
    (folder / "float.tiff").write_bytes(encoded(Image.fromarray(np.ones((20, 20), np.float32)), "tiff"))
    return photos


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_refused_or_replaced_as_with_pil(spoilt, batches, workers):
    with pytest.raises(DataError, match=r"(0\.jpg: image file is trunc|4\.jpg: it is no|tiff: pix).*on_error=skip"):
        batches(create_data(spoilt(), 0, workers=workers).train_dataloader())
    ours, theirs = (create_data(spoilt(decoder, on_error="skip"), 0, workers=workers) for decoder in ("dali", "pil"))
    check_alike(batches(ours.train_dataloader()), batches(theirs.train_dataloader()))
    assert sorted(ours.skipped) == sorted(theirs.skipped)
    assert len(ours.skipped) == 3


@needs_dali
def test_a_batch_that_dali_refuses_names_the_file(photos, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHECKED", 0)
    path = tmp_path / "photos/train/dog/2.jpg"
    content = bytearray(path.read_bytes())
    table = content.index(b"\xff\xc4")  # a Huffman table with more codes than there can be
    content[table + 5 : table + 21] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(OSError, match="broken data stream"):
        decode(path.read_bytes())
    with pytest.raises(DataError, match=r"DALI cannot decode train/dog/2\.jpg \(broken data stream.*decoder=pil"):
        batches(create_data(photos(batch_size=18), 0).train_dataloader())


@needs_dali
def test_a_fork_leaves_pipelines_that_are_gone_alone(photos, batches):
    gone = [create_data(photos(), 0).train_dataloader()]
    batches(gone[0])
    gc.disable()
    try:
        gone.append(gone)  # so that only a collection takes it down
        del gone
        worker = torch.multiprocessing.get_context("fork").Process(target=gc.collect, daemon=True)
        worker.start()
    finally:
        gc.enable()
    worker.join(60)
    hangs = worker.is_alive()
    worker.kill()
    assert not hangs and worker.exitcode == 0


@needs_dali
def test_a_trial_trains_and_is_tested_on_what_dali_decodes(photos, tmp_path):
    arguments = {
        "model.backbone": "cifar_resnet20",
        "data.name": photos().name,
        "data.decoder": "dali",
        "data.image_size": 32,
        "data.batch_size": 6,
        "data.val_fraction": 0.3,
        "train.epochs": 2,
        "store": tmp_path / "store",
        "wandb": "false",
        "data_workers": 2,
    }
    assert not main(["train", *(f"--{name}={value}" for name, value in arguments.items())])
    (folder,) = [path for path in (tmp_path / "store").iterdir() if (path / "record.json").exists()]
    record = read_record(folder)
    assert record.status == "finished"
    assert record.spec["data.decoder"] == "dali"
    assert record.metrics["test/loss"] > 0


def test_what_dali_cannot_do_is_refused_before_any_work(monkeypatch):
    with pytest.raises(SpecError, match=r"data\.rand_augment is 'rand-m9'.*data\.decoder is 'dali'.*choose one"):
        DataSpec("folder:x", decoder="dali", rand_augment="rand-m9")
    with pytest.raises(SpecError, match=r"data\.decoder is 'dali', and digits lies in memory"):
        DataSpec(decoder="dali")
    with pytest.raises(SpecError, match=r"data\.decoder is 'opencv'.*pil, dali"):
        DataSpec("folder:x", decoder="opencv")
    for missing in (lambda _: None, lambda _: (_ for _ in ()).throw(ModuleNotFoundError("nvidia"))):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", missing)
            with pytest.raises(SpecError, match=r"DALI is not installed: pip install 'se-lab\[dali\]'"):
                create_data(DataSpec("folder:nowhere", decoder="dali"), 0)
