"""se_lab.trained.export: what other programs load computes what the net does, or nothing is written."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from se_lab.cli import main
from se_lab.data import DATASETS, Splits, create_data
from se_lab.spec import DataSpec, ModelSpec, RunSpec, SESpec, SpecError
from se_lab.store import RunRecord, read_record, write_record
from se_lab.store.provenance import source_digest
from se_lab.trained import export as module
from se_lab.trained.export import ExportError, ExportOptions, export, load_exported
from se_lab.trained.load import load_trained
from se_lab.units.insertion import find_places, insert_se
from se_lab.units.model import create_model
from se_lab.units.squeeze_excite import SQUEEZE
from tests.trained.in_process import outputs_of_timm

CLASSES = 7


@pytest.fixture(autouse=True)
def _same_process(request, monkeypatch, tmp_path):
    """Build timm's net here, and not in a process that has only timm, which takes seconds to start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "real_timm" in request.keywords:
        return
    monkeypatch.setattr(module, "_plain_timm", outputs_of_timm)


def trial(
    folder: Path, model: ModelSpec, data: DataSpec | None = None, *, plugins: str = "", seed: int = 0
) -> nn.Module:
    """Write a finished trial whose every weight and statistic is away from its start, and return its net."""
    spec = RunSpec(model, data or DataSpec("folder:pets", image_size=64), seed=seed)
    channels = 1 if spec.data.name == "digits" else 3
    classes = 10 if spec.data.name == "digits" else CLASSES
    net = create_model(spec.model, classes, channels, seed=seed)
    stream = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            draw = torch.rand if name.endswith("running_var") else torch.randn
            value.add_(0.05 * draw(value.shape, generator=stream))
    folder.mkdir(parents=True)
    torch.save({"state_dict": {f"model.{key}": value for key, value in net.state_dict().items()}}, folder / "last.ckpt")
    record = RunRecord(spec.trial_id, "finished", spec.flat(), {"plugins": plugins}, data={"classes": classes})
    write_record(folder, record)
    return net.eval()


def images(number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(9))


def assert_same(left: torch.Tensor, right: torch.Tensor) -> None:
    assert (left - right).abs().max() <= 1e-4 * max(1, right.abs().max())


@pytest.mark.parametrize(
    ("backbone", "se", "architecture"),
    [
        ("resnet18", SESpec(reduction=16), "seresnet18"),  # 4 hidden channels, which timm rounds up to 8
        ("resnet18", SESpec(reduction=16, bias=True), "seresnet18"),
        ("test_resnet", SESpec(reduction=32), "test_resnet"),  # timm has no name for it, but takes attn_layer
    ],
)
def test_timm_makes_the_whole_net_where_it_has_a_twin(tmp_path, backbone, se, architecture):
    net = trial(tmp_path / "trial", ModelSpec(backbone, se))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == architecture
    twin = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert sum(isinstance(m, timm.layers.SEModule) for m in twin.modules()) == len(net.se_sites)
    assert_same(twin(images()), net(images()))
    assert not (tmp_path / "out" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("backbone", "se"),
    [
        ("test_resnet", SESpec(reduction=2)),  # wider than timm's units
        ("test_resnet", SESpec("identity", squeeze="none", excitation="tanh")),
        ("cifar_resnet20", SESpec("none")),  # a net of SE-Lab's own
    ],
)
def test_what_plain_timm_cannot_compute_is_not_in_its_form(tmp_path, backbone, se):
    net = trial(tmp_path / "trial", ModelSpec(backbone, se))
    said: list[str] = []
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"], say=said.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["se_lab.json", "weights.safetensors"]
    assert "plain timm cannot build this net" in said[0] and "se_lab.load_exported" in said[0]
    with pytest.raises((FileNotFoundError, OSError)):
        timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(load_exported(tmp_path / "out")[0](images()), net(images()))


def test_the_plain_backbone_is_written_on_request_under_a_name_that_says_so(tmp_path):
    net = trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec(reduction=2)))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"], options=ExportOptions(plain=True))
    config = json.loads((tmp_path / "out/plain_backbone/config.json").read_text())
    assert "without its SE units" in config["se_lab"]
    plain = timm.create_model(f"local-dir:{tmp_path / 'out/plain_backbone'}", pretrained=True)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.real_timm
