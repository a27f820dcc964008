"""Shards: webdataset's own tars, here and over HTTP, under the same rules as every other set."""

import dataclasses
import functools
import http.server
import io
import threading

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from se_lab.data import DataError, create_data
from se_lab.data.shards import Shards
from se_lab.spec import DataSpec, TrainSpec
from se_lab.training.run import run


@pytest.fixture
def shards(tmp_path, noise):
    """Return a maker of shards of eight images each, three classes in turn."""

    def make(split, count, first=0, label=lambda n: n % 3, **more):
        (tmp_path / "shards").mkdir(exist_ok=True)
        for shard in range(count):
            with webdataset.TarWriter(str(tmp_path / f"shards/{split}-{shard:02}.tar")) as writer:
                for number in range(first + 8 * shard, first + 8 * shard + 8):
                    picture = io.BytesIO()
                    noise(number).save(picture, "png")
                    sample = {"__key__": f"sample{number:04}", "png": picture.getvalue(), "json": {"n": number}}
                    writer.write(sample | ({} if label is None else {"cls": label(number)}) | more)

    return make


@pytest.fixture
def server(tmp_path):
    """Return the address of a server of the folder that serves byte ranges, and the requests it had."""
    seen = []

    class Ranges(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            seen.append(asked)
            if asked is None:
                return super().do_GET()
            with open(self.translate_path(self.path), "rb") as file:  # noqa: PTH123
                content = file.read()
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
            return None

        def send_header(self, name, value):
            if name != "Last-Modified":
                super().send_header(name, value)

        def end_headers(self):
            self.send_header("Accept-Ranges", "bytes")
            super().end_headers()

        def log_message(self, *_):
            pass

    handler = functools.partial(Ranges, directory=str(tmp_path / "shards"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Return a function that puts the folder into a bucket of an S3 server, and returns the client."""
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    server = pytest.importorskip("moto.server", reason="the S3 server of the tests is moto's")
    boto3 = pytest.importorskip("boto3")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    access = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**access, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # which may know another endpoint

    def put(name):
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        for path in (tmp_path / "shards").iterdir():
            client.upload_file(str(path), name, f"some/set/{path.name}")
        return client

    yield put
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    running.stop()


LOCAL = "wds:shards/train-{00..02}.tar,shards/val-{00..01}.tar"


def spec(name=LOCAL, **more):
    return DataSpec(name, **{"image_size": 16, "batch_size": 4, "val_fraction": 0.25} | more)


def test_shards_are_read_as_webdataset_reads_them(shards, tmp_path, batches):
    shards("train", 3)
    shards("val", 2, first=100)
    data = create_data(spec(augment="none"), 0, root=tmp_path)
    assert (data.sizes, data.classes) == ({"train": 18, "val": 6, "test": 16}, ["0", "1", "2"])
    urls = str(tmp_path / "shards/val-{00..01}.tar")
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "cls"))
    transform = data.transform("test")
    images, labels, numbers = (torch.cat(parts) for parts in zip(*batches(data.test_dataloader()), strict=True))
    assert [data.test_keys()[n].rpartition("/")[2] for n in numbers] == [key for key, _, _ in theirs]
    assert labels.tolist() == [label for _, _, label in theirs]
    raw = (
        images * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    for ours, (_, picture, _) in zip(raw, theirs, strict=True):
        assert torch.equal((ours * 255).round().to(torch.uint8), transform(picture))


def test_shards_over_http_are_the_same_set_in_the_same_order(shards, tmp_path, server, batches):
    shards("train", 3)
    shards("val", 1, first=100)
    url, seen = server
    name = "wds:{0}/train-{{00..02}}.tar,{0}/val-00.tar"
    near = create_data(spec(name.format("shards"), image_size=8), 5, root=tmp_path)
    far = create_data(spec(name.format(url), image_size=8), 5, workers=2)
    assert (near.digest, list(near.test_keys())) == (far.digest, list(far.test_keys()))
    seen.clear()
    ours, theirs = (batches(data.train_dataloader(), 3) for data in (near, far))
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(seen) == 16, "an image is one request, for its own bytes"


def test_a_trial_on_shards_of_s3_is_that_on_the_same_shards_here(shards, tmp_path, bucket, quick, here, batches):
    shards("train", 3)
    shards("val", 2, first=100)
    (tmp_path / "shards/classnames.txt").write_text("ant\nbee\ncat\n")
    client = bucket("pictures")
    name = "wds:{0}/train-{{00..02}}.tar,{0}/val-{{00..01}}.tar"
    near, far = (spec(name.format(where)) for where in ("shards", "s3://pictures/some/set"))
    opened = create_data(far, 0, workers=2)
    assert opened.class_names() == ["ant", "bee", "cat"]
    of_an_epoch = zip(
        batches(opened.train_dataloader()),
        batches(create_data(near, 0, root=tmp_path).train_dataloader()),
        strict=True,
    )
    assert all(torch.equal(x, y) for ours, theirs in of_an_epoch for x, y in zip(ours, theirs, strict=True))
    records = [
        run(quick(data=data, epochs=1), dataclasses.replace(here, data_root=str(tmp_path), data_workers=workers))
        for data, workers in ((near, 0), (far, 2))
    ]
    assert records[0].metrics == records[1].metrics
    assert records[0].data["digest"] == records[1].data["digest"]
    with pytest.raises(DataError, match=r"s3://nowhere/a\.tar is missing"):
        create_data(spec("wds:s3://nowhere/a.tar,s3://nowhere/b.tar"), 0)
    client.delete_object(Bucket="pictures", Key="some/set/train-01.tar")
    with pytest.raises(DataError, match=r"s3://pictures/some/set/train-01\.tar cannot be read"):
        list(opened.batches("train").load(0))


def test_an_interrupted_epoch_of_shards_goes_on(shards, tmp_path, batches):
    shards("train", 3)
    shards("val", 1)
    name = "wds:shards/train-{00..02}.tar,shards/val-00.tar"
    whole = batches(create_data(spec(name), 0, root=tmp_path).train_dataloader(), 1)
    loader = create_data(spec(name), 0, root=tmp_path).train_dataloader()
    loader.load_state_dict({"done": 3})
    assert torch.equal(batches(loader, 1)[0][0], whole[3][0])


def test_shards_are_read_through_once_and_again_when_they_change(shards, tmp_path, monkeypatch):
    shards("train", 3)
    shards("val", 2)
    first = create_data(spec(), 0, root=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.open", lambda *_, **__: pytest.fail("read through again"))
        assert create_data(spec(), 0, root=tmp_path).digest == first.digest
    for kept in (tmp_path / "cache/se-lab").glob("shards-*"):
        kept.write_bytes(kept.read_bytes()[:100])
    assert create_data(spec(), 0, root=tmp_path).digest == first.digest
    shards("train", 3, first=300)
    assert create_data(spec(), 0, root=tmp_path).digest != first.digest


def test_labels_come_from_json_and_names_from_classnames_txt(shards, tmp_path):
    for split in ("train", "val"):
        shards(split, 1, label=None, json={"label": 1})
    (tmp_path / "shards/classnames.txt").write_text("ant\nbee\ncat\n")
    data = create_data(spec("wds:shards/train-00.tar,shards/val-00.tar"), 0, root=tmp_path)
    assert data.class_names() == ["ant", "bee", "cat"]
    assert set(data.splits["test"].labels) == {1}


def test_three_parts_are_training_validation_and_test(shards, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        shards(split, 1 + number)
    name = "wds:shards/train-00.tar,shards/val-{00,01}.tar,shards/test-{00..02}.tar"
    assert create_data(spec(name), 0, root=tmp_path).sizes == {"train": 8, "val": 16, "test": 24}


def test_wrong_labels_and_pictures_are_listed_or_skipped(shards, tmp_path, capsys):
    shards("train", 1)
    shards("val", 1, label=lambda n: [0, 1, 7, -1, 2, 0, 1, 2][n])
    name = "wds:shards/train-00.tar,shards/val-00.tar"
    with pytest.raises(DataError, match=r"2 image.*val-00\.tar/sample0002: its label is 7; it must be from 0 to 2"):
        create_data(spec(name), 0, root=tmp_path)
    data = create_data(spec(name, on_error="skip"), 0, root=tmp_path)
    assert (data.sizes["test"], len(data.skipped)) == (6, 2)
    shards("train", 1, png=b"no picture")
    with pytest.raises(DataError, match=r"train-00\.tar/sample0000: it is not an image: it starts with b'no picture'"):
        create_data(spec(name), 0, root=tmp_path)
    shards("train", 1, label=None)
    with pytest.raises(DataError, match=r"has 8 training images of 0 classes"):
        create_data(spec(name), 0, root=tmp_path)
    shards("train", 1, label=lambda n: 4 * n)
    with pytest.raises(DataError, match="no training images of 21 of 29 classes: 1, 2, 3, 5"):
        create_data(spec(name), 0, root=tmp_path)


def test_shards_that_are_missing_torn_or_without_ranges_are_refused(shards, tmp_path, server):
    with pytest.raises(DataError, match=r"train-00\.tar is missing"):
        create_data(spec(), 0, root=tmp_path)
    shards("train", 3)
    shards("val", 2)
    with pytest.raises(DataError, match="separated by commas"):
        create_data(spec("wds:shards/train-{00..02}.tar"), 0, root=tmp_path)
    path = tmp_path / "shards/train-01.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"train-01\.tar is not a complete, uncompressed tar"):
        create_data(spec(), 0, root=tmp_path)
    far = Shards([f"{server[0]}/val-00.tar"], ["a"], [0], np.array([[0, 10_000_000, 5]]))
    with pytest.raises(DataError, match="byte ranges"):
        far.read([0])
    with pytest.raises(DataError, match="cannot be reached"):
        create_data(spec("wds:http://127.0.0.1:9/a.tar,http://127.0.0.1:9/b.tar"), 0)
    Image.new("RGB", (4, 4)).save(tmp_path / "shards/train-01.tar", "png")
    with pytest.raises(DataError, match=r"train-01\.tar is not a complete, uncompressed tar"):
        create_data(spec(), 0, root=tmp_path)


def test_a_trial_on_shards_records_what_it_skipped(shards, tmp_path, quick, here):
    shards("train", 3)
    shards("val", 2, label=lambda n: 9 if n == 5 else n % 3)
    execution = dataclasses.replace(here, data_root=str(tmp_path), data_workers=0)
    record = run(quick(data=spec(on_error="skip"), epochs=1), execution)
    assert record.status == "finished"
    assert record.data["images"] == {"train": 18, "val": 6, "test": 15}
    assert record.data["skipped"] == ["val-00.tar/sample0005: its label is 9; it must be from 0 to 2"]
    predictions = np.load(tmp_path / "store" / record.trial_id / "predictions.npz")
    assert predictions["key"][5] == "val-00.tar/sample0006"


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_images_found_bad_in_passing_are_left_out_of_any_batch_and_recorded_by_all_ranks(
    shards, tmp_path, quick, here, noise, devices
):
    shards("train", 2)
    bad = {"sample0101", "sample0108"}  # one of another rank's, and all of the last batch
    with webdataset.TarWriter(str(tmp_path / "shards/test-00.tar")) as writer:
        for number in range(100, 109):
            picture = io.BytesIO()
            noise(number).save(picture, "png")
            content = picture.getvalue()[: 60 if f"sample{number:04}" in bad else None]
            writer.write({"__key__": f"sample{number:04}", "png": content, "cls": number % 3})
    train, test = (f"file://{tmp_path}/shards/{name}-00.tar" for name in ("train", "test"))
    spec = quick(
        data=DataSpec(f"wds:{train},{test}", image_size=16, batch_size=4, val_fraction=0, on_error="skip"),
        train=TrainSpec(epochs=1, devices=devices),
    )
    record = run(spec, dataclasses.replace(here, data_workers=0))
    assert {text.partition(":")[0] for text in record.data["skipped"]} == {f"test-00.tar/{key}" for key in bad}
    keys = np.load(f"{here.store}/{record.trial_id}/predictions.npz")["key"].tolist()
    assert keys == [f"test-00.tar/sample{n:04}" for n in range(100, 109) if n not in (101, 108)]


def write_samples(path, samples):
    """Write a shard of the named files of each sample, with webdataset's keys."""
    with webdataset.TarWriter(str(path)) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"s{number}", **sample})


def picture(noise, number):
    encoded = io.BytesIO()
    noise(number).save(encoded, "png")
    return encoded.getvalue()


def test_an_image_has_its_exact_extension_and_two_candidates_are_refused(shards, tmp_path, noise, batches):
    shards("val", 1)
    right, mask = picture(noise, 1), picture(noise, 2)
    good = [{"mask.png": mask, "png": right, "cls": n % 2} for n in range(4)]
    write_samples(tmp_path / "shards/train-00.tar", good)
    name = "wds:shards/train-00.tar,shards/train-00.tar"
    data = create_data(spec(name, val_fraction=0, augment="none"), 0, root=tmp_path)
    assert data.splits["train"].read([0]) == [right]
    for bad, why in [
        ({"jpg": right, "png": mask, "cls": 0}, r"it has two images, \.jpg and \.png"),
        ({"mask.png": mask, "cls": 0}, r"it has \.mask\.png but no image"),
        ({"png": right, "cls": 0, "json": {"label": 1}}, r"its labels in \.cls and \.json differ: 0 and 1"),
    ]:
        write_samples(tmp_path / "shards/train-00.tar", [*good, bad])
        with pytest.raises(DataError, match=f"train-00.tar/s4: {why}"):
            create_data(spec(name, val_fraction=0), 0, root=tmp_path)
        kept = create_data(spec(name, val_fraction=0, on_error="skip"), 0, root=tmp_path)
        assert kept.sizes["train"] == 4


@pytest.mark.parametrize(
    "label", [{"cls": b"1.9"}, {"cls": b"true"}, {"cls": b"1_0"}, {"json": {"label": 1.0}}, {"json": {"label": True}}]
)
def test_labels_that_are_no_integers_are_refused(tmp_path, noise, label):
    (tmp_path / "shards").mkdir()
    good = [{"png": picture(noise, n), "cls": n % 2} for n in range(4)]
    write_samples(tmp_path / "shards/train-00.tar", [*good, {"png": picture(noise, 5), **label}])
    with pytest.raises(DataError, match=r"train-00\.tar/s4: its label is '.*' in \.(cls|json); it must be an integer"):
        create_data(spec("wds:shards/train-00.tar,shards/train-00.tar"), 0, root=tmp_path)


def test_a_server_that_does_not_say_when_a_shard_changed_is_asked_again(shards, tmp_path, server):
    """Its files have the same size, and it sends neither ETag nor Last-Modified."""
    shards("train", 1)
    shards("val", 1)
    url, _ = server
    far = spec(f"wds:{url}/train-00.tar,{url}/val-00.tar")
    first = create_data(far, 0)
    size = (tmp_path / "shards/val-00.tar").stat().st_size
    shards("val", 1, label=lambda n: (n + 1) % 3)
    assert (tmp_path / "shards/val-00.tar").stat().st_size == size
    second = create_data(far, 0)
    assert second.splits["test"].labels == [(label + 1) % 3 for label in first.splits["test"].labels]
    assert second.digest != first.digest
