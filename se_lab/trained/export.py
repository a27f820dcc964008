"""Export a trained net to timm, TorchScript or ONNX, or as a detector's backbone.

DIR/se_lab.json               the manifest: the trial's spec, preprocessing, classes and metrics
    config.json               timm's config, and
    model.safetensors         the weights with timm's keys, if plain timm can build the whole net
    weights.safetensors       all weights, if plain timm cannot build the net
    plain_backbone/           on request: config.json and model.safetensors of the backbone without its SE units
    model.torchscript.pt, model.onnx
    detector.safetensors      the weights with the keys of a torchvision detector: body.layer1.0.conv1.weight …

`timm.create_model("local-dir:DIR", pretrained=True)` builds the whole net, whose outputs were checked in a process that
imports only timm, or raises an error. `load_exported(DIR)` builds the net in either case.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from se_lab import store
from se_lab.spec import RunSpec, SpecError, check_choice, run_spec, seed_of
from se_lab.store import RunRecord
from se_lab.trained.detection import DETECTOR_FILE, write_detector
from se_lab.trained.inputs import class_names, input_size, trial_config
from se_lab.trained.load import import_plugins_of, load_trained, not_an_export
from se_lab.trained.manifest import read_manifest, tensors_digest
from se_lab.trained.quiet import quiet_exporters
from se_lab.trained.timm_twin import find_twin, from_twin
from se_lab.units.insertion import Site
from se_lab.units.model import create_model

FORMATS = ("safetensors", "torchscript", "onnx", "detector")
TOLERANCE = 1e-4
"""Tolerance of an exported output, relative to the largest output of the net or to 1, whichever is larger."""

Say = Callable[[str], object]
Form = tuple[str, dict[str, Any], dict[str, Tensor]]
"""The name of a timm net, the keyword arguments that build it, and its weights."""


class ExportError(SpecError):
    """The outputs of an export differ from those of the net."""


@dataclass(frozen=True)
class Net:
    """The net to export, and its trial."""

    model: nn.Module
    spec: RunSpec
    record: RunRecord
    shape: tuple[int, int, int]
    """Shape (C, H, W) of an image."""
    digest: str
    """Digest of all weights."""

    @property
    def sites(self) -> list[Site]:
        """The net's SE units."""
        return list(self.model.se_sites)  # type: ignore[arg-type]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.record.data["classes"])

    def images(self, number: int) -> Tensor:
        """Return `number` images of noise for checks, the same in every call."""
        stream = torch.Generator().manual_seed(seed_of("export", number))
        return torch.randn(number, *self.shape, generator=stream)


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export`."""

    image_size: int | None = None
    """Image size for TorchScript and ONNX, in pixels; by default that of the trial."""
    plain: bool = False
    """Also write the backbone without its SE units, in plain_backbone/."""
    data_root: str | Path = "."
    """Folder of the trial's data, for mean, standard deviation and class names."""
    trust_plugins: bool = False
    """Import the plugins that the trial's record names."""
    overwrite: bool = False
    """Replace files that SE-Lab did not write."""


def export(
    source: str | Path,
    folder: str | Path,
    formats: Sequence[str] = FORMATS[:3],
    *,
    options: ExportOptions | None = None,
    say: Say = lambda text: None,
) -> list[Path]:
    """Export a trial's net, check each format against the net, and return the file paths.

    Args:
        source: A trial's folder, or a checkpoint in it.
        folder: Output folder; it may already contain other formats of the same weights.
        formats: Names in `FORMATS`; onnx needs the extra se-lab[export].
        options: Image size, plain backbone, data root, whether to trust plugins and replace files.
        say: Called with remarks for the user.

    Raises:
        SpecError: if the checkpoint cannot be loaded, a format is unknown, a package is missing, or the folder contains
            other weights.
        DataError: if the data set is missing, and mean and standard deviation of its images are needed.
        ExportError: if the outputs of an export differ from those of the net; no file is written then.
    """
    options = options or ExportOptions()
    _check_formats(formats)
    net = _open(source, options)
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest and manifest["weights"] != net.digest:
        raise SpecError(f"{folder} contains other weights, of trial {manifest['trial_id']}; choose another folder")
    about = (manifest or {}) | _describe(net, options.data_root)
    temp_folder = folder / f".export-{uuid.uuid4().hex}"
    is_new = not folder.exists()
    try:
        temp_folder.mkdir(parents=True)
        with quiet_exporters():
            for format in formats:
                about |= _WRITERS[format](net, temp_folder, about, say) or {}
            if options.plain:
                _write_plain(net, temp_folder, about, say)
        names = sorted(str(path.relative_to(temp_folder)) for path in temp_folder.rglob("*") if path.is_file())
        names.append("se_lab.json")
        store.write_sealed(temp_folder / "se_lab.json", about)
        with store.guard_outputs([folder / name for name in names], overwrite=options.overwrite):
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                store.put_in_place(temp_folder / name, folder / name)
    except BaseException:
        shutil.rmtree(folder if is_new else temp_folder, ignore_errors=True)
        raise
    shutil.rmtree(temp_folder)
    return [folder / name for name in names]


def _check_formats(formats: Sequence[str]) -> None:
    for format in formats:
        check_choice("formats", format, FORMATS)
    packages = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if "onnx" in formats and packages:
        other_formats = " ".join(name for name in formats if name != "onnx")
        raise SpecError(
            f"onnx needs {', '.join(packages)}: pip install 'se-lab[export]', or {other_formats or 'omit it'}"
        )


def load_exported(folder: str | Path, *, trust_plugins: bool = False) -> tuple[nn.Module, RunSpec]:
    """Load an exported net, in eval mode on the CPU, and return the net and its trial's spec.

    Args:
        folder: A folder written by `export`.
        trust_plugins: Import the plugins that the export names, if they are not imported yet.

    Raises:
        SpecError: if the folder has no export in the format safetensors, the export needs plugins that are not trusted,
            or its weights have changed.

    Examples:
        >>> from se_lab.trained.export import export
        >>> trial = load_records("sweeps/demo.yaml")["folder"].iloc[0]
        >>> files = export(trial, "exported", ["safetensors"])
        >>> net, about = load_exported("exported")
        >>> net(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise SpecError(f"load_exported takes the path of a folder, not {type(folder).__name__}")
    folder = Path(folder)
    about = read_manifest(folder) if folder.is_dir() else None
    if about is None or "weights_file" not in about:
        raise SpecError(f"{not_an_export(folder)}; load_exported needs a folder of se-lab export --formats safetensors")
    import_plugins_of(folder / "se_lab.json", about["plugins"], about.get("provenance", {}), trusted=trust_plugins)
    spec = run_spec(about["spec"])
    # The exported weights replace the initial ones, which need not be downloaded.
    model_spec = run_spec(spec.flat() | {"model.pretrained": False, "model.init": "timm"}).model
    model = create_model(model_spec, about["num_classes"], about["input"]["input_size"][0])
    file = about["weights_file"]
    check_choice("weights_file", file, ("model.safetensors", "weights.safetensors"))
    try:
        state = load_file(folder / file)
        if about.get("twin"):
            state = from_twin(state, list(model.se_sites), spec.model.se.bias)  # type: ignore[arg-type]
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise SpecError(f"{folder / file} is corrupt or belongs to another export: {error}") from error
    if tensors_digest(model.state_dict()) != about["weights"]:
        raise SpecError(f"{folder / file} is corrupt or belongs to another export: its digest is not in se_lab.json")
    return model.eval(), spec


def _open(source: str | Path, options: ExportOptions) -> Net:
    model, spec = load_trained(source, trust_plugins=options.trust_plugins)
    record = store.read_record(Path(source) if Path(source).is_dir() else Path(source).parent)
    assert record is not None  # load_trained has read it
    channels, height, width = input_size(spec.data, options.data_root)
    if options.image_size is not None:
        if options.image_size < 8:
            raise SpecError(f"--image_size is {options.image_size}; it must be at least 8")
        height = width = options.image_size
    return Net(model, spec, record, (channels, height, width), tensors_digest(model.state_dict()))


def _describe(net: Net, data_root: str | Path) -> dict[str, Any]:
    return {
        "trial_id": net.record.trial_id,
        "weights": net.digest,
        "spec": net.spec.flat(),
        "plugins": net.record.execution.get("plugins", ""),
        "num_classes": net.classes,
        "label_names": class_names(net.spec, net.classes, data_root),
        "input": trial_config(net.spec, data_root),
        "sites": [asdict(site) for site in net.sites],
        "metrics": net.record.metrics,
        "provenance": net.record.provenance,
    }


def _write_safetensors(net: Net, folder: Path, about: dict[str, Any], say: Say) -> dict[str, Any]:
    """Write the net in timm's format if plain timm can build it, else its weights only."""
    state = {key: value.contiguous() for key, value in net.model.state_dict().items()}
    spec, reason = net.spec.model, "timm has no such SE units"
    form: Form | None = (spec.backbone, spec.kwargs, state)
    if net.sites:
        form = find_twin(net.model, spec, net.classes, net.shape[0], lambda other: _is_same(other, net))
    if form is not None:
        _write_timm(net, folder, about, form)
        reason = _difference(folder, net)
        if not reason:
            return {"weights_file": "model.safetensors", "twin": bool(net.sites)}
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink()
    save_file(state, folder / "weights.safetensors", {"trial_id": net.record.trial_id})
    say(f"plain timm cannot build this net ({reason}); load weights.safetensors with se_lab.load_exported")
    return {"weights_file": "weights.safetensors", "twin": False}


def _write_plain(net: Net, folder: Path, about: dict[str, Any], say: Say) -> None:
    """Write the backbone without its SE units in timm's format, with a remark in its config."""
    prefixes = tuple(f"{site.path}." for site in net.sites)
    state = {key: value.contiguous() for key, value in net.model.state_dict().items() if not key.startswith(prefixes)}
    subfolder, spec = folder / "plain_backbone", net.spec.model
    subfolder.mkdir()
    remark = f"the backbone of trial {net.record.trial_id} without its SE units: its outputs are not the trained net's"
    _write_timm(net, subfolder, about, (spec.backbone, spec.kwargs, state), remark)
    problem, outputs = _plain_timm(subfolder, net)
    if outputs is None:
        raise ExportError(f"plain timm cannot build {spec.backbone} without its SE units ({problem})")


def _write_timm(net: Net, folder: Path, about: dict[str, Any], form: Form, remark: str = "") -> None:
    """Write config.json and model.safetensors."""
    architecture, arguments, weights = form
    arguments = arguments | ({} if net.shape[0] == 3 else {"in_chans": net.shape[0]})
    save_file(weights, folder / "model.safetensors", {"format": "pt", "trial_id": net.record.trial_id})
    cfg = dict(getattr(net.model, "pretrained_cfg", None) or {})
    fields = {
        key: cfg[key] for key in ("first_conv", "classifier", "pool_size", "fixed_input_size", "license") if key in cfg
    }
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": net.classes,
        "num_features": getattr(net.model, "num_features", None),
        "pretrained_cfg": {**fields, **about["input"], "num_classes": net.classes, "custom_load": False},
    }
    extras = {"model_args": arguments, "label_names": about["label_names"]}
    config |= {key: value for key, value in extras.items() if value}
    if remark:
        config |= {"se_lab": remark}
        config["pretrained_cfg"]["tag"] = "without_se"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


_PLAIN_TIMM = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert "se_lab" not in sys.modules
with torch.inference_mode():
    save_file({key: model(images) for key, images in load_file(sys.argv[2]).items()}, sys.argv[3])
"""


def _plain_timm(folder: Path, net: Net) -> tuple[str, dict[str, Tensor] | None]:
    """Return error or "", and outputs of a folder's net in a process that imports only timm."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = f"{scratch}/images.safetensors", f"{scratch}/outputs.safetensors"
        save_file({str(number): net.images(number) for number in (1, 3)}, inputs)
        command = [sys.executable, "-c", _PLAIN_TIMM, str(folder.absolute()), inputs, outputs]
        process = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        if process.returncode:
            return (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1], None
        return "", load_file(outputs)


def _difference(folder: Path, net: Net) -> str:
    """Return how the net that plain timm builds differs from the trial's, or an empty string."""
    problem, outputs = _plain_timm(folder, net)
    if outputs is None:
        return problem
    try:
        _check("the net built by timm", lambda images: outputs[str(len(images))], net)
    except ExportError as error:
        return str(error)
    return ""


def _write_torchscript(net: Net, folder: Path, about: dict[str, Any], say: Say) -> None:
    path = folder / "model.torchscript.pt"
    try:
        program = torch.jit.script(net.model)
    except Exception as error:  # TorchScript's compiler raises many types of errors
        reason = str(error).strip().splitlines()[0]
        say(f"TorchScript cannot compile {net.spec.model.backbone} ({reason}); traced for {net.shape[1]}-pixel images")
        program = torch.jit.trace(net.model, net.images(2), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(program, path)
    _check(path.name, torch.jit.load(path), net)  # type: ignore[no-untyped-call]


def _write_onnx(net: Net, folder: Path, about: dict[str, Any], say: Say) -> None:
    import onnxruntime

    path = folder / "model.onnx"
    batch = torch.export.Dim("batch")
    program: Any = torch.onnx.export(
        net.model,
        (net.images(2),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props["se_lab"] = json.dumps(about)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    _check(path.name, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), net)


_WRITERS: dict[str, Callable[[Net, Path, dict[str, Any], Say], dict[str, Any] | None]] = {
    "safetensors": _write_safetensors,
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
    "detector": lambda net, folder, about, say: write_detector(
        net.model, folder / DETECTOR_FILE, {"format": "pt", "trial_id": net.record.trial_id}
    ),
}


def _check(name: str, compute: Callable[[Tensor], Tensor], net: Net) -> None:
    """Raise ExportError unless the export has the net's outputs, for batches of two sizes."""
    with torch.inference_mode():
        for images in (net.images(1), net.images(3)):
            expected, outputs = net.model(images), compute(images)
            if not expected.isfinite().all():
                raise ExportError("the net's outputs for images of noise are NaN or infinite, so it cannot be checked")
            limit = TOLERANCE * max(1.0, float(expected.abs().max()))
            worst = float((outputs - expected).abs().max())
            if not worst <= limit:
                raise ExportError(
                    f"{name} differs from the net by {worst:.2g}, more than {limit:.2g}; nothing was written"
                )


def _is_same(other: nn.Module, net: Net) -> bool:
    try:
        _check(type(other).__name__, other, net)
    except (ExportError, RuntimeError):  # RuntimeError: the net takes other images
        return False
    return True
