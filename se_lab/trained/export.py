"""Write a trained net for other programs: for timm, TorchScript, ONNX, and as a detector's backbone.

DIR/se_lab.json               the trial's spec, how its images are prepared, its classes and metrics
    config.json               timm's, and
    model.safetensors         the weights under timm's names: where plain timm computes the whole net
    weights.safetensors       all weights, where it cannot
    plain_backbone/           on request: config.json and model.safetensors of the backbone without its SE units
    model.torchscript.pt, model.onnx
    detector.safetensors      the weights as a torchvision detector names them: body.layer1.0.conv1.weight …

`timm.create_model("local-dir:DIR", pretrained=True)` makes the whole net, or refuses the folder; a process that imports
only timm has checked its outputs. `load_exported(DIR)` makes the net in either case.
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
from se_lab.spec.flags import import_recorded_plugins
from se_lab.store import RunRecord
from se_lab.trained.detection import DETECTOR_FILE, write_detector
from se_lab.trained.inputs import class_names, input_size, trial_config
from se_lab.trained.load import load_trained, not_an_export
from se_lab.trained.manifest import read_manifest, weights_digest
from se_lab.trained.quiet import quiet_exporters
from se_lab.trained.timm_twin import find_twin, from_twin
from se_lab.units.insertion import Site
from se_lab.units.model import create_model

FORMATS = ("safetensors", "torchscript", "onnx", "detector")
TOLERANCE = 1e-4
"""Allowed difference of an output from the net's, relative to its largest output, or to 1."""

Say = Callable[[str], object]
Form = tuple[str, dict[str, Any], dict[str, Tensor]]
"""The name of a net of timm's, the arguments that make it, and its weights."""


class ExportError(SpecError):
    """An export whose outputs are not the net's."""


@dataclass(frozen=True)
class Net:
    """The net to export, and its origin."""

    model: nn.Module
    spec: RunSpec
    record: RunRecord
    shape: tuple[int, int, int]
    """(C, H, W) of an image."""
    digest: str
    """Of all weights."""

    @property
    def sites(self) -> list[Site]:
        """The net's SE units."""
        return list(self.model.se_sites)  # type: ignore[arg-type]

    @property
    def classes(self) -> int:
        """Outputs of the classifier."""
        return int(self.record.data["classes"])

    def images(self, number: int) -> Tensor:
        """Return images of noise to check with, the same each time."""
        stream = torch.Generator().manual_seed(seed_of("export", number))
        return torch.randn(number, *self.shape, generator=stream)


@dataclass(frozen=True)
class ExportOptions:
    """What an export holds besides the formats, and what it may read and replace."""

    image_size: int | None = None
    """Side of the images that TorchScript and ONNX are made for, in pixels; by default the trial's."""
    plain: bool = False
    """Write the backbone without its SE units as well, in plain_backbone/."""
    data_root: str | Path = "."
    """Where the trial's data lies, for the mean, the deviation and the class names."""
    trust_plugins: bool = False
    """Import the modules that the trial's record names under plugins."""
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
    """Write a trial's net for other programs, and return the files. Each is checked against the net first.

    Args:
        source: A trial's folder, or a checkpoint in it.
        folder: Where to; it may hold other formats of the same weights.
        formats: Of `FORMATS`; onnx needs the extra se-lab[export].
        options: Image size, the plain backbone, data root, whether plugins are trusted and files replaced.
        say: Called with remarks for the user.

    Raises:
        SpecError: for a checkpoint that cannot be loaded, an unknown format, a missing package, or a folder that holds
            other weights.
        DataError: where the mean and deviation of a trial's images are needed, and the set is not there.
        ExportError: if the outputs of a written file are not the net's; no file is then left behind.
    """
    options = options or ExportOptions()
    _check_formats(formats)
    net = _open(source, options)
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest and manifest["weights"] != net.digest:
        raise SpecError(f"{folder} holds other weights, of trial {manifest['trial_id']}; choose another folder")
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
        (temp_folder / "se_lab.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
        with store.replacing([folder / name for name in names], overwrite=options.overwrite):
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
            f"onnx needs {', '.join(packages)}: pip install 'se-lab[export]', or export {other_formats or 'others'}"
        )


