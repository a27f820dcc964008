"""Flags: what is read from where, and how a wrong one is told."""

import pytest

from se_lab.spec import SpecError
from se_lab.spec.flags import execution_parser, parse_execution, parse_trial
from se_lab.spec.mistakes import as_known, told


def test_dashes_and_underscores_are_alike_in_names_and_never_in_values():
    known = ["--data_root", "--dry-run", "--model.existing_se", "-o"]
    given = ["--data-root=a_b-c", "--dry_run", "--model.existing-se", "keep_it", "--else-where", "-o", "a-b"]
    ours = ["--data_root=a_b-c", "--dry-run", "--model.existing_se", "keep_it", "--else-where", "-o", "a-b"]
    assert as_known(given, known) == ours
    spec, execution = parse_trial(["--data-root", "some_where-else", "--model.existing-se=keep"])
    assert (execution.data_root, spec.model.existing_se) == ("some_where-else", "keep")
    _, execution = parse_execution(execution_parser("test", ""), ["--data-root=a-b", "--checkpoint_minutes=2"])
    assert (execution.data_root, execution.checkpoint_minutes) == ("a-b", 2.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {se: {redction: 4}}", "no field is called 'model.se.redction'; did you mean 'model.se.reduction'"),
        ("model.se.reduction: four", "model.se.reduction is 'four'; it must be an integer"),
        ("model: {se: {reduction: four}}", "model.se.reduction is 'four'; it must be an integer"),
        ("model: {se.reduction: four}", "model.se.reduction is 'four'; it must be an integer"),
        ("model.se: {squeeze: averag}", "model.se.squeeze is 'averag'; allowed are avg, max, none; did you mean 'avg'"),
        ("wand: false", "no field is called 'wand'; did you mean 'wandb'"),
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
    said = told("unrecognized arguments: --sed=1 x --thread", ["--seed", "--threads"])
    assert (
        said
        == "no flag is called '--sed'; did you mean '--seed'?; no flag is called '--thread'; did you mean '--threads'?"
    )


def test_the_words_of_newer_argparse_are_read_as_well():
    for choices in ("'local', 'slurm'", "local, slurm"):  # Python 3.12 leaves the quotes out
        said = told(f"argument --executor: invalid choice: 'slrum' (choose from {choices})", [])
        assert said == "--executor is 'slrum'; allowed are local, slurm; did you mean 'slurm'?"
