"""Hugging Face data sets: those on disk at random, those of the hub as a stream."""

import datasets
import pytest
import torch

from se_lab.data import DataError, create_data, hub
from se_lab.spec import DataSpec

datasets.disable_progress_bars()
NAMES = ["ant", "bee", "cat"]
README = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - name: label
    dtype: {class_label: {names: {'0': ant, '1': bee, '2': cat}}}
  splits:
"""


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    # after each stream it waits, lest its threads outlive the interpreter
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def rows(noise):
    """Return a maker of a split with images and labels."""

    def make(count, first=0, label=lambda n: n % 3):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        pictures = [noise(first + number) for number in range(count)]
        columns = {"image": pictures, "label": [label(first + number) for number in range(count)]}
        return datasets.Dataset.from_dict(columns, features=features)

    return make


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Return a maker of parquet files as the hub has them, and of the spec that streams them."""

    def make(found, told=None, **spec):
        (tmp_path / "hub/data").mkdir(parents=True)
        text = README
        for name, split in found.items():
            for shard in range(3):
                split.shard(3, shard).to_parquet(tmp_path / f"hub/data/{name}-{shard:05}-of-00003.parquet")
            text += f"  - {{name: {name}, num_bytes: 1, num_examples: {(told or {}).get(name, len(split))}}}\n"
        (tmp_path / "hub/README.md").write_text(text + "---\n")
        monkeypatch.chdir(tmp_path)  # where load_dataset looks first, before it asks the hub
        return DataSpec("hf:hub", **{"image_size": 16, "batch_size": 4, "val_fraction": 0.0} | spec)

    return make


def test_a_set_on_disk_is_read_like_a_folder(tmp_path, rows, batches):
    found = datasets.DatasetDict(train=rows(24), validation=rows(6, 100), test=rows(9, 200))
    found.save_to_disk(tmp_path / "disk")
    spec = DataSpec("hf:disk", image_size=16, batch_size=4, augment="none")
    data = create_data(spec, 0, root=tmp_path, workers=2)
    assert (data.sizes, data.classes) == ({"train": 24, "val": 6, "test": 9}, NAMES)
    images, labels, numbers = (torch.cat(parts) for parts in zip(*batches(data.test_dataloader()), strict=True))
    assert (labels.tolist(), numbers.tolist()) == (found["test"]["label"], list(range(9)))
    transform = data.transform("test")
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for image, picture in zip(images, found["test"]["image"], strict=True):
        assert torch.equal(((image * std + mean) * 255).round().to(torch.uint8), transform(picture))
    order = [create_data(spec, 0, root=tmp_path).train_dataloader().sampler.order().tolist() for _ in range(2)]
    assert order[0] == order[1]
    assert [n for batch in batches(data.train_dataloader()) for n in batch[2].tolist()] == order[0]


def test_an_unlabelled_test_split_is_no_test_split(tmp_path, rows):
    found = datasets.DatasetDict(train=rows(24), validation=rows(6), test=rows(9, label=lambda n: -1))
    found.save_to_disk(tmp_path / "disk")
    data = create_data(DataSpec("hf:disk", val_fraction=0.25), 0, root=tmp_path)
    assert data.sizes == {"train": 18, "val": 6, "test": 6}
    assert data.test_keys()[0] == "validation/0"


def test_wrong_sets_are_refused(tmp_path, rows):
    datasets.DatasetDict(train=rows(6)).save_to_disk(tmp_path / "alone")
    with pytest.raises(DataError, match="has the labelled splits train; it needs train, and validation or test"):
        create_data(DataSpec("hf:alone"), 0, root=tmp_path)
    plain = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    datasets.DatasetDict(train=plain, test=plain).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match="no images among its columns: text, label"):
        create_data(DataSpec("hf:text"), 0, root=tmp_path)
    with pytest.raises(DataError, match="hf:no/where cannot be opened as the folder"):
        create_data(DataSpec("hf:no/where"), 0, root=tmp_path)
    datasets.DatasetDict(train=rows(24), test=rows(3, label=lambda n: n - 1)).save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match="test/0: its label is -1; it must be from 0 to 2"):
        create_data(DataSpec("hf:odd"), 0, root=tmp_path)
    assert create_data(DataSpec("hf:odd", on_error="skip"), 0, root=tmp_path).sizes["test"] == 2


