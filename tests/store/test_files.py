"""Files: replaced whole, created by one of many, and sealed with a checksum."""

import multiprocessing
import os

import pytest

from se_lab import store


def test_a_write_that_dies_leaves_the_old_file_and_no_other(tmp_path):
    store.write_whole(tmp_path / "file", lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write_whole(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def _create_all(folder, number, start, won):
    text = f"{number}".encode() * 500_000
    start.wait()
    for name in range(40):
        if store.create_once(folder / f"{name:02d}", text):
            won.put((name, number))
        content = (folder / f"{name:02d}").read_text()
        if len(content) != 500_000 or len(set(content)) != 1:
            won.put((name, "torn"))


def test_of_many_that_create_a_file_one_does_and_nobody_reads_half_of_it(tmp_path):
    context = multiprocessing.get_context("fork")
    start, won = context.Barrier(4), context.Manager().Queue()
    workers = [context.Process(target=_create_all, args=(tmp_path, number, start, won)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    winners = [won.get() for _ in range(won.qsize())]
    assert sorted(name for name, _ in winners) == list(range(40))
    assert all((tmp_path / f"{name:02d}").read_text()[0] == str(number) for name, number in winners)
    assert not list(tmp_path.glob(".*"))


def test_a_link_that_nfs_reports_as_there_already_is_told_from_anothers(tmp_path, monkeypatch):
    link = os.link

    def repeated(source, target):
        link(source, target)
        raise FileExistsError(target)  # the answer to the first request was lost

    monkeypatch.setattr(os, "link", repeated)
    assert store.create_once(tmp_path / "file", b"mine")
    assert not store.create_once(tmp_path / "file", b"another's")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_claim_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "link"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *given, name=name, original=original: (done.append(name), original(*given))
        )
    assert store.create_once(tmp_path / "file", b"whole")
    assert done == ["fsync", "link"]


def test_every_flipped_bit_of_a_sealed_file_is_found_or_harmless(tmp_path):
    values = {"lr": 0.1, "words": ["é", None, float("nan")], "nested": {"a": 1}}
    store.write_sealed(tmp_path / "note.json", values)
    content = (tmp_path / "note.json").read_bytes()
    read = store.read_sealed(tmp_path / "note.json")
    assert read == {"lr": 0.1, "words": ["é", None, None], "nested": {"a": 1}}
    silent = 0
    for bit in range(0, 8 * len(content), 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "note.json").write_bytes(damaged)
        try:
            found = store.read_sealed(tmp_path / "note.json")
        except ValueError:
            continue
        silent += 1  # in the checksum's own line, which then counts for none: nothing else has changed
        assert {key: found[key] for key in read} == read
    assert silent < 8 / 3 * content.index(b'"lr"')


def test_what_is_put_in_place_is_readable_as_the_umask_has_it(tmp_path):
    """safetensors writes files that only their owner can read."""
    before = os.umask(0o022)
    try:
        (tmp_path / "aside").touch(mode=0o600)
        store.put_in_place(tmp_path / "aside", tmp_path / "file")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_device_is_written_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    store.write_text_whole(tmp_path / "pipe", "ärger")
    assert os.read(reader, 100).decode() == "ärger" and os.listdir(tmp_path) == ["pipe"]
    os.close(reader)
