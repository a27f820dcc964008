"""Verbs replace only files that SE-Lab has written and nobody has changed."""

import pytest

from se_lab.spec import SpecError
from se_lab.store import guard_outputs


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, text, **options):
    with guard_outputs([path], **options):
        path.write_text(text)


def test_its_own_file_is_replaced_and_one_that_was_edited_is_not(tmp_path):
    path = tmp_path / "table.csv"
    write(path, "first")
    write(path, "second")
    path.write_text("edited")
    with pytest.raises(SpecError, match=r"table\.csv already exists and was not written by SE-Lab.*--overwrite"):
        write(path, "third")
    assert path.read_text() == "edited"
    write(path, "third", overwrite=True)
    write(path, "fourth")
    assert path.read_text() == "fourth"


def test_folders_links_and_files_of_others_are_kept(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "link"):
        with pytest.raises(SpecError, match=f"{name} already exists"):
            write(tmp_path / name, "")


def test_what_was_written_before_an_error_is_its_own(tmp_path):
    path = tmp_path / "page.html"

    def fail():
        with guard_outputs([path]):
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    write(path, "whole")


def test_a_file_that_was_to_be_replaced_and_was_not_stays_another_s(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("mine")
    with guard_outputs([path], overwrite=True):
        pass
    with pytest.raises(SpecError, match="already exists"):
        write(path, "other")
