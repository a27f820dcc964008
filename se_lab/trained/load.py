"""Load a trained net from its checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from se_lab.spec import RunSpec, SpecError, nearest, run_spec
from se_lab.spec.flags import import_recorded_plugins
from se_lab.spec.text import listed
from se_lab.store import RunRecord, differences, read_record
from se_lab.store.provenance import source_digest
from se_lab.training.checkpoints import read_checkpoint
from se_lab.units.model import create_model


def load_trained(path: str | Path, *, trust_plugins: bool = False) -> tuple[nn.Module, RunSpec]:
    """Load a trained net, in eval mode on the CPU, and return the net and its trial's spec.

    If the trial averages its weights (`train.ema`), the net has the averages.

    Args:
        path: A checkpoint in a trial's folder, or the folder, which means best.ckpt if the trial was tested with its
            best weights, else last.ckpt.
        trust_plugins: Import the plugins that the trial's record names, if they are not imported yet.

    Raises:
        SpecError: if the checkpoint or the trial's record is missing or corrupt, they do not match, or the record names
            plugins that are not trusted.

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
        hint = f"; the folder has {', '.join(names)}{nearest(path.name, names)}" if names else ""
        raise SpecError(f"there is no checkpoint {path}{hint}")
    if record is None:
        raise SpecError(
            f"{path} has no record.json beside it, which describes the net; if the trial was interrupted, "
            "run its command again to finish it"
        )
    digest = record.files.get(path.name) if record.status == "finished" else None
    state = read_checkpoint(path, record.trial_id, digest)["state_dict"]
    prefix = "ema.module." if record.spec.get("train.ema") else "model."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    plugins = record.execution.get("plugins", "")  # imported first, since the spec may name their operators
    import_plugins_of(path.parent / "record.json", plugins, record.provenance, trusted=trust_plugins)
    spec = run_spec(record.spec)
    model = _build_net(spec, record, weights)
    target = model.state_dict()
    mismatches = sorted(target.keys() ^ weights.keys())
    mismatches += sorted(key for key in target.keys() & weights.keys() if target[key].shape != weights[key].shape)
    if mismatches:
        raise SpecError(
            f"{path} does not match the {spec.model.backbone} of its record (trial {record.trial_id}): "
            f"{listed(mismatches, 5)} differ"
        )
    model.load_state_dict(weights)
    return model.eval(), spec


def import_plugins_of(origin: Path, names: str, provenance: Mapping[str, str], *, trusted: bool) -> None:
    """Import the plugins that a file names, if trusted; print a message for changed ones."""
    import_recorded_plugins(names, origin, trusted)
    before = {key: provenance[key] for name in names.split(",") if (key := f"plugin {name.strip()}") in provenance}
    now = {key: source_digest(key.removeprefix("plugin ")) for key in before}
    for difference in differences(before, now):
        print(f"{origin}: {difference}: the net may compute other outputs than it did", file=sys.stderr)


def _build_net(spec: RunSpec, record: RunRecord, weights: dict[str, Any]) -> nn.Module:
    kernels = [value for value in weights.values() if value.dim() == 4]
    if not kernels or "classes" not in record.data:
        raise SpecError(f"trial {record.trial_id} has no weights, or its record has no number of classes")
    # The checkpoint replaces the initial weights, which need not be downloaded.
    start = {"model.pretrained": False, "model.init": "timm"}
    model = run_spec(spec.flat() | start).model
    return create_model(model, record.data["classes"], in_chans=kernels[0].shape[1])


def not_an_export(path: Path) -> str:
    """Return the reason why load_exported cannot read a path."""
    if not path.exists():
        return f"there is no folder {path}"
    if path.is_file():
        return f"{path} is a file"
    if (path / "record.json").exists():
        return f"{path} is the folder of a trial; load it with load_trained"
    if (path / "se_lab.json").exists():
        return f"{path} is an export in another format"
    return f"{path} contains no export (se_lab.json and weights)"
