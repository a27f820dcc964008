"""The list of backbones, and the paper's costs beside ours."""

from __future__ import annotations

import json

import pytest
import timm

from se_lab import SpecError
from se_lab.cli import main
from se_lab.report import costs
from se_lab.units.listing import list_backbones


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what was seen in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "se-lab"


def test_a_net_that_was_seen_is_not_built_again(cache, monkeypatch):
    first = [*list_backbones("resnet10t"), *list_backbones("resnet1*t")]
    monkeypatch.setattr(timm, "create_model", lambda name: pytest.fail(f"{name} is built again"))
    assert list(list_backbones("resnet1*t")) == first[1:]
    assert first[0] in first[1:] and len(first) > 2


@pytest.mark.parametrize("spoilt", ["", "[", '[{"name": "resnet10t"}]', '[{"nom": "resnet10t"}]'])
def test_a_cache_that_cannot_be_read_or_is_of_another_timm_costs_nothing_but_time(cache, monkeypatch, spoilt):
    (good,) = list_backbones("resnet10t")
    (file,) = cache.iterdir()
    if "name" in spoilt:  # well-formed, and wrong: what another timm's net would be
        monkeypatch.setattr(timm, "__version__", "0.0.0")
    file.write_text(spoilt)
    assert list(list_backbones("resnet10t")) == [good]
    assert list(list_backbones("resnet10t")) == [good]


def test_a_backbone_is_listed_with_stages_units_channels_and_insertions():
    (listing,) = list_backbones("resnet50")
    assert listing.units == {"2": 3, "3": 4, "4": 6, "5": 3}  # He et al. 2016, Table 1
    assert listing.insertions == dict.fromkeys(("standard", "pre", "post", "identity", "conv3x3"), 16)
    assert "C 256-2048" in listing.text()


def test_a_net_without_shortcuts_has_no_identity_and_one_with_some_says_how_many():
    (vgg,) = list_backbones("vgg16_bn")
    assert list(vgg.insertions) == ["standard"]
    (mobile,) = list_backbones("mobilenetv2_100")
    assert "identity (10)" in mobile.text()  # Sandler et al. 2018, Table 2: 17 bottlenecks, 10 of them residual


def test_a_net_with_se_of_its_own_says_so_and_a_transformer_has_no_place():
    (efficient,) = list_backbones("efficientnet_b0")
    assert efficient.text().endswith("; 16 of its own")
    (vit,) = list_backbones("vit_tiny_patch16_224")
    assert not vit.insertions and "no unit" in vit.text()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'resnet50'"):
        list(list_backbones("resnet5O"))


def test_the_command_lists_and_counts(capsys):
    assert main(["models", "cifar_resnet*"]) == 0
    assert capsys.readouterr().out.strip().split("\n")[-1] == "5 of 5 can take SE units"


def test_the_command_profiles_as_json(capsys):
    flags = ["--model.backbone=cifar_resnet20", "--model.se.reduction=4", "--image-size=32", "--classes=10"]
    assert main(["profile", "--format=json", *flags]) == 0
    net, *rows = json.loads(capsys.readouterr().out)
    assert net["params_se"] == 3 * (16**2 + 32**2 + 64**2) // 2  # 2/r Σ N C²
    assert [row["part"] for row in rows][:4] == ["stage 2", "stage 3", "stage 4", "rest"]
    assert [row["part"] for row in rows][4:] == [f"SE_{stage}_{unit}" for stage in (2, 3, 4) for unit in (1, 2, 3)]


def test_the_command_measures(capsys):
    flags = ["--model.backbone=cifar_resnet20", "--image-size=8", "--classes=2", "--device=cpu"]
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
    assert "fits neither" in found["8", "params"]["reason"]
    assert "units=stride_1" in found["SE-ShuffleNet", "params"]["reason"]
