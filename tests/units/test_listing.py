"""The list of backbones, and the paper's costs beside ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import timm

from se_lab import SpecError
from se_lab.cli import main
from se_lab.report import costs
from se_lab.units import listing
from se_lab.units.listing import list_backbones


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what was seen in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "se-lab"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Return an index of a few nets, in a folder that a test may copy."""
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name in ("resnet10t", "resnet50", "vgg16_bn", "mobilenetv2_100", "efficientnet_b0", "vit_tiny_patch16_224"):
            list_backbones(name)
        list_backbones("torchvision:mobilenet_v2")
    return folder / "se-lab"


@pytest.fixture
def indexed(cache, index):
    shutil.copytree(index, cache)
    return cache


def test_a_net_of_the_index_is_not_built_again_and_nothing_is_imported_for_it(indexed, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name: pytest.fail(f"{name} is built again"))
    (known,) = list_backbones("resnet10t")
    for module in ("timm", "torch"):
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    assert list_backbones("resnet10t") == [known]
    with pytest.raises(SpecError, match="did you mean 'resnet50'"):
        list_backbones("resnet5O")


@pytest.mark.parametrize("spoilt", ["", "[", '[{"name": "resnet10t"}]', '{"names": ["a"], "nets": [{"nom": 1}]}'])
def test_an_index_that_cannot_be_read_costs_nothing_but_time(indexed, spoilt):
    (good,) = list_backbones("resnet10t")
    (file,) = indexed.glob("backbones-*")
    file.write_text(spoilt)
    assert list_backbones("resnet10t") == [good]
    assert list_backbones("resnet10t") == [good]


def test_a_long_indexing_is_announced(cache, monkeypatch, capsys):
    monkeypatch.setattr(listing, "_inspect", lambda name: listing.Listing(name))
    assert len(list_backbones("resnet*")) > 20
    assert re.match(r"indexing \d+ backbones, once; this takes minutes\n", capsys.readouterr().err)
    assert len(list_backbones("resnet*")) > 20 and not capsys.readouterr().err


def test_another_timm_has_another_index(indexed, monkeypatch):
    monkeypatch.setattr(listing, "version", lambda package: "0.0.0")
    list_backbones("resnet10t")
    assert len(list(indexed.glob("backbones-*"))) == 2


def test_a_backbone_is_listed_with_stages_units_channels_and_insertions(indexed):
    (listing,) = list_backbones("resnet50")
    assert listing.units == {"2": 3, "3": 4, "4": 6, "5": 3}  # He et al. 2016, Table 1
    assert listing.insertions == dict.fromkeys(("standard", "pre", "post", "identity", "conv3x3"), 16)
    name, stages, units, channels, *_, params, own = listing.cells()
    assert (name, stages, units, channels, own) == ("resnet50", "2-5", "3+4+6+3", "256-2048", "")
    assert params == "25,557,032"  # published.yaml


def test_a_net_without_shortcuts_has_no_identity_and_one_with_some_says_how_many(indexed):
    (vgg,) = list_backbones("vgg16_bn")
    assert list(vgg.insertions) == ["standard"]
    for name in ("mobilenetv2_100", "torchvision:mobilenet_v2"):
        (mobile,) = list_backbones(name)
        assert "identity (10)" in mobile.cells()[4]  # Sandler et al. 2018, Table 2: 10 of 17 bottlenecks are residual


def test_a_net_with_se_of_its_own_says_so_and_a_transformer_has_no_place(indexed):
    (efficient,) = list_backbones("efficientnet_b0")
    assert efficient.cells()[-1] == "16"
    (vit,) = list_backbones("vit_tiny_patch16_224")
    assert not vit.insertions and "no known blocks" in vit.cells()[4]


def test_the_command_prints_a_table_with_a_heading_and_counts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # headings stand in one line
    assert main(["models", "cifar_resnet?0"]) == 0
    heading, _, *rows, last = capsys.readouterr().out.strip().split("\n")
    assert re.split("  +", heading) == list(listing.COLUMNS)
    assert re.split("  +", rows[0]) == [
        "cifar_resnet20",
        "2-4",
        "3+3+3",
        "16-64",
        "standard pre post identity conv3x3",
        "269,722",
    ]  # He et al. 2016, Table 6: 0.27 M
    assert last == "1 of 1 support units"


def test_a_reader_that_closes_the_pipe_gets_no_traceback(indexed):
    command = "from se_lab.cli import main; raise SystemExit(main(['models', 'resnet50']))"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_command_profiles_as_json(capsys):
    flags = ["--model.backbone=cifar_resnet20", "--model.se.reduction=4", "--image_size=32", "--classes=10"]
    assert main(["profile", "--format=json", *flags]) == 0
    net, *rows = json.loads(capsys.readouterr().out)
    assert net["params_se"] == 3 * (16**2 + 32**2 + 64**2) // 2  # 2/r Σ N C²
    assert [row["part"] for row in rows][:4] == ["stage 2", "stage 3", "stage 4", "rest"]
    assert [row["part"] for row in rows][4:] == [f"SE_{stage}_{unit}" for stage in (2, 3, 4) for unit in (1, 2, 3)]


def test_the_command_measures(capsys):
    flags = ["--model.backbone=cifar_resnet20", "--image_size=8", "--classes=2", "--device=cpu"]
    assert main(["profile", "--measure", "--format=json", *flags]) == 0
    net = json.loads(capsys.readouterr().out)[0]
    assert net["latency_ms"] > 0 and net["peak_memory_MB"] > 0 and net["device"] == "cpu"


def test_published_costs_stand_beside_ours_with_a_reason():
    rows = costs.paper_costs("table_10_reduction") + costs.paper_costs("table_3_mobile")
    found = {(row["row"], row["figure"]): row for row in rows}
    # published.yaml, `notes`: trainable parameters and the norms' running statistics fit all rows but r = 8
    assert "running statistics" in found["4", "params"]["reason"]
    assert found["16", "params"] | {"table": ""} == {
        "table": "",
        "row": "16",
        "figure": "params",
        "ours": 28071976,
        "published": 28100000,
        "deviation_%": -0.1,
        "reason": "as printed",
    }
    assert "not equal, with or without" in found["8", "params"]["reason"]
    assert "units=stride_1" in found["SE-ShuffleNet", "params"]["reason"]
