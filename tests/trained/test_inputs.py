"""What a trained net takes: the names of its classes."""

from pathlib import Path

from se_lab.spec import DataSpec, RunSpec
from se_lab.trained.inputs import class_names


def test_hidden_folders_beside_the_classes_take_no_names_away(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints", "@eaDir"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert class_names(RunSpec(data=DataSpec(f"folder:{tmp_path}")), 2) == ["cat", "dog"]
