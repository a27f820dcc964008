"""A checkpoint and its record become the net that was trained, or an error that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from se_lab.spec import DataSpec, ModelSpec, RunSpec, SESpec, SpecError, TrainSpec
from se_lab.store import RunRecord, write_record
from se_lab.trained.load import load_trained
from se_lab.units.model import create_model


def trial(folder: Path, **train: str) -> RunSpec:
    """Two checkpoints of one spec, last.ckpt with all weights at 1 and best.ckpt at 2, and the record."""
    spec = RunSpec(ModelSpec("cifar_resnet20", SESpec(reduction=2)), DataSpec(), train=TrainSpec(**train))
    model = create_model(spec.model, 10, 1)
    for name, value in (("last.ckpt", 1.0), ("best.ckpt", 2.0)):
        state = {f"model.{key}": torch.full_like(v, value) for key, v in model.state_dict().items()}
        folder.mkdir(exist_ok=True)
        torch.save({"state_dict": state}, folder / name)
    write_record(folder, RunRecord(spec.trial_id, "finished", spec.flat(), {}, data={"classes": 10}))
    return spec


def first_weight(model: torch.nn.Module) -> float:
    return float(next(model.parameters()).detach().flatten()[0])


def test_a_checkpoint_becomes_its_net_with_its_spec(tmp_path: Path) -> None:
    spec = trial(tmp_path)
    model, read = load_trained(tmp_path / "best.ckpt")
    assert read == spec
    assert not model.training
    assert len(model.se_sites) == 9
    assert all((value == 2).all() for value in model.state_dict().values())


@pytest.mark.parametrize(("select", "weight"), [("last", 1.0), ("best", 2.0)])
def test_a_folder_gives_the_weights_that_were_tested(tmp_path: Path, select: str, weight: float) -> None:
    trial(tmp_path, select=select)
    assert first_weight(load_trained(tmp_path)[0]) == weight


def test_what_cannot_be_loaded_is_told_plainly(tmp_path: Path) -> None:
    trial(tmp_path / "a")
    with pytest.raises(SpecError, match=r"the folder has best\.ckpt, last\.ckpt; did you mean 'last\.ckpt'"):
        load_trained(tmp_path / "a" / "las.ckpt")
    with pytest.raises(SpecError, match="there is no checkpoint"):
        load_trained(tmp_path / "nowhere")
    (tmp_path / "a" / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(SpecError, match="not a checkpoint of SE-Lab"):
        load_trained(tmp_path / "a" / "last.ckpt")
    (tmp_path / "a" / "record.json").unlink()
    with pytest.raises(SpecError, match=r"no record\.json beside it"):
        load_trained(tmp_path / "a" / "best.ckpt")


def test_a_flipped_bit_or_another_file_is_no_other_weight(tmp_path: Path) -> None:
    spec = trial(tmp_path)
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "copy.ckpt").write_bytes(content)
    assert torch.load(tmp_path / "copy.ckpt", weights_only=True)["state_dict"].keys()  # PyTorch sees nothing
    with pytest.raises(SpecError, match=r"copy\.ckpt is not a checkpoint of SE-Lab: it is missing, corrupt or incom"):
        load_trained(tmp_path / "copy.ckpt")
    (tmp_path / "best.ckpt").replace(last)
    with pytest.raises(SpecError, match=r"last\.ckpt was changed after its trial ended: its digest is not"):
        load_trained(tmp_path)
    torch.save({"trial_id": "0123456789ab", "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SpecError, match=f"checkpoint of trial 0123456789ab in the folder of trial {spec.trial_id}"):
        load_trained(tmp_path / "other.ckpt")
