"""The linter: what W&B would refuse or silently change, said all at once."""

from pathlib import Path

import pytest
import yaml

from se_lab.cli import main
from se_lab.spec import ModelSpec, RunSpec, SESpec, SpecError
from se_lab.sweep.check import check_sweep, sweep_remarks
from se_lab.sweep.schedule import check_trials

COMMAND = ["${env}", "se-lab", "train", "--recipe=digits", "${args}"]
WHOLE = {"program": "se-lab", "method": "grid", "command": COMMAND, "parameters": {"seed": {"values": [0, 1]}}}


@pytest.fixture
def found(tmp_path):
    """Return a maker of (where, text) pairs: what is found in the sound spec with some keys replaced."""

    def find(**changes):
        path = tmp_path / "sweep.yaml"
        spec = {key: value for key, value in (WHOLE | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(spec))
        return [(finding.where, str(finding)) for finding in check_sweep(path)]

    return find


def grid(**axes):
    """Return parameters of value lists, `__` standing for the dot."""
    return {"parameters": {name.replace("__", "."): {"values": values} for name, values in axes.items()}}


def test_a_sound_spec_has_no_findings(found):
    assert found() == []
    axis = [{"insertion": "none"}, {"reduction": 2}, {"squeeze": "max", "stages": [2, 3]}]
    assert found(**grid(model__se=axis, seed=[0, 1])) == []
    draws = {"optim.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}}
    assert found(method="random", run_cap=3, parameters=draws) == []


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"commnd": []}, "commnd", "did you mean 'command'"),
        ({"command": None}, "command", "python se-lab"),
        ({"command": [*COMMAND[:4]]}, "command", "would repeat one trial"),
        ({"command": [*COMMAND, "${arg}"]}, "command", "did you mean '${args}'"),
        ({"command": [*COMMAND, "--config=${args_json_file}"]}, "command", "only if it is a whole token"),
        ({"command": [*COMMAND, "--seed=3"]}, "command", "overrides it"),
        ({"command": ["se-lab", "train", "--seed=3", "${args}"]}, "command", "the flag has no effect"),
        (
            {
                "command": [*COMMAND, "--optim.weight-decay=0.1"],
                "parameters": {"optim.weight_decay": {"values": [0, 1e-4]}},
            },
            "command",
            "overrides it",
        ),
        ({"command": ["se-lab", "train", "--data.name=${envvar:SET}", "${args}"]}, "command", "environment"),
        ({"program": None}, "program", "write program: se-lab"),
        (
            {"method": "bayes", "run_cap": 2, "metric": {"name": "test/loss"}, **grid(optim__lr=[0.1, 0.2])},
            "metric.name",
            "test images are for reporting only",
        ),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 3, "strict": True}},
            "metric",
            "early_terminate needs one",
        ),
        ({"metric": {"name": "val/top1_error", "goal": "minimise"}}, "metric.goal", "W&B silently treats as minimize"),
        ({"metric": {"name": "val_loss"}}, "metric.name", "did you mean 'val/loss'"),
        (grid(model__se=[{"reduction": 2}], model__se__bias=[True]), "parameters.model.se.bias", "given twice"),
        (grid(model__se__redction=[2]), "parameters.model.se.redction", "did you mean 'model.se.reduction'"),
        (grid(model__se=[{"redction": 2}]), "parameters.model.se", "did you mean 'model.se.reduction'"),
        (grid(data__image_size=[None, 16]), "parameters.data.image_size", "the text None"),
        (grid(model__kwargs=[{"zero_init_last": None}]), "parameters.model.kwargs", "the text None"),
        (grid(model__backbone=["cifar_resnet21"]), "parameters.model.backbone", "did you mean 'cifar_resnet"),
        (grid(model__se__stages=[[6]]), "parameters.model.se", "model.se.stages has 6"),
        (grid(model__se__insertion=["none"], model__se__reduction=[2, 4, 8]), "parameters", "2 of 3 points"),
        ({"parameters": {"model": {"parameters": {"se": {"value": {}}}}}}, "parameters.model", "dotted keys"),
        ({"parameters": {"optim.lr": {"min": "1e-3", "max": 0.1}}}, "parameters.optim.lr.min", "parses 1e-3 as text"),
        (
            {"method": "random", "run_cap": 2, "parameters": {"optim.momentum": {"min": 0.5, "max": 1.5}}},
            "parameters.optim.momentum",
            "1.5; it must be at least 0 and at most 1",
        ),
        (
            {"method": "random", "run_cap": 2, "parameters": {"optim.lr": {"min": 0, "max": 0.5}}},
            "parameters.optim.lr",
            "W&B refuses",
        ),
        (
            {
                "method": "random",
                "run_cap": 2,
                "parameters": {"optim.lr": {"distribution": "log_uniform", "min": -9.0, "max": -2.0}},
            },
            "parameters.optim.lr",
            "use log_uniform_values",
        ),
    ],
)
def test_each_trap_is_found_and_named(found, changes, where, said):
    assert [(where, said)] == [(place, said if said in text else text) for place, text in found(**changes)]


def test_null_is_right_where_the_agent_hands_over_json(found):
    command = ["se-lab", "train", "--recipe=digits", "--config", "${args_json_file}"]
    assert found(command=command, **grid(data__image_size=[None, 16])) == []


