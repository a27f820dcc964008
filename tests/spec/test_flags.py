"""Flags: what is read from where, and how a wrong one is told."""

import pytest

from se_lab.spec import RunSpec, SpecError
from se_lab.spec.flags import add_trial_flags, parse_trial, trial_from
from se_lab.spec.parser import Parser


def test_dashes_and_underscores_are_alike_in_names_and_never_in_values():
    parser = Parser("test")
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("-o")
    add_trial_flags(parser)
    options = parser.parse_args(
        ["--data-root", "some_where-else", "--dry-run", "--model.existing-se=keep", "-o", "a-b_c"]
    )
    spec, execution = trial_from(options.given)
    assert (execution.data_root, spec.model.existing_se) == ("some_where-else", "keep")
    assert (options.dry_run, options.o) == (True, "a-b_c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {se: {redction: 4}}", "unknown field 'model.se.redction'; did you mean 'model.se.reduction'"),
        ("model.se.reduction: four", "model.se.reduction is 'four'; it must be an integer"),
        ("model: {se: {reduction: four}}", "model.se.reduction is 'four'; it must be an integer"),
        ("model: {se.reduction: four}", "model.se.reduction is 'four'; it must be an integer"),
        ("model.se: {squeeze: averag}", "model.se.squeeze is 'averag'; allowed are avg, max, none; did you mean 'avg'"),
        ("devic: cpu", "unknown field 'devic'; did you mean 'device'"),
        ("threads: two", "threads is 'two'; it must be an integer"),
        ("model: {kwargs: &a {b: *a}}", "contains itself"),
    ],
)
def test_a_mistake_in_a_configuration_file_is_told_as_one_in_a_flag(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        parse_trial([f"--config={path}"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_each_unknown_flag_has_its_nearest():
    parser = Parser("test")
    parser.add_argument("--seed")
    parser.add_argument("--threads")
    with pytest.raises(SpecError) as error:
        parser.parse_args(["--sed=1", "x", "--thread"])
    said = "unknown flag '--sed'; did you mean '--seed'?; unknown flag '--thread'; did you mean '--threads'?"
    assert str(error.value) == said


def test_a_flag_counts_over_an_earlier_one_that_gives_its_section():
    spec, _ = parse_trial(["--model.se={reduction: 4, squeeze: max}", "--model.se.squeeze=avg"])
    assert (spec.model.se.reduction, spec.model.se.squeeze) == (4, "avg")
    spec, _ = parse_trial(["--model.se.squeeze=avg", "--model.se={reduction: 4, squeeze: max}"])
    assert spec.model.se.squeeze == "max"


def test_flags_hold_what_agents_write():
    """W&B's agent writes null as None, on as True, and mappings as Python does."""
    written = ["--data.image_size=None", "--model.fused=True", "--model.se={'insertion': 'pre', 'bias': True}"]
    spec, _ = parse_trial([*written, "--optim.lr=1e-3", "--model.kwargs={drop_path_rate: 1e-1}"])
    assert (spec.data.image_size, spec.model.fused, spec.model.se.insertion) == (None, "on", "pre")
    assert (spec.optim.lr, spec.model.kwargs) == (0.001, {"drop_path_rate": 0.1})


def test_help_lists_each_field_with_what_it_holds_and_its_default(capsys):
    parser = Parser("test")
    add_trial_flags(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--model.se.reduction {an integer} The reduction ratio r (Table 10): the hidden width is C // r" in said
    assert all(f"--{key} " in said for key in [*RunSpec().flat(), "store", "threads"])
