"""YAML and paths from outside."""

from pathlib import Path

import pytest
import yaml

from se_lab.spec import ExecSpec, SpecError, expand_path, read_yaml
from se_lab.spec.flags import parse_trial
from se_lab.spec.parser import Parser

BOMB = "a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


def test_yaml_is_what_pyyaml_reads_and_flags_have_numbers_without_a_point():
    text = "a: &x {b: [1, 2.5, yes, null, 1e-3]}\nc: *x\n"
    assert read_yaml(text) == yaml.safe_load(text)
    assert read_yaml(text, as_flags=True)["c"]["b"][-1] == 0.001
    assert read_yaml("") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [(BOMB, "aliases expand to"), ("a: &a {b: *a}", "contains itself"), ("[" * 2000, "nested too deeply")],
)
def test_yaml_that_would_fill_the_memory_is_refused(text, said, tmp_path):
    with pytest.raises(SpecError, match=said):
        read_yaml(text)
    (tmp_path / "trial.yaml").write_text(text)
    with pytest.raises(SpecError, match=said):
        parse_trial([f"--config={tmp_path / 'trial.yaml'}"])


def test_home_and_variables_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert expand_path("~/runs") == Path("/home/ada/runs")
    assert expand_path("$SCRATCH/x", "/elsewhere") == Path("/scratch/x")
    assert expand_path("x", "~") == Path("/home/ada/x")
    assert expand_path("~/x", "/root") == Path("/home/ada/x")
    monkeypatch.setenv("SE_LAB_STORE", "~/runs")
    monkeypatch.setenv("SE_LAB_DATA", "")  # as if unset
    assert (ExecSpec().store, ExecSpec().data_root) == ("/home/ada/runs", ".")
    parser = Parser("test")
    parser.add_argument("-o")
    assert parser.parse_args(["-o=~/out"]).o == "/home/ada/out"
    assert parse_trial(["--store=${SCRATCH}/runs"])[1].store == "/scratch/runs"
