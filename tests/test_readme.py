"""The README is run: its Python, its sweep spec, its commands; and it shows what is there."""

import re
import shlex
from pathlib import Path

import pytest

from se_lab.cli import VERBS, main
from se_lab.sweep.grammar import read_sweep
from se_lab.units.squeeze_excite import SQUEEZE

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_python_blocks_run_and_print_what_they_say(capsys, monkeypatch):
    monkeypatch.setattr("se_lab.units.squeeze_excite.SQUEEZE", SQUEEZE)
    try:
        for block in blocks("python"):
            exec(block, {})
            printed = capsys.readouterr().out.splitlines()
            said = re.findall(r"print\(.*?\)\s+# (.*)", block)
            for line, claim in zip(printed, said, strict=True):
                assert line.startswith(claim.removesuffix("...)")), f"README says {claim!r}, it prints {line!r}"
    finally:
        SQUEEZE.pop("l2", None)


def test_the_sweep_spec_is_one(tmp_path):
    (spec,) = blocks("yaml")
    (tmp_path / "study.yaml").write_text(spec)
    assert len(read_sweep(tmp_path / "study.yaml").trials) == 9


def test_every_command_exists_with_its_flags(capsys):
    commands = [shlex.split(line[2:], comments=True) for block in blocks("console") for line in block.splitlines()]
    assert commands
    for _, verb, *arguments in commands:
        assert verb in VERBS
        with pytest.raises(SystemExit, match="0"):
            main([verb, "--help"])
        if verb == "profile":  # which takes the flags of train
            with pytest.raises(SystemExit, match="0"):
                main(["train", "--help"])
        told = capsys.readouterr().out
        for flag in re.findall(r"--[\w.-]+", " ".join(arguments)):
            assert flag in told, f"se-lab {verb} has no {flag}"


def test_cheap_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["sweep", "sweeps/demo.yaml", "--dry-run", "--store", str(tmp_path)]) == 0
    assert "48 trials" in capsys.readouterr().out


def test_every_file_it_names_is_there():
    for path in {*re.findall(r"\]\((?!http)([^)]+)\)", TEXT), *re.findall(r"`((?:sweeps|docs|se_lab)/[\w./]*)`", TEXT)}:
        assert (ROOT / path).exists(), path
