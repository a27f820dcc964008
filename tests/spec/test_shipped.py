"""Shipped sweep specs go by their names."""

from __future__ import annotations

from se_lab.spec import find_sweep
from se_lab.spec.shipped import shipped


def test_a_name_counts_before_a_folder_and_after_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # as make demo writes its figures
    assert find_sweep("demo") == shipped("sweeps")["demo"]
    assert str(find_sweep("./demo")) == "demo"
    (tmp_path / "units").touch()
    assert str(find_sweep("units")) == "units"