def test_a_process_that_has_only_timm_checks_the_outputs(tmp_path, monkeypatch):
    trial(tmp_path / "trial", ModelSpec("resnet18", SESpec(reduction=16)))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    assert json.loads((tmp_path / "out/se_lab.json").read_text())["weights_file"] == "model.safetensors"
    net = module._open(tmp_path / "trial", ExportOptions())
    weights = load_file(tmp_path / "out/model.safetensors")
    save_file(
        {key: value + 0.1 for key, value in weights.items()}, tmp_path / "out/model.safetensors", {"format": "pt"}
    )
    assert "differs from the net" in module._difference(tmp_path / "out", net)


def test_files_of_others_are_not_replaced(tmp_path):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("mine")
    with pytest.raises(SpecError, match=r"config\.json already exists and was not written by SE-Lab.*--overwrite"):
        export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    assert (tmp_path / "out/config.json").read_text() == "mine"
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"], options=ExportOptions(overwrite=True))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])  # its own


@pytest.mark.parametrize(
    "model",
    [
        ModelSpec("resnet18", SESpec(reduction=16)),
        ModelSpec("resnet18", SESpec(reduction=16, bias=True)),
        ModelSpec("test_resnet", SESpec("post", reduction=2, squeeze="max", excitation="relu")),
        ModelSpec("test_efficientnet", SESpec(excitation="tanh"), existing_se="replace"),
        ModelSpec("cifar_resnet20", SESpec("none")),
    ],
)
def test_se_lab_restores_every_weight(tmp_path, model):
    net = trial(tmp_path / "trial", model)
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    restored, spec = load_exported(tmp_path / "out")
    assert spec.model == model and not restored.training
    assert [site.path for site in restored.se_sites] == [site.path for site in net.se_sites]
    there = restored.state_dict()
    assert there.keys() == net.state_dict().keys()
    assert all(torch.equal(there[key], value) for key, value in net.state_dict().items())


def test_timm_prepares_images_as_the_trial_did(tmp_path):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")), DataSpec("digits"))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    config = timm.data.resolve_model_data_config(net)
    assert tuple(config["input_size"]) == (1, 8, 8) and config["crop_pct"] == 1.0
    data = create_data(DataSpec("digits"), 0)
    pixels, _ = data.splits["test"]
    transform = timm.data.create_transform(**config)
    mine = torch.stack([transform(Image.fromarray(image[0].numpy())) for image in pixels[:5]])
    assert torch.allclose(mine, next(iter(data.batches("test")))[0][:5], atol=1e-5)
    assert json.loads((tmp_path / "out/config.json").read_text())["label_names"] == list("0123456789")


@pytest.mark.parametrize(
    ("insertion", "squeeze", "excitation"),
    [
        ("standard", "avg", "sigmoid"),
        ("pre", "max", "tanh"),
        ("post", "none", "relu"),
        ("identity", "none", "sigmoid"),
        ("conv3x3", "avg", "tanh"),
    ],
)
def test_torchscript_and_onnx_compute_the_net_for_any_batch(tmp_path, insertion, squeeze, excitation):
    onnxruntime = pytest.importorskip("onnxruntime")
    se = SESpec(insertion, "se", 4, squeeze, excitation)
    net = trial(tmp_path / "trial", ModelSpec("test_resnet", se))
    export(tmp_path / "trial", tmp_path / "out", ["torchscript", "onnx"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "model.torchscript.pt",
        "se_lab.json",
    ]
    script = torch.jit.load(tmp_path / "out/model.torchscript.pt")
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 4):
        expected = net(images(number))
        assert_same(script(images(number)), expected)
        (given,) = session.run(None, {"images": images(number).numpy()})
        assert_same(torch.from_numpy(np.asarray(given)), expected)
    about = json.loads(session.get_modelmeta().custom_metadata_map["se_lab"])
    assert about["spec"]["model.se.insertion"] == insertion


