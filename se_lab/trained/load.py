"""A net that has been trained, from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from se_lab.spec import RunSpec, SpecError, nearest, run_spec
from se_lab.spec.flags import import_recorded_plugins
from se_lab.store import RunRecord, read_record
from se_lab.training.checkpoints import read_checkpoint
from se_lab.units.model import create_model


def load_trained(path: str | Path, *, trust_plugins: bool = False) -> tuple[nn.Module, RunSpec]:
    """Build the net of a checkpoint, in eval mode on the CPU, and return it with its trial's spec.

    If the trial averages its weights (`train.ema`), the net has the averages.

    Args:
        path: A trial's checkpoint, beside its record.json, or the trial's folder: its best.ckpt where the trial was
            tested with its best weights, else its last.ckpt.
        trust_plugins: Import the modules that the record names under plugins, if they are not imported yet.

    Raises:
        SpecError: if the checkpoint or the record of its trial is missing or damaged, if they do not match, or if the
            record names plugins that are not trusted.

    Examples:
        >>> net, spec = load_trained(load_records("sweeps/demo.yaml")["folder"].iloc[0])
        >>> net(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    path = Path(path)
    record = read_record(path if path.is_dir() else path.parent)
    if path.is_dir() and record is not None:
        path = path / ("best.ckpt" if record.spec.get("train.select") == "best" else "last.ckpt")
    if not path.is_file():
        names = sorted(file.name for file in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"; there are {', '.join(names)}{nearest(path.name, names)}" if names else ""
        raise SpecError(f"{path} is no checkpoint: no such file{hint}")
    if record is None:
        raise SpecError(
            f"{path} has no record.json beside it, which says what net it is; a trial that was interrupted gets one "
            "when the same command has run it to its end"
        )
    digest = record.files.get(path.name) if record.status == "finished" else None
    state = read_checkpoint(path, record.trial_id, digest)["state_dict"]
    prefix = "ema.module." if record.spec.get("train.ema") else "model."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    plugins = record.execution.get("plugins", "")  # the spec may name operators of theirs
    import_recorded_plugins(plugins, path.parent / "record.json", trust_plugins)
    spec = run_spec(record.spec)
    model = _untrained(spec, record, weights)
    target = model.state_dict()
    mismatches = sorted(target.keys() ^ weights.keys())
    mismatches += sorted(key for key in target.keys() & weights.keys() if target[key].shape != weights[key].shape)
    if mismatches:
        raise SpecError(
            f"{path} is a checkpoint of another net than its record's {spec.model.backbone} "
            f"(trial {record.trial_id}): {', '.join(mismatches[:5])} and {max(len(mismatches) - 5, 0)} more do not fit"
        )
    model.load_state_dict(weights)
    return model.eval(), spec


def _untrained(spec: RunSpec, record: RunRecord, weights: dict[str, Any]) -> nn.Module:
    kernels = [value for value in weights.values() if value.dim() == 4]
    if not kernels or "classes" not in record.data:
        raise SpecError(f"trial {record.trial_id} has no weights, or no count of classes in its record")
    # whatever weights the trial started from are in the checkpoint by now, and need not be fetched again
    start = {"model.pretrained": False, "model.init": "timm"}
    model = run_spec(spec.flat() | start).model
    return create_model(model, record.data["classes"], in_chans=kernels[0].shape[1])


def not_an_export(path: Path) -> str:
    """Describe a path that load_exported cannot read."""
    if not path.exists():
        return f"there is no folder {path}"
    if path.is_file():
        return f"{path} is a file"
    if (path / "record.json").exists():
        return f"{path} is the folder of a trial, which load_trained loads"
    if (path / "se_lab.json").exists():
        return f"{path} is an export in another format"
    return f"{path} holds no export (se_lab.json and weights)"
