"""A sweep over a net of torchvision's, from the spec file to the table and the gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from se_lab.cli import main

PARAMETERS = {
    "model.backbone": {"value": "torchvision:shufflenet_v2_x0_5"},
    "model.se": {"values": [{"insertion": "none"}, {"reduction": 4}, {"unit": "eca", "insertion": "conv3x3"}]},
    "seed": {"values": [0]},
}


@pytest.mark.slow
def test_a_net_of_torchvisions_goes_from_a_sweep_to_table_excitations_and_eval(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["${env}", "se-lab", "train", "--recipe=digits", "--train.epochs=2", "--data.batch_size=256", "${args}"]
    spec = {"program": "se-lab", "method": "grid", "parameters": PARAMETERS, "command": command}
    Path("sweep.yaml").write_text(yaml.safe_dump(spec))
    assert main(["sweep", "sweep.yaml", "--workers=2", "--logger=none"]) == 0
    records = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json")}
    added = {
        (record["spec"]["model.se.insertion"], record["spec"]["model.se.unit"]): record["complexity"]["params_se"]
        for record in records.values()
    }
    # Ma et al. 2018, Table 5: 4, 8, 4 units; half of a unit's 48, 96 and 192 channels go through its branch
    widths = 4 * [24] + 8 * [48] + 4 * [96]
    assert added[("none", None)] == 0
    assert added[("standard", "se")] == sum(2 * width * (width // 4) for width in widths)
    assert added[("conv3x3", "eca")] == 4 * 3 + 8 * 3 + 4 * 3  # kernels of 3 for up to 127 channels
    capsys.readouterr()
    assert main(["table", "sweep.yaml", "--columns", "test/top1_error", "params"]) == 0
    table = capsys.readouterr().out
    assert "torchvision:shufflenet_v2_x0_5" in table and "eca" in table
    trial = next(folder for folder, record in records.items() if record["spec"]["model.se.unit"] == "se")
    assert main(["excitations", str(trial), "--images-per-class=2", "-o", "seen"]) == 0
    assert (tmp_path / "seen" / "figure_6.png").is_file()
    capsys.readouterr()
    assert main(["eval", str(trial), "--format=json"]) == 0
    error = json.loads(capsys.readouterr().out)["metrics"]["test/top1_error"]
    assert error == pytest.approx(records[trial]["metrics"]["test/top1_error"])
