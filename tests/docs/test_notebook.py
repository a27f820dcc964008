"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import pytest

from tests.docs.conftest import DOCS


@pytest.mark.slow
def test_the_first_study_runs_and_shows_its_table_and_figures(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "notebooks" / "first_study.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("no SE" in output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 4
