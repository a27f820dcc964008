"""The command: what a user types, what is printed, and with which exit status it leaves."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml

import se_lab
from se_lab.cli import VERBS, main
from se_lab.spec import run_spec
from se_lab.spec.flags import parse_trial
from se_lab.store import claim

DEMO = Path(__file__).parents[2] / "sweeps/demo.yaml"
QUICK = ["--recipe=digits", "--train.epochs=1", "--data.batch_size=256", "--model.kwargs={units: 1}", "--wandb=false"]


def test_help_answers_without_pytorch():
    code = "import sys; from se_lab.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--model.se.redction=2"], "did you mean '--model.se.reduction'"),
        (["train", "--model.se.squeeze=avrage"], "allowed are avg, max, none"),
        (["train", "--recipe=digts"], "did you mean 'digits'"),
        (["train", "--recip=digits"], "did you mean '--recipe'"),
        (["train", "--model.backbone=resnt50", "--wandb=false"], "did you mean"),
        (["train", "--plugins=no_such_module"], "no_such_module"),
        (["train", "--optim.lr=much"], "optim.lr"),
        (["sweep", "nothing.yaml"], "no such sweep spec"),
        (["sweep"], "the following arguments are required: FILE"),
        (["sweep", "."], ". is a directory; a sweep spec is a YAML file"),
        (["train", "--optim.name=adamwx", "--wandb=false"], "did you mean 'adamw"),
        (["sweep", "nothing.yaml", "--wokers=2"], "did you mean '--workers'"),
        (["train", "--model.fused=onn"], "model.fused is 'onn'; allowed are auto, on, off; did you mean 'on'"),
        (["train", "--model.se.redction", "4"], "unknown flag '--model.se.redction'; did you mean"),
        (["train", "--model.se={redction: 4}"], "unknown field 'model.se.redction'; did you mean"),
        (["train", "--model.se.stages=al"], "model.se.stages is 'al'; it must be all or a list"),
        (["train", "--model.se.reduction=2.5"], "model.se.reduction is 2.5; it must be an integer"),
        (["train", "--wandb=maybe"], "wandb is 'maybe'; it must be true or false"),
        (["train", "stray"], "unexpected argument 'stray'"),
        (["train", "--checkpoint_minutes=0"], "checkpoint_minutes is 0.0; it must be above 0"),
        (["profile", "--model.se.redction=4"], "did you mean '--model.se.reduction'"),
        (["profile", "--against_papr"], "did you mean '--against_paper'"),
        (
            ["sweep", "nothing.yaml", "--executor=slrum"],
            "--executor is 'slrum'; allowed are local, slurm; did you mean",
        ),
        (["sweep", "nothing.yaml", "--slurm.gpus=one"], "slurm.gpus is 'one'; it must be an integer"),
        (["sweep", "nothing.yaml", "--retries=one"], "retries is 'one'; it must be an integer"),
        (["gc", "nowhere", "--keep=lst"], "--keep is 'lst'; allowed are tested, last, best, none; did you mean 'last'"),
        (["eval", "nowhere", "--batch_size=big"], "--batch_size is 'big'; it must be an integer"),
        (["table", "nowhere"], "not a folder of trials"),
        (["table", "."], "contains no trials"),
        (["table"], "give either RUNS, or --paper"),
        (["table", "--costs_only", "--paper=table_10_reductoin"], "did you mean 'table_10_reduction'?"),
        (["table", "--costs_only", "--paper=table_11_squeeze"], "has no costs"),
        (["train", "--data.name=folder:/nowhere"], "/nowhere/train is missing"),
        (["train", "--seed=12345678901234567890123"], "it must be at least 0 and at most 18446744073709551615"),
        (["train", "--model.kwargs=&a {b: *a}"], "contains itself"),
        (["train", "--store="], "store is ''; it must be a folder, such as runs"),
        (["train", "--config"], "--config: expected one argument"),
        (["train", "--recipe", "--seed=3"], "--recipe: expected one argument"),
        (["train", f"--config={os.devnull}/x"], f"{os.devnull}/x"),
        (["train", "--config", sys.executable], "is not UTF-8 text"),
        (["train", "--threads=99999999999"], "threads is 99999999999; it must be at least 1 and at most 1024"),
        (["train", "--data.image_size=99999999"], "it must be at least 8 and at most 65535"),
        (["train", "--wandb=false", f"--store={'x' * 5000}"], "File name too long"),
        (["table", "x" * 5000], "File name too long"),
        (["profile", "--image_size=0"], "--image_size is 0; it must be from 8 to 65535"),
        (["profile", "--classes=0"], "--classes is 0; it must be at least 1"),
        (["sweep", str(DEMO), "--workers=²"], "--workers is '²'; it must be auto or a positive integer"),
        (["status", str(DEMO), f"--store={__file__}"], "is a file; it must be a folder"),
        (["train", f"--store={__file__}/under"], "is a file; it must be a folder"),
        (["eval", f"{__file__}/under"], "there is no checkpoint"),
    ],
)
def test_wrong_input_is_said_plainly_and_costs_nothing(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--job-type=x", "--sweep-seed=3"], ["--job_type", "x", "--sweep_seed", "3"]])
@pytest.mark.parametrize("verb", ["sweep", "sync"])
def test_flags_are_read_with_dashes_and_with_underscores(verb, flags, capsys):
    assert main([verb, "nothing.yaml", *flags]) == 2
    assert "no such sweep spec" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["--data-root=nowhere", "--data_root=nowhere"])
@pytest.mark.parametrize("verb", ["train", "profile"])
def test_those_of_a_trial_too(verb, root, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [verb, root, "--model.existing-se=keep", "--data.name=folder:images", "--wandb=false"]
    sweep = Path(__file__).parents[2] / "sweeps/demo.yaml"
    assert main([*argv, f"--sweep={sweep}"] if verb == "profile" else [*argv, "--dry_run"]) == (verb == "train") * 2
    assert verb == "profile" or "nowhere/images/train is missing" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_spells_every_flag_with_underscores(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert re.findall(r"(?<!\S)--\w+-\S*", capsys.readouterr().out) == []


def test_the_help_of_sync_lists_what_it_uses(capsys):
    with pytest.raises(SystemExit):
        main(["sync", "--help"])
    flags = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert flags == {"store", "project", "entity", "group", "tags", "notes", "job_type", "plugins", "sweep_seed"}


def test_dir_shows_the_public_names_alone():
    assert set(dir(se_lab)) == {"__version__", *se_lab.__all__}


def test_train_leaves_other_peoples_folders_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert main(["train", *QUICK, f"--store={tmp_path}"]) == 2
    assert "contains other files (thesis.tex)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_train_runs_a_trial_and_tells_its_errors(tmp_path, capsys):
    assert main(["train", *QUICK, f"--store={tmp_path}", "--model.se.reduction=4", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(next(tmp_path.glob("*/record.json")).read_text())
    assert record["trial_id"] in printed
    assert f"{record['metrics']['test/top1_error']:.4g}" in printed
    assert (record["spec"]["model.se.reduction"], record["spec"]["seed"], record["spec"]["optim.schedule"]) == (
        4,
        3,
        "cosine",
    )


def test_a_trial_that_another_worker_has_is_left_to_it(tmp_path, capsys):
    argv = ["train", *QUICK, f"--store={tmp_path}"]
    spec, _ = parse_trial(argv[1:])
    with claim(tmp_path / spec.trial_id):
        assert main(argv) == 75
    assert f"is held by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / spec.trial_id / "record.json").exists()


@pytest.mark.slow
def test_of_several_ranks_one_tells_what_a_rehearsal_found(tmp_path):
    argv = ["train", *QUICK, f"--store={tmp_path}", "--train.devices=2", "--dry_run"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # as torchrun has it
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "se_lab.cli", *argv],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "trained 2 steps" in said[0] and said[1] == ""


def test_flags_count_over_recipe_and_file_wherever_they_stand(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 1}\nseed: 9\n")
    argv = [
        "train",
        "--seed=3",
        "--wandb=false",
        f"--store={tmp_path}/store",
        f"--config={tmp_path}/mine.yaml",
        "--recipe",
        "digits",
    ]
    assert main(argv) == 0
    spec = json.loads(next(tmp_path.glob("store/*/record.json")).read_text())["spec"]
    assert (spec["seed"], spec["train.epochs"], spec["model.backbone"]) == (3, 1, "cifar_resnet20")


@pytest.fixture
def swept(tmp_path):
    """Return a sweep of two variants and two seeds, and its store, run through the command."""
    spec = tmp_path / "sweep.yaml"
    command = ["${env}", "se-lab", "train", *QUICK[:-1], "${args}"]
    parameters = {"model.se": {"values": [{"insertion": "none"}, {"reduction": 4}]}, "seed": {"values": [0, 1]}}
    about = {"description": "What does SE change?", "method": "grid", "command": command, "parameters": parameters}
    spec.write_text(yaml.safe_dump(about))
    assert main(["sweep", str(spec), "--store", str(tmp_path / "store"), "--wandb=false", "--workers=2"]) == 0
    return spec, tmp_path / "store"


def test_sweep_then_table_then_plot(swept, tmp_path, capsys):
    spec, store = swept
    assert main(["table", str(spec), "--store", str(store), "--format", "csv", "-o", str(tmp_path / "t.csv")]) == 0
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 3 and "no SE" in lines[1]
    assert "95 % t intervals" in capsys.readouterr().err  # a CSV file has no place for notes
    assert main(["plot", str(spec), "--store", str(store), "-o", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures/tradeoff_macs.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figures/curves.svg").read_text()
    # two variants, one of them without a reduction ratio: no curve over it, no second key for a heat map
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said if "skipped:" in line] == ["reduction", "heatmap"]
    assert main(["report", str(spec), "--store", str(store), "-o", str(tmp_path / "page/report.html")]) == 0
    assert "What does SE change?" in (tmp_path / "page/report.html").read_text()


def test_dry_run_lists_trials_and_their_cost_and_runs_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = Path(__file__).parents[2] / "sweeps/demo.yaml"
    assert main(["sweep", str(demo), "--dry_run", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 6 * 8 and not list(tmp_path.iterdir())
    for trial in listed:
        assert run_spec(trial["spec"]).trial_id == trial["trial_id"]
    # He et al.'s ResNet-20 on one input channel: timm's parameters of the net that was built
    with torch.device("meta"):
        plain = sum(p.numel() for p in timm.create_model("cifar_resnet20", in_chans=1).parameters())
    assert {t["params"] for t in listed if t["spec"]["model.se.insertion"] == "none"} == {plain}
    # 2 Σ C · (C // r) over three units each of 16, 32 and 64 channels
    extra = {r: sum(3 * 2 * c * (c // r) for c in (16, 32, 64)) for r in (2, 4, 8, 16)}
    assert {t["spec"]["model.se.reduction"]: t["params"] - plain for t in listed if t["params"] > plain} == extra
    assert sum(t["params"] == plain + extra[4] for t in listed) == 2 * 8  # the identity branch has as many channels
    assert main(["sweep", str(demo), "--dry_run"]) == 0
    assert "48 trials, 48 to run: about" in capsys.readouterr().out


def test_a_failing_trial_makes_the_sweep_leave_with_1(tmp_path, capsys):
    spec = tmp_path / "sweep.yaml"
    command = ["se-lab", "train", *QUICK[:-1], "--optim.schedule=constant", "${args}"]
    spec.write_text(
        yaml.safe_dump({"method": "grid", "command": command, "parameters": {"optim.lr": {"values": [0.1, 1e25]}}})
    )
    assert main(["sweep", str(spec), "--store", str(tmp_path / "store"), "--wandb=false"]) == 1
    printed = capsys.readouterr()
    assert "1 failed, 1 finished" in printed.out
    log = Path(printed.err.split("see ")[1].split()[0])
    assert "FloatingPointError: the training loss is nan or infinite in batch" in log.read_text(encoding="utf-8")


def test_a_plugin_adds_an_operator(tmp_path, monkeypatch, capsys):
    from se_lab.units.squeeze_excite import SQUEEZE

    (tmp_path / "my_squeeze.py").write_text(
        "from se_lab import SQUEEZE\n\ndef l2(x):\n    return x.square().mean((2, 3)).sqrt()\n\nSQUEEZE['l2'] = l2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert main(["train", *QUICK, "--plugins=my_squeeze", "--model.se.squeeze=l2"]) == 0
    finally:
        SQUEEZE.pop("l2", None)
        sys.modules.pop("my_squeeze", None)
    record = json.loads(next(tmp_path.glob("runs/*/record.json")).read_text())
    assert record["spec"]["model.se.squeeze"] == "l2" and record["execution"]["plugins"] == "my_squeeze"