def test_a_stream_has_every_image_once_in_an_order_of_seed_and_epoch(tmp_path, rows, stream, batches):
    train, test = rows(24), rows(7, 100)
    spec = stream({"train": train, "test": test}, augment="none")
    data = create_data(spec, 0, root=tmp_path / "elsewhere")
    assert isinstance(data, hub.StreamedData)
    assert (data.sizes, data.classes) == ({"train": 24, "val": 0, "test": 7}, NAMES)
    loader = data.train_dataloader()
    passes = [torch.cat([batch[0] for batch in batches(loader, epoch)]) for epoch in (0, 1, 0)]
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], passes[1])
    transform = data.transform("train")
    want = sorted(transform(picture).sum().item() for picture in train["image"])
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for images in passes:
        assert sorted(((image * std + mean) * 255).round().sum().item() for image in images) == want
    other = create_data(spec, 1, root=tmp_path / "elsewhere").train_dataloader()
    assert not torch.equal(torch.cat([batch[0] for batch in batches(other, 0)]), passes[1])
    found = torch.cat([batch[1] for batch in batches(data.test_dataloader())])
    assert found.tolist() == test["label"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_the_same_for_any_workers_and_goes_on_in_mid_epoch(tmp_path, rows, stream, batches, workers):
    spec = stream({"train": rows(24), "test": rows(7)}, repeats=2)
    root = tmp_path / "elsewhere"
    whole = batches(create_data(spec, 3, root=root).train_dataloader(), 2)
    images, _, numbers = (torch.cat(parts) for parts in zip(*whole, strict=True))
    pairs = images[numbers.argsort(stable=True)].view(12, 2, -1)
    assert numbers.sort().values.tolist() == [n for n in range(12) for _ in range(2)], "each comes twice"
    assert not any(torch.equal(first, second) for first, second in pairs), "augmented alike"
    loader = create_data(spec, 3, root=root, workers=workers).train_dataloader()
    loader.load_state_dict({"done": 2})
    for ours, theirs in zip(batches(loader, 2), whole[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_ranks_of_a_stream_share_its_steps(tmp_path, rows, stream, batches, trainer):
    spec = stream({"train": rows(24), "test": rows(7)}, batch_size=8)
    alone = create_data(spec, 3, root=tmp_path / "elsewhere")
    split = []
    for rank in range(2):
        data = create_data(spec, 3, root=tmp_path / "elsewhere", accumulate=2)
        data.trainer = trainer(rank, 2, accumulate=2)
        split.append(batches(data.train_dataloader(), 1))
    for step, (images, _, numbers) in enumerate(batches(alone.train_dataloader(), 1)):
        parts = [part for rank in split for part in rank[2 * step : 2 * step + 2]]
        got, which = torch.cat([part[0] for part in parts]), torch.cat([part[2] for part in parts])
        assert torch.equal(got[which.argsort()], images[numbers.argsort()])


def test_bad_images_of_a_stream_are_left_out_on_request(tmp_path, rows, stream, batches):
    train = rows(12)
    torn = train.cast_column("image", datasets.Image(decode=False)).map(
        lambda row, n: {"image": {"bytes": b"torn", "path": None}} if n == 5 else row, with_indices=True
    )
    told = rows(7, label=lambda n: -1 if n == 3 else 0)
    spec = stream({"train": torn.cast_column("image", datasets.Image()), "test": told})
    data = create_data(spec, 0, root=tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"of epoch 0: it is not an image: it starts with b'torn'"):
        batches(data.train_dataloader())
    with pytest.raises(DataError, match=r"test/3 of epoch 0: its label is -1; it must be from 0 to 2"):
        batches(data.test_dataloader())
    data = create_data(DataSpec(**{**vars(spec), "on_error": "skip"}), 0, root=tmp_path / "elsewhere")
    assert sum(len(batch[0]) for batch in batches(data.train_dataloader())) == 11
    assert [n for batch in batches(data.test_dataloader()) for n in batch[2].tolist()] == [0, 1, 2, 4, 5, 6]
    assert len(data.skipped) == 2


def test_a_stream_that_cannot_be_split_or_counted_is_refused(tmp_path, rows, stream, batches):
    spec = stream({"train": rows(12), "test": rows(6)}, told={"train": 20}, val_fraction=0.1)
    with pytest.raises(DataError, match=r"held out of a stream; set data\.val_fraction=0"):
        create_data(spec, 0, root=tmp_path / "elsewhere")
    spec = DataSpec(**{**vars(spec), "val_fraction": 0.0})
    with pytest.raises(DataError, match="fewer images in its train split than the declared 20"):
        batches(create_data(spec, 0, root=tmp_path / "elsewhere").train_dataloader())