def test_a_plugins_operator_goes_along(tmp_path, monkeypatch):
    (tmp_path / "my_export_squeeze.py").write_text(
        "import torch\nfrom se_lab import SQUEEZE\n\nclass Weighted(torch.nn.Module):\n"
        "    def __init__(self, channels):\n        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.ones(channels))\n\n"
        "    def forward(self, x):\n        return x.square().mean((2, 3)).sqrt() * self.weight\n\n"
        "SQUEEZE['weighted'] = Weighted\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_export_squeeze  # noqa: F401

    try:
        model = ModelSpec("test_resnet", SESpec(reduction=16, squeeze="weighted"))
        net = trial(tmp_path / "trial", model, plugins="my_export_squeeze")
        export(tmp_path / "trial", tmp_path / "out")
        del SQUEEZE["weighted"], sys.modules["my_export_squeeze"]  # as in a new process
        with pytest.raises(SpecError, match=r"se_lab\.json names plugins.*my_export_squeeze.*trust_plugins=True"):
            load_exported(tmp_path / "out")
        with pytest.raises(SpecError, match=r"record\.json names plugins.*my_export_squeeze.*--trust_plugins"):
            load_trained(tmp_path / "trial")
        assert "my_export_squeeze" not in sys.modules
        restored, _ = load_exported(tmp_path / "out", trust_plugins=True)
        assert torch.equal(restored(images()), net(images()))
        assert_same(torch.jit.load(tmp_path / "out/model.torchscript.pt")(images()), net(images()))
    finally:
        SQUEEZE.pop("weighted", None)
        sys.modules.pop("my_export_squeeze", None)


def test_a_plugin_that_has_changed_since_is_named(tmp_path, monkeypatch, capsys):
    plugin = tmp_path / "my_changed_plugin.py"
    plugin.write_text("FACTOR = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")), plugins="my_changed_plugin")
    record = read_record(tmp_path / "trial")
    record.provenance = {"plugin my_changed_plugin": source_digest("my_changed_plugin")}
    write_record(tmp_path / "trial", record)
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"], options=ExportOptions(trust_plugins=True))
    assert "my_changed_plugin" not in capsys.readouterr().err
    plugin.write_text("FACTOR = 2\n")
    for load, name in ((load_trained, "trial"), (load_exported, "out")):
        load(tmp_path / name, trust_plugins=True)
        assert "plugin my_changed_plugin was " in capsys.readouterr().err


def test_what_computes_something_else_is_not_written(tmp_path, monkeypatch):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec(reduction=4)))
    broken = create_model(ModelSpec("test_resnet", SESpec(reduction=4)), CLASSES, seed=5).eval()
    monkeypatch.setattr(module.torch.jit, "script", lambda net: torch.jit.trace(broken, images()))
    with pytest.raises(ExportError, match=r"model\.torchscript\.pt differs from the net"):
        export(tmp_path / "trial", tmp_path / "out", ["safetensors", "torchscript"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(ExportError):
        export(tmp_path / "trial", tmp_path / "mine", ["torchscript"])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_formats_come_together_only_of_the_same_weights(tmp_path):
    trial(tmp_path / "a", ModelSpec("test_resnet", SESpec(reduction=4)))
    trial(tmp_path / "b", ModelSpec("test_resnet", SESpec(reduction=4)), seed=1)
    export(tmp_path / "a", tmp_path / "out", ["torchscript"])
    with pytest.raises(SpecError, match="contains other weights, of trial"):
        export(tmp_path / "b", tmp_path / "out", ["safetensors"])
    with pytest.raises(SpecError, match="is an export in another format"):
        load_exported(tmp_path / "out")
    export(tmp_path / "a", tmp_path / "out", ["safetensors"])
    export(tmp_path / "a", tmp_path / "out", ["torchscript"])
    assert load_exported(tmp_path / "out")[1].seed == 0


def test_a_net_that_torchscript_cannot_compile_is_traced_and_said(tmp_path, monkeypatch):
    net = trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec(reduction=4)))

    def refuse(net):
        raise RuntimeError("no")

    monkeypatch.setattr(module.torch.jit, "script", refuse)
    said: list[str] = []
    how = ExportOptions(image_size=48)
    export(tmp_path / "trial", tmp_path / "out", ["torchscript"], options=how, say=said.append)
    assert said == ["TorchScript cannot compile test_resnet (no); traced for 48-pixel images"]
    assert_same(torch.jit.load(tmp_path / "out/model.torchscript.pt")(images(5)), net(images(5)))