def test_all_wrong_values_are_told_at_once(found):
    axes = grid(model__se=[{"reduction": 0, "squeeze": "avrage"}, {"reduction": 4}], optim__lr=[0.1, -1], seed=[0.5])
    said = [text for _, text in found(**axes)]
    for wrong in ("model.se.reduction is 0", "model.se.squeeze is 'avrage'", "optim.lr is -1", "seed is 0.5"):
        assert any(wrong in text for text in said), (wrong, said)
    assert len(said) == 4


def test_keys_given_twice_and_agents_that_orphan_trials_are_found_in_the_text(tmp_path):
    path = tmp_path / "sweep.yaml"
    text = yaml.safe_dump(WHOLE, sort_keys=False)
    path.write_text(f"# then: wandb agent -f ENTITY/PROJECT/SWEEP\n{text}")
    assert check_sweep(path) == sweep_remarks(path) == []
    path.write_text(f"# then: wandb agent ENTITY/PROJECT/SWEEP\n{text}  seed: {{value: 3}}\nmethod: grid\n")
    assert [finding.where for finding in check_sweep(path)] == ["parameters.seed", "method"]
    assert [remark.where for remark in sweep_remarks(path)] == ["line 1"]


def test_the_command_lists_findings_and_says_so_in_its_exit_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # headings stand in one line
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(WHOLE | {"commnd": [], "program": None}))
    assert main(["check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "did you mean 'command'" in printed and "program: se-lab" in printed
    path.write_text(yaml.safe_dump(WHOLE))
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert rows[0] == ["spec", "trials", "local", "and", "W&B"]
    assert rows[2][1:] == ["2", "the", "same"] and "wandb agent -f" in printed


def test_what_to_type_next_can_be_typed(tmp_path, capsys):
    path = tmp_path / "my sweep.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"wandb sweep '{path}'" in printed
    assert main(["sweep", str(path), "--check"]) == 0 and capsys.readouterr().out == printed


def test_what_wandb_takes_as_it_is_written_is_a_remark_and_refuses_nothing(tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    stop = {"early_terminate": {"type": "hyperband", "min_iter": 3}, "metric": {"name": "val/loss"}}
    path.write_text(yaml.safe_dump(WHOLE | stop))
    assert main(["check", str(path)]) == 0
    assert "remark: early_terminate.strict: not given, so W&B's engine and SE-Lab use true" in capsys.readouterr().out
    path.write_text(yaml.safe_dump(WHOLE | stop | {"commnd": []}))
    assert main(["check", str(path)]) == 1
    assert "1 finding" in (printed := capsys.readouterr().out) and "remark: early_terminate.strict" in printed


def test_every_shipped_sweep_is_sound():
    files = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
    assert files
    assert {file.name: [str(finding) for finding in check_sweep(file)] for file in files} == {f.name: [] for f in files}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "contains itself"),
        ("method: grid\nparameters:\n  seed: &seed {values: [*seed]}", "contains itself"),
        ("[" * 1000, "nested too deeply"),
        ("name: 2026-13-45", "month must be in 1..12"),
        ("name: " + "1" * 5000, "4300"),
        ("name: \0", "special characters are not allowed"),
    ],
)
def test_a_file_that_yaml_makes_nothing_of_is_told_in_one_error(tmp_path, capsys, text, said):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    for verb in (["check"], ["status"], ["sweep", "--dry_run"], ["table"], ["gc", str(tmp_path), "--specs"]):
        assert main([*verb, str(path)]) == 2
        told = capsys.readouterr().err
        assert f"{path} is not valid YAML" in told and said in told


def test_a_value_that_stands_twice_under_one_anchor_is_no_loop(found, tmp_path):
    path = tmp_path / "anchors.yaml"
    text = yaml.safe_dump(WHOLE | grid(optim__lr=[0.1, 0.2])).replace("- 0.1", "- &lr 0.1").replace("- 0.2", "- *lr")
    path.write_text(text)
    assert check_sweep(path) == []


def test_trials_are_checked_before_any_is_run():
    good = RunSpec(model=ModelSpec("resnet18", SESpec(reduction=4)))
    check_trials([good])
    with pytest.raises(SpecError, match="did you mean 'resnet18'"):
        check_trials([good, RunSpec(model=ModelSpec("resnt18"))])
    with pytest.raises(SpecError, match=r"stages has 6.*are 2, 3, 4, 5"):
        check_trials([good, RunSpec(model=ModelSpec("resnet18", SESpec(stages=(6,))))])
    with pytest.raises(SpecError, match="seresnet50 already has channel attention"):
        check_trials([good, RunSpec(model=ModelSpec("seresnet50"))])


def test_a_width_that_repeats_across_a_sweep_is_said_aloud():
    trials = [RunSpec(model=ModelSpec("cifar_resnet20", SESpec(reduction=r))) for r in (8, 16, 32)]
    # channels 16, 32 and 64, three units each: r=16 gives 1, 2, 4 and r=32 gives 1, 1, 2
    assert check_trials(trials) == ["cifar_resnet20: r=16 and r=32 give the same hidden width in 33% of the units"]