def load_exported(folder: str | Path, *, trust_plugins: bool = False) -> tuple[nn.Module, RunSpec]:
    """Build the net that was exported to a folder, in eval mode on the CPU, and return it with its trial's spec.

    Args:
        folder: What `export` wrote.
        trust_plugins: Import the modules that the folder names under plugins, if they are not imported yet.

    Raises:
        SpecError: where the folder holds no export of SE-Lab's in the format safetensors, or names plugins that are
            not trusted, or where its weights are not those that were exported.

    Examples:
        >>> from se_lab.trained.export import export
        >>> trial = load_records("sweeps/demo.yaml")["folder"].iloc[0]
        >>> files = export(trial, "exported", ["safetensors"])
        >>> net, about = load_exported("exported")
        >>> net(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise SpecError(f"load_exported takes a folder that se-lab export wrote, not {type(folder).__name__}")
    folder = Path(folder)
    about = read_manifest(folder) if folder.is_dir() else None
    if about is None or "weights_file" not in about:
        raise SpecError(f"{not_an_export(folder)}; load_exported takes a folder of se-lab export --formats safetensors")
    import_recorded_plugins(about["plugins"], folder / "se_lab.json", trust_plugins)
    spec = run_spec(about["spec"])
    # the folder has its weights: the trial's initial ones need not be fetched
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
        raise SpecError(f"{folder / file} is damaged, or of another export: {error}") from error
    if weights_digest(model) != about["weights"]:
        raise SpecError(f"{folder / file} is damaged, or of another export: its weights are not those of se_lab.json")
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
    return Net(model, spec, record, (channels, height, width), weights_digest(model))


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
    """Write the net in timm's form if plain timm gives its outputs, else all its weights in SE-Lab's form."""
    state = {key: value.contiguous() for key, value in net.model.state_dict().items()}
    spec, reason = net.spec.model, "it has no such SE units"
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
    say(f"plain timm cannot build this net ({reason}): se_lab.load_exported loads it, from weights.safetensors")
    return {"weights_file": "weights.safetensors", "twin": False}


def _write_plain(net: Net, folder: Path, about: dict[str, Any], say: Say) -> None:
    """Write the backbone without its SE units in timm's form, in a folder and with a config that say so."""
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
    """Load a folder in a process with only timm; return its error, or an empty string, and the outputs."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = f"{scratch}/images.safetensors", f"{scratch}/outputs.safetensors"
        save_file({str(number): net.images(number) for number in (1, 3)}, inputs)
        command = [sys.executable, "-c", _PLAIN_TIMM, str(folder.absolute()), inputs, outputs]
        process = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        if process.returncode:
            return (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1], None
        return "", load_file(outputs)


def _difference(folder: Path, net: Net) -> str:
    """Return how a folder's net in plain timm differs from the trial's, or an empty string."""
    problem, outputs = _plain_timm(folder, net)
    if outputs is None:
        return problem
    try:
        _check("the net that timm makes of it", lambda images: outputs[str(len(images))], net)
    except ExportError as error:
        return str(error)
    return ""


def _write_torchscript(net: Net, folder: Path, about: dict[str, Any], say: Say) -> None:
    path = folder / "model.torchscript.pt"
    try:
        program = torch.jit.script(net.model)
    except Exception as error:  # TorchScript's compiler raises whatever it meets
        reason = str(error).strip().splitlines()[0]
        say(f"TorchScript cannot compile {net.spec.model.backbone} ({reason}): traced for {net.shape[1]}-pixel images")
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


def _check(what: str, compute: Callable[[Tensor], Tensor], net: Net) -> None:
    """Raise ExportError unless the export gives the net's outputs, for batches of two sizes."""
    with torch.inference_mode():
        for images in (net.images(1), net.images(3)):
            expected, outputs = net.model(images), compute(images)
            if not expected.isfinite().all():
                raise ExportError("the net gives NaN or infinite outputs for images of noise: it cannot be checked")
            limit = TOLERANCE * max(1.0, float(expected.abs().max()))
            worst = float((outputs - expected).abs().max())
            if not worst <= limit:
                raise ExportError(
                    f"{what} is {worst:.2g} away from the net, and may be {limit:.2g}: nothing was written"
                )


def _is_same(other: nn.Module, net: Net) -> bool:
    try:
        _check("it", other, net)
    except (ExportError, RuntimeError):  # it may not even take such images
        return False
    return True