def test_the_command_writes_and_names_files_and_says_mistakes(tmp_path, capsys, monkeypatch):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec(reduction=4)))
    out = str(tmp_path / "out")
    assert main(["export", str(tmp_path / "trial"), "-o", out, "--formats", "safetensors", "detector"]) == 0
    printed = capsys.readouterr()
    assert [Path(line).name for line in printed.out.splitlines()] == [
        "detector.safetensors", "weights.safetensors", "se_lab.json",
    ]  # fmt: skip
    assert "plain timm cannot build this net (timm has no such SE units)" in printed.err
    for argv, said in [
        (["--formats=onx"], "did you mean 'onnx'"),
        (["--image_sise=3"], "did you mean '--image_size'"),
        (["--image_size=3"], "at least 8"),
    ]:
        assert main(["export", str(tmp_path / "trial"), "-o", out, *argv]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(tmp_path / "trial"), "-o", out]) == 2
    assert "pip install 'se-lab[export]'" in capsys.readouterr().err


def test_load_exported_says_what_it_wants(tmp_path):
    (tmp_path / "record.json").write_text("{}")
    for given, said in [
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path / "record.json", "record.json is a file"),
        (tmp_path, "the folder of a trial; load it with load_trained"),
        (3, "takes the path of a folder, not int"),
    ]:
        with pytest.raises(SpecError, match=said):
            load_exported(given)


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "{"])
def test_a_manifest_of_another_program_is_refused(tmp_path, content):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/se_lab.json").write_text(content)
    for use in (load_exported, lambda folder: export(tmp_path / "trial", folder, ["safetensors"])):
        with pytest.raises(SpecError, match=r"se_lab\.json (was not|is corrupt, or was not) written by se-lab export"):
            use(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["se_lab.json"]


def test_a_flipped_bit_in_exported_weights_is_noticed(tmp_path):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    path = tmp_path / "out/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"model\.safetensors is corrupt"):
        load_exported(tmp_path / "out")


def test_an_export_without_a_checksum_is_read(tmp_path):
    net = trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    manifest = json.loads((tmp_path / "out/se_lab.json").read_text())
    del manifest["checksum"]
    (tmp_path / "out/se_lab.json").write_text(json.dumps(manifest | {"weights": digest.hexdigest()[:16]}))
    assert torch.equal(load_exported(tmp_path / "out")[0](images()), net(images()))
    export(tmp_path / "trial", tmp_path / "out", ["torchscript"], options=ExportOptions(overwrite=True))


def test_a_flipped_bit_in_a_manifest_is_noticed(tmp_path):
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    path = tmp_path / "out/se_lab.json"
    content = path.read_bytes()
    mean = content.index(b"0.4")
    path.write_bytes(content[:mean] + b"1" + content[mean + 1 :])
    with pytest.raises(SpecError, match=r"se_lab\.json is corrupt"):
        load_exported(tmp_path / "out")


def test_the_exported_backbone_starts_another_trial(tmp_path):
    """Transfer: model.pretrained takes the file of a net without a twin, and insertion goes on from there."""
    net = trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    weights = str(tmp_path / "out" / "model.safetensors")
    again = create_model(ModelSpec("test_resnet", SESpec("pre"), pretrained=weights), CLASSES)
    plain = net.state_dict()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in plain.items())
    fresh = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert len(insert_se(fresh, SESpec())) == len(find_places(fresh))


def test_a_set_that_a_plugin_opens_is_exported_with_its_own_mean(tmp_path, monkeypatch):
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = TensorDataset(pixels, torch.arange(12) % 2)
    monkeypatch.setitem(DATASETS, "mine", lambda root: Splits(whole, whole, whole, ["a", "b"], 16, pad=1))
    trial(tmp_path / "trial", ModelSpec("test_resnet", SESpec("none")), DataSpec("mine"))
    export(tmp_path / "trial", tmp_path / "out", ["safetensors"])
    config = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
    assert tuple(config["input_size"]) == (3, 16, 16)
    means = (pixels / 255).mean((0, 2, 3))
    assert config["mean"] == pytest.approx(means.tolist(), abs=1e-5)
